#!/usr/bin/env python3
"""Say how much of each GPU's memory a run of continual pre-training takes: python tools/plan.py --hf-model llama-3-8b.

--help has the flags; docs/how-to/plan-memory.md says how it counts.
"""

from megatron_mixcpt.planning.tool import main

if __name__ == "__main__":
    main()

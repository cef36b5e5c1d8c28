#!/usr/bin/env python3
"""Export a Megatron checkpoint as a Hugging Face model folder; ``--help`` says more.

.venv/bin/python tools/convert_to_hf.py --load checkpoints/mixcpt --save exported
"""

from megatron_mixcpt.conversion.to_hf_tool import main

if __name__ == "__main__":
    main()

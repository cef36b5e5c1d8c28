#!/usr/bin/env python3
"""Convert a Hugging Face model folder into a Megatron checkpoint; ``--help`` says more.

.venv/bin/python tools/convert_from_hf.py --hf-model Meta-Llama-3-8B --save checkpoints/llama3-8b
"""

from megatron_mixcpt.conversion.from_hf_tool import main

if __name__ == "__main__":
    main()

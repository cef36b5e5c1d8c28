#!/usr/bin/env python3
"""Check a Hugging Face model folder, and prove its conversion into a Megatron checkpoint; ``--help`` says more.

.venv/bin/python tools/verify_conversion.py --hf-model Meta-Llama-3-8B --load checkpoints/llama3-8b
"""

from megatron_mixcpt import cpu_emulation

cpu_emulation.install()

from megatron_mixcpt.verification.tool import main  # noqa: E402 - Megatron is imported after the emulation

if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Check a Hugging Face model folder, and prove that it is the same model in the engine or as a Megatron checkpoint.

    .venv/bin/python tools/verify_conversion.py --hf-model Meta-Llama-3-8B --load checkpoints/llama3-8b
    .venv/bin/torchrun --nproc-per-node 4 tools/verify_conversion.py --hf-model DIR --tensor-model-parallel-size 2 \
        --pipeline-model-parallel-size 2

First the folder alone (NaN, embedding rows near zero, tokenizer), then the checkpoint's bits, then the forward pass
against transformers on real text, layer by layer. Exit code 1 where something differs.
"""

from megatron_mixcpt import cpu_emulation

cpu_emulation.install()

from megatron_mixcpt.verification.tool import main  # noqa: E402 - Megatron is imported after the emulation

if __name__ == "__main__":
    main()

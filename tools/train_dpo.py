#!/usr/bin/env python3
"""Direct preference optimization on preference pairs, at any tensor and pipeline parallel layout.

    torchrun --nproc-per-node 8 tools/train_dpo.py --load checkpoints/sft --dpo selected-dpo.jsonl \\
        --beta 0.01 --save checkpoints/dpo --tensor-model-parallel-size 4 --sequence-parallel --bf16

``--hf-model DIR`` starts from a Hugging Face folder instead. Every flag of Megatron's is taken; docs/how-to/align.md.
"""

from megatron_mixcpt import cpu_emulation

cpu_emulation.install()  # where no GPU is, and before the engine is imported

from megatron_mixcpt.training.alignment.dpo import main  # noqa: E402

if __name__ == "__main__":
    main()

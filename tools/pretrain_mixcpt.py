"""Continual pre-training on a mixture with logit swap self-distillation.

    torchrun --nproc-per-node 8 tools/pretrain_mixcpt.py --hf-model DIR --mixture DIR --save DIR --bf16 \
        --tensor-model-parallel-size 8 --global-batch-size 1920

Every flag of Megatron works as well; --help lists them all.
"""

from megatron_mixcpt import cpu_emulation

cpu_emulation.install()

from megatron_mixcpt.training.pretraining.cpt import main  # noqa: E402 - Megatron is imported after the emulation

if __name__ == "__main__":
    main()

#!/usr/bin/env bash
# Mix-CPT's continual pre-training of Qwen2-7B with the paper's settings (arXiv 2407.10804, section 3.1), on one node of
# 8 GPUs with 80 GB or on many such nodes. This file is a shell script and a Python program at once; all of these work:
#
#   torchrun --nproc-per-node 8 examples/pretrain_mixcpt_qwen2.sh [flags]
#   bash examples/pretrain_mixcpt_qwen2.sh [flags]          # starts torchrun; see examples/launch_torchrun.sh
#   sbatch examples/slurm/pretrain_mixcpt.sbatch examples/pretrain_mixcpt_qwen2.sh [flags]
#
# Three paths are needed, from the environment or as flags:
#
#   HF_MODEL  --hf-model  the base model's Hugging Face folder (Qwen2-7B)
#   MIXTURE   --mixture   the folder written by tools/preprocess_mixture.py
#   SAVE      --save      where checkpoints go; started again, the run resumes from there
#
# Flags of your own (any of Megatron's or of tools/pretrain_mixcpt.py) override the ones below. The length of the run is
# one pass over the mixture unless --epochs, --train-iters or --train-samples says otherwise. The log shows loss, ntp
# loss, lssd loss, swapped fraction and tokens per second; the result is exported with tools/convert_to_hf.py.
""":"
exec bash "$(dirname "${BASH_SOURCE[0]}")/launch_torchrun.sh" "${BASH_SOURCE[0]}" "$@"
: <<'# The end.'
":"""  # Python starts here: it took the shell's lines for a string, and the shell takes these for one

from megatron_mixcpt import cpu_emulation

cpu_emulation.install()  # before Megatron is imported; does nothing where there is a GPU

from megatron_mixcpt.training.pretraining.cpt import main
from megatron_mixcpt.training.recipe import run_recipe

DEFAULTS = """
    --distillation lssd --alpha 0.8
    --seq-length 2048 --global-batch-size 1920 --micro-batch-size 2
    --lr 2e-5 --min-lr 5e-6 --lr-decay-style cosine --lr-warmup-fraction 0.01
    --adam-beta1 0.9 --adam-beta2 0.95 --weight-decay 0.1 --clip-grad 1.0
    --bf16

    # 28 heads and 4 key-value heads: TP 1, 2 or 4. About 45 GB a GPU at TP 2 x DP 4, teacher included.
    --tensor-model-parallel-size 2 --sequence-parallel --pipeline-model-parallel-size 1
    --use-distributed-optimizer --overlap-grad-reduce --overlap-param-gather

    --log-interval 1 --save-interval 100
"""

if __name__ == "__main__":
    run_recipe(main, DEFAULTS)
# The end.

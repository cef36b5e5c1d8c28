#!/usr/bin/env bash
# Format alignment of Qwen2-7B by direct preference optimization, with the paper's settings
# (arXiv 2407.10804, section 3.1 and its appendix), on one node of 8 GPUs with 80 GB or on many. A shell script and a
# Python program at once; these work:
#
#   torchrun --nproc-per-node 8 examples/dpo_qwen2.sh [flags]
#   bash examples/dpo_qwen2.sh [flags]          # starts torchrun; see examples/launch_torchrun.sh
#
# Three paths are needed, from the environment or as flags:
#
#   LOAD  --load  the checkpoint of supervised fine-tuning; --hf-model DIR starts from a Hugging Face folder instead
#   DPO   --dpo   the preference pairs that tools/select_alignment.py wrote (K = 10,000 in the paper)
#   SAVE  --save  where checkpoints go; started again, the run resumes from there
#
# Flags of your own (any of Megatron's or of tools/train_dpo.py) override the ones below. The result is exported,
# its chat template with it, by tools/convert_to_hf.py.
""":"
exec bash "$(dirname "${BASH_SOURCE[0]}")/launch_torchrun.sh" "${BASH_SOURCE[0]}" "$@"
: <<'# The end.'
":"""  # Python starts here: it took the shell's lines for a string, and the shell takes these for one

from megatron_mixcpt import cpu_emulation

cpu_emulation.install()  # before Megatron is imported; does nothing where there is a GPU

from megatron_mixcpt.training.recipe import DPO_PATHS, run_recipe
from megatron_mixcpt.training.alignment.dpo import main

DEFAULTS = """
    --chat-template chatml --epochs 2 --global-batch-size 128 --beta 0.1
    # Both ends of a pair share a row.
    --seq-length 4096 --micro-batch-size 1
    --lr 1e-7 --min-lr 0 --lr-decay-style cosine --lr-warmup-fraction 0.1
    --adam-beta1 0.9 --adam-beta2 0.95 --weight-decay 0 --clip-grad 1.0
    --bf16

    # 28 heads and 4 key-value heads: TP 1, 2 or 4.
    --tensor-model-parallel-size 2 --sequence-parallel --pipeline-model-parallel-size 1
    --use-distributed-optimizer --overlap-grad-reduce --overlap-param-gather

    --log-interval 1 --save-interval 50
"""

if __name__ == "__main__":
    run_recipe(main, DEFAULTS, DPO_PATHS)
# The end.

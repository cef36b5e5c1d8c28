#!/usr/bin/env bash
# Format alignment of Llama-3-8B by supervised fine-tuning, with the paper's settings
# (arXiv 2407.10804, section 3.1 and its appendix), on one node of 8 GPUs with 80 GB or on many. A shell script and a
# Python program at once; these work:
#
#   torchrun --nproc-per-node 8 examples/sft_llama3.sh [flags]
#   bash examples/sft_llama3.sh [flags]          # starts torchrun; see examples/launch_torchrun.sh
#
# Three paths are needed, from the environment or as flags:
#
#   LOAD  --load  the checkpoint of continual pre-training; --hf-model DIR starts from a Hugging Face folder instead
#   SFT   --sft   the conversations that tools/select_alignment.py wrote (K = 10,000 in the paper)
#   SAVE  --save  where checkpoints go; started again, the run resumes from there
#
# Flags of your own (any of Megatron's or of tools/train_sft.py) override the ones below. The result is exported,
# its chat template with it, by tools/convert_to_hf.py.
""":"
exec bash "$(dirname "${BASH_SOURCE[0]}")/launch_torchrun.sh" "${BASH_SOURCE[0]}" "$@"
: <<'# The end.'
":"""  # Python starts here: it took the shell's lines for a string, and the shell takes these for one

from megatron_mixcpt import cpu_emulation

cpu_emulation.install()  # before Megatron is imported; does nothing where there is a GPU

from megatron_mixcpt.training.recipe import SFT_PATHS, run_recipe
from megatron_mixcpt.training.alignment.sft import main

DEFAULTS = """
    --chat-template llama3 --epochs 2 --global-batch-size 128
    --seq-length 2048 --micro-batch-size 1
    --lr 5e-6 --min-lr 0 --lr-decay-style cosine --lr-warmup-fraction 0.1
    --adam-beta1 0.9 --adam-beta2 0.95 --weight-decay 0 --clip-grad 1.0
    --bf16

    # Gradients and the sharded optimizer take about 30 GB a GPU at TP 2 x DP 4.
    --tensor-model-parallel-size 2 --sequence-parallel --pipeline-model-parallel-size 1
    --use-distributed-optimizer --overlap-grad-reduce --overlap-param-gather

    --log-interval 1 --save-interval 50
"""

if __name__ == "__main__":
    run_recipe(main, DEFAULTS, SFT_PATHS)
# The end.

#!/usr/bin/env bash
# Mix-CPT's continual pre-training of Qwen2-7B with the paper's settings, on nodes of 8 GPUs with 80 GB each:
#
#   torchrun --nproc-per-node 8 examples/pretrain_mixcpt_qwen2.sh [flags]
#   bash examples/pretrain_mixcpt_qwen2.sh [flags]
#
# Set HF_MODEL, MIXTURE and SAVE, or give them as flags. How to start, change and resume it: examples/README.md.
""":"
exec bash "$(dirname "$0")/launch_torchrun.sh" "$0" "$@" # bash ends here; to Python these lines are a string
: <<'# End of the Python part.'
":"""

from recipes import PRETRAIN, run

FLAGS = f"""{PRETRAIN}
    # 28 heads and 4 key-value heads allow TP 1, 2 or 4.
    # At TP 2 x DP 4: about 45 GB a GPU for student, teacher, gradients and sharded optimizer.
"""

if __name__ == "__main__":
    run("pretrain", FLAGS)
# End of the Python part.

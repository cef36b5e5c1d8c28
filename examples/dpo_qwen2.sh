#!/usr/bin/env bash
# Direct preference optimization of Qwen2-7B with the paper's settings, on nodes of 8 GPUs with 80 GB each:
#
#   torchrun --nproc-per-node 8 examples/dpo_qwen2.sh [flags]
#   bash examples/dpo_qwen2.sh [flags]
#
# Set LOAD, DPO and SAVE, or give them as flags. How to start, change and resume it: examples/README.md.
""":"
exec bash "$(dirname "$0")/launch_torchrun.sh" "$0" "$@" # bash ends here; to Python these lines are a string
: <<'# End of the Python part.'
":"""

from recipes import DPO, run

FLAGS = f"""{DPO}
    --chat-template chatml --lr 1e-7 --beta 0.1
    # 28 heads and 4 key-value heads allow TP 1, 2 or 4.
"""

if __name__ == "__main__":
    run("dpo", FLAGS)
# End of the Python part.

#!/usr/bin/env bash
# Supervised fine-tuning of Qwen2-7B with the paper's settings, on nodes of 8 GPUs with 80 GB each:
#
#   torchrun --nproc-per-node 8 examples/sft_qwen2.sh [flags]
#   bash examples/sft_qwen2.sh [flags]
#
# Set LOAD, SFT and SAVE, or give them as flags. How to start, change and resume it: examples/README.md.
""":"
exec bash "$(dirname "$0")/launch_torchrun.sh" "$0" "$@" # bash ends here; to Python these lines are a string
: <<'# End of the Python part.'
":"""

from recipes import SFT, run

FLAGS = f"""{SFT}
    --chat-template chatml --lr 5e-7
    # 28 heads and 4 key-value heads allow TP 1, 2 or 4.
"""

if __name__ == "__main__":
    run("sft", FLAGS)
# End of the Python part.

#!/usr/bin/env bash
# Supervised fine-tuning of Llama-3-8B with the paper's settings, on nodes of 8 GPUs with 80 GB each:
#
#   torchrun --nproc-per-node 8 examples/sft_llama3.sh [flags]
#   bash examples/sft_llama3.sh [flags]
#
# Set LOAD, SFT and SAVE, or give them as flags. How to start, change and resume it: examples/README.md.
""":"
exec bash "$(dirname "$0")/launch_torchrun.sh" "$0" "$@" # bash ends here; to Python these lines are a string
: <<'# End of the Python part.'
":"""

from recipes import SFT, run

FLAGS = f"""{SFT}
    --chat-template llama3 --lr 5e-6
    # At TP 2 x DP 4: about 30 GB a GPU for gradients and sharded optimizer.
"""

if __name__ == "__main__":
    run("sft", FLAGS)
# End of the Python part.

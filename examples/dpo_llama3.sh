#!/usr/bin/env bash
# Direct preference optimization of Llama-3-8B with the paper's settings, on nodes of 8 GPUs with 80 GB each:
#
#   torchrun --nproc-per-node 8 examples/dpo_llama3.sh [flags]
#   bash examples/dpo_llama3.sh [flags]
#
# Set LOAD, DPO and SAVE, or give them as flags. How to start, change and resume it: examples/README.md.
""":"
exec bash "$(dirname "$0")/launch_torchrun.sh" "$0" "$@" # bash ends here; to Python these lines are a string
: <<'# End of the Python part.'
":"""

from recipes import DPO, run

FLAGS = f"""{DPO}
    --chat-template llama3 --lr 5e-7 --beta 0.01
    # At TP 2 x DP 4: about 45 GB a GPU for policy, reference, gradients and sharded optimizer.
"""

if __name__ == "__main__":
    run("dpo", FLAGS)
# End of the Python part.

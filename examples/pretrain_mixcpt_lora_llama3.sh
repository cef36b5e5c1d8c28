#!/usr/bin/env bash
# Mix-CPT's continual pre-training of Llama-3-8B with low-rank adapters, whose teacher is the model with them off, on
# one GPU with 40 GB:
#
#   torchrun --nproc-per-node 1 examples/pretrain_mixcpt_lora_llama3.sh [flags]
#   bash examples/pretrain_mixcpt_lora_llama3.sh [flags]      # on all GPUs of this node: data parallel, the same batches
#
# Llama-3-70B on 8 GPUs with 40 or 80 GB each:
#
#   torchrun --nproc-per-node 8 examples/pretrain_mixcpt_lora_llama3.sh --hf-model models/Llama-3-70B \
#       --tensor-model-parallel-size 8 --sequence-parallel
#
# Set HF_MODEL, MIXTURE and SAVE, or give them as flags. What the adapters need and become: docs/how-to/adapters.md.
""":"
exec bash "$(dirname "$0")/launch_torchrun.sh" "$0" "$@" # bash ends here; to Python these lines are a string
: <<'# End of the Python part.'
":"""

from recipes import PRETRAIN_LORA, run

FLAGS = f"""{PRETRAIN_LORA}
    # 8B: about 26 GB a GPU; with --recompute-granularity full --recompute-method uniform --recompute-num-layers 1, 17 GB.
"""

if __name__ == "__main__":
    run("pretrain", FLAGS)
# End of the Python part.

#!/usr/bin/env python3
"""Say what a run of continual pre-training takes of each GPU's memory, before any GPU is asked for it.

    python tools/plan.py --hf-model llama-3-8b --num-gpus 8 --tensor-model-parallel-size 2 --sequence-parallel \
        --use-distributed-optimizer --micro-batch-size 2

The flags are the trainer's. Where the plan exceeds --gpu-memory, a warning says what to change. How it counts, and how
near that is to what was measured: docs/how-to/plan-memory.md.
"""

import argparse

from megatron_mixcpt.errors import exit_on_user_error
from megatron_mixcpt.planning.shapes import model_shape
from megatron_mixcpt.planning.tool import add_flags, layout_from, report


@exit_on_user_error
def main() -> None:
    """Parse the flags, plan, and print the plan."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_flags(parser)
    arguments = parser.parse_args()
    model, layout = model_shape(arguments.hf_model), layout_from(arguments)
    print(report(model, layout, gpu_memory=arguments.gpu_memory, reserve=arguments.reserve))


if __name__ == "__main__":
    main()

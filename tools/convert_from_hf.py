#!/usr/bin/env python3
"""Convert a Hugging Face model folder into a Megatron checkpoint that any tensor- and pipeline-parallel layout loads.

    .venv/bin/python tools/convert_from_hf.py --hf-model Meta-Llama-3-8B --save checkpoints/llama3-8b

One CPU process and little memory do; ``torchrun --nproc-per-node 8 tools/convert_from_hf.py ...`` shares the work. The
output goes to ``--pretrained-checkpoint`` or ``--load``. (Training with ``--hf-model`` needs no conversion at all.)
"""

import argparse
from pathlib import Path

from megatron_mixcpt.conversion.convert import convert_from_hf
from megatron_mixcpt.errors import exit_on_user_error
from megatron_mixcpt.jobs.ranks import process_group_of_torchrun


@exit_on_user_error
def main() -> None:
    """Parse the flags, convert, and print what was written."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hf-model", type=Path, required=True, help="model folder: config.json and safetensors files")
    parser.add_argument("--save", type=Path, required=True, help="checkpoint folder to make; must not exist")
    arguments = parser.parse_args()
    with process_group_of_torchrun() as rank:
        summary = convert_from_hf(arguments.hf_model, arguments.save)
    if rank == 0:
        print(f"{summary.folder}: {summary.num_tensors} tensors, {summary.num_bytes / 1e9:.2f} GB")


if __name__ == "__main__":
    main()

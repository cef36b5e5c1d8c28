#!/usr/bin/env python3
"""Export a Megatron checkpoint as a Hugging Face model folder that transformers loads.

    .venv/bin/python tools/convert_to_hf.py --load checkpoints/mixcpt --save exported

The checkpoint carries its model's config and tokenizer (``hf/``), so no base model is named. It may have been saved at
any layout; one CPU process and little memory export it, and ``torchrun --nproc-per-node 8 tools/convert_to_hf.py ...``
shares the work.
"""

import argparse
from pathlib import Path

import torch

from megatron_mixcpt.conversion.convert import convert_to_hf
from megatron_mixcpt.errors import exit_on_user_error
from megatron_mixcpt.jobs.ranks import process_group_of_torchrun


@exit_on_user_error
def main() -> None:
    """Parse the flags, export, and print what was written."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--load", type=Path, required=True, help="checkpoint folder of a training run")
    parser.add_argument("--save", type=Path, required=True, help="model folder to make; must not exist")
    parser.add_argument("--iteration", type=int, help="iteration to export; default: the latest")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], help="default: as the checkpoint has it")
    parser.add_argument("--max-shard-gb", type=float, default=50, help="largest file, in GB (default: %(default)s)")
    parser.add_argument("--hf-reference", type=Path, help="base model's folder, for checkpoints without an hf/ folder")
    arguments = parser.parse_args()
    with process_group_of_torchrun() as rank:
        summary = convert_to_hf(
            arguments.load,
            arguments.save,
            iteration=arguments.iteration,
            dtype=getattr(torch, arguments.dtype) if arguments.dtype else None,
            max_shard_bytes=int(arguments.max_shard_gb * 1e9),
            hf_reference=arguments.hf_reference,
        )
    if rank == 0:
        print(f"{summary.folder}: {summary.num_tensors} tensors, {summary.num_bytes / 1e9:.2f} GB")


if __name__ == "__main__":
    main()

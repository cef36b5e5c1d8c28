"""Export a Megatron checkpoint as a Hugging Face model folder that transformers loads.

    .venv/bin/python tools/convert_to_hf.py --load checkpoints/mixcpt --save exported

The checkpoint carries its model's config and tokenizer (``hf/``), so no base model is named. It may have been saved at
any layout. Where it holds adapters, ``--hf-reference`` names the base model that they are merged into, or ``--adapter``
writes them as a folder that PEFT loads. One CPU process and the memory of one tensor are enough; ``torchrun
--nproc-per-node 8 tools/convert_to_hf.py ...`` shares the work.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from megatron_mixcpt import flags
from megatron_mixcpt.conversion.adapters.peft_export import export_adapter
from megatron_mixcpt.conversion.convert import Summary, convert_to_hf
from megatron_mixcpt.conversion.tensor_files.writer import MAX_SHARD_BYTES
from megatron_mixcpt.errors import ConfigError, exit_on_user_error
from megatron_mixcpt.flags import Parser, setting, settings_from
from megatron_mixcpt.jobs.ranks import process_group_of_torchrun

GB = 1_000_000_000


@dataclass(frozen=True, kw_only=True)
class ToHFSettings:
    """What is exported, and how it is written."""

    load: Path = setting(metavar="DIR")
    """Checkpoint folder of a training run."""
    save: Path = setting(metavar="DIR")
    """Model folder to write; must not exist."""
    iteration: int | None = None
    """Iteration to export. Default: the latest."""
    dtype: Literal["bfloat16", "float32"] | None = None
    """Dtype of the exported weights. Default: the checkpoint's."""
    max_shard_gb: float = MAX_SHARD_BYTES / GB
    """Largest safetensors file, in GB."""
    hf_reference: Path | None = setting(default=None, metavar="DIR")
    """The base model's folder: for adapters, which are merged into its weights, for a multimodal model, whose other
    tensors are copied from there, and for a checkpoint without an hf/ folder."""
    adapter: bool = False
    """Write the adapters of a training with --lora-rank as a PEFT folder, instead of the model with them merged in."""

    def __post_init__(self) -> None:
        if self.iteration is not None and self.iteration < 1:
            raise ConfigError(f"--iteration {self.iteration}: must be greater than 0")
        if not 0 < self.max_shard_gb < math.inf:
            raise ConfigError(f"--max-shard-gb {self.max_shard_gb}: must be a number greater than 0")


def build_parser() -> Parser:
    """The parser of ``tools/convert_to_hf.py``."""
    return flags.build_parser(__doc__, ToHFSettings)


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    """Parse the flags, export, and print what was written."""
    settings = settings_from(build_parser().parse_args(argv), ToHFSettings)
    with process_group_of_torchrun() as rank:
        summary = _export(settings)
    if rank == 0:
        print(summary)


def _export(settings: ToHFSettings) -> Summary:
    dtype = getattr(torch, settings.dtype) if settings.dtype else None
    options: dict[str, Any] = {"iteration": settings.iteration, "dtype": dtype, "hf_reference": settings.hf_reference}
    if settings.adapter:
        return export_adapter(settings.load, settings.save, **options)
    max_shard_bytes = int(settings.max_shard_gb * GB)
    return convert_to_hf(settings.load, settings.save, max_shard_bytes=max_shard_bytes, **options)

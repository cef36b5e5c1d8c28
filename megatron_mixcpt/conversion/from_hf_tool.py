"""Convert a Hugging Face model folder into a Megatron checkpoint that any tensor- and pipeline-parallel layout loads.

    .venv/bin/python tools/convert_from_hf.py --hf-model Meta-Llama-3-8B --save checkpoints/llama3-8b

One CPU process and the memory of one tensor are enough; ``torchrun --nproc-per-node 8 tools/convert_from_hf.py ...``
shares the work. The output goes to ``--pretrained-checkpoint`` or ``--load``. (Training with ``--hf-model`` needs no
conversion.)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_mixcpt import flags
from megatron_mixcpt.conversion.convert import convert_from_hf
from megatron_mixcpt.errors import exit_on_user_error
from megatron_mixcpt.flags import Parser, setting, settings_from
from megatron_mixcpt.jobs.ranks import process_group_of_torchrun


@dataclass(frozen=True, kw_only=True)
class FromHFSettings:
    """What is converted, and where it is written."""

    hf_model: Path = setting(metavar="DIR")
    """Model folder with config.json and safetensors files."""
    save: Path = setting(metavar="DIR")
    """Checkpoint folder to write; must not exist."""


def build_parser() -> Parser:
    """The parser of ``tools/convert_from_hf.py``."""
    return flags.build_parser(__doc__, FromHFSettings)


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    """Parse the flags, convert, and print what was written."""
    settings = settings_from(build_parser().parse_args(argv), FromHFSettings)
    with process_group_of_torchrun() as rank:
        summary = convert_from_hf(settings.hf_model, settings.save)
    if rank == 0:
        print(summary)

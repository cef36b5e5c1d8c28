"""The program behind ``tools/select_alignment.py``."""

from collections.abc import Sequence

from megatron_mixcpt import flags
from megatron_mixcpt.errors import exit_on_user_error
from megatron_mixcpt.selection.select import select_alignment
from megatron_mixcpt.selection.settings import SelectSettings

ABOUT = """Select the samples for format alignment by their scores.

Writes the samples themselves, for --sft or --dpo of training. FILE.report.json says how many were selected, why the
others were left out, and how the scores are distributed; FILE.png shows it, where matplotlib is installed."""


def build_parser() -> flags.Parser:
    """The parser of the command line."""
    return flags.build_parser(ABOUT, SelectSettings)


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    """Parse the flags, select, print a summary."""
    settings = flags.settings_from(build_parser().parse_args(argv), SelectSettings)
    report = select_alignment(settings)
    left_out = ", ".join(f"{number:,} {reason}" for reason, number in report["left_out"].items()) or "none"
    print(f"{settings.output}: {report['selected']:,} samples; left out: {left_out}")
    print(f"report: {settings.output}.report.json")
    print(f"picture: {report['picture'] or 'none, matplotlib is not installed (pip install matplotlib)'}")

"""The program behind ``tools/report.py``."""

from collections.abc import Sequence

from megatron_mixcpt import flags
from megatron_mixcpt.errors import exit_on_user_error
from megatron_mixcpt.report.gather import gather
from megatron_mixcpt.report.page import PAGE_NAME, write_page
from megatron_mixcpt.report.settings import ReportSettings

ABOUT = """Write one page about several runs: who learned the domain, who forgot the rest, and what was set differently.

Writes DIR/report.html, a single file that needs nothing else, and each picture as PNG. Names that end in a seed
(mixcpt/seed-1, mixcpt/seed-2) are one method: mean and spread. See docs/how-to/compare-runs.md."""


def build_parser() -> flags.Parser:
    """The parser of the command line."""
    return flags.build_parser(ABOUT, ReportSettings)


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    """Parse the flags, read, write the page, print where it is."""
    settings = flags.settings_from(build_parser().parse_args(argv), ReportSettings)
    found = gather(settings)
    number = write_page(found, settings.output, title=settings.title)
    inputs = found.inputs
    print(f"{len(inputs.runs)} run(s), {len(inputs.evaluations)} evaluation(s), {number} picture(s)")
    print("\n".join(found.notes))
    print(f"page: {settings.output / PAGE_NAME}")

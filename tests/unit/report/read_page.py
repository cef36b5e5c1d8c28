"""Makes a report page with the tool's own flags, and reads it back."""

from html.parser import HTMLParser
from pathlib import Path

from megatron_mixcpt.flags import settings_from
from megatron_mixcpt.report.gather import gather
from megatron_mixcpt.report.page import PAGE_NAME, write_page
from megatron_mixcpt.report.settings import ReportSettings
from megatron_mixcpt.report.tool import build_parser


class Page(HTMLParser):
    """Tables as lists of rows of texts, by their labels; pictures; everything else as text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tables: dict[str, list[list[str]]] = {}
        self.pictures: list[dict[str, str | None]] = []
        self.text = ""
        self._rows: list[list[str]] = []
        self._in_cell = False
        self._in_style = False
        self.feed(html)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        assert tag not in ("script", "link", "iframe"), "nothing runs and nothing is fetched"
        self._in_style = tag == "style"
        given = dict(attributes)
        if tag == "table":
            self._rows = self.tables.setdefault(given["aria-label"], [])
        elif tag == "tr":
            self._rows.append([])
        elif tag in ("td", "th"):
            self._rows[-1].append("")
            self._in_cell = True
        elif tag == "img":
            self.pictures.append(given)

    def handle_endtag(self, tag: str) -> None:
        self._in_cell = self._in_cell and tag not in ("td", "th")
        self._in_style = False

    def handle_data(self, data: str) -> None:
        if self._in_cell:
            self._rows[-1][-1] += data
        elif not self._in_style:
            self.text += data


def settings(*flags: str) -> ReportSettings:
    """The settings that these flags make."""
    return settings_from(build_parser().parse_args(flags), ReportSettings)


def make_page(folder: Path, *flags: str) -> Page:
    """What the tool does with these flags; the page is written to ``folder/report``."""
    given = settings(*flags, "--output", str(folder / "report"))
    write_page(gather(given), given.output, title=given.title)
    return Page((folder / "report" / PAGE_NAME).read_text(encoding="utf-8"))

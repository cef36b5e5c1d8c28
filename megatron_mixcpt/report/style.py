"""The look of the pictures: colours that colour-blind readers can tell apart, in light and dark mode, as SVG and PNG.

In the SVG the greys are variables that follow the reader's colour scheme. It is embedded as an image, where nothing
that a run's name may hold can run.
"""

import base64
import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypedDict

from megatron_mixcpt.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure
    from matplotlib.typing import RcKeyType

# Okabe and Ito's colours, without yellow and a little darker where white paper asks for it.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#c2669a", "#c98a00", "#3fa0d8")
STYLES = ("-", "--", "-.")
BETTER, WORSE = COLOURS[0], COLOURS[1]
INK, MUTED, GRID = "#1c2024", "#69727c", "#dde1e6"
_DARK = {INK: "#e8ebee", MUTED: "#9aa4ae", GRID: "#343a41"}
_SETTINGS: "dict[RcKeyType, Any]" = {
    "axes.edgecolor": MUTED,
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.labelsize": 10,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "axes.axisbelow": True,
    "font.family": "sans-serif",
    "font.size": 10.5,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "text.color": INK,
    "text.parse_math": False,  # a name may hold dollar signs
    "xtick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.color": MUTED,
    "ytick.labelcolor": INK,
}
WIDTH_INCHES = 5.4


@dataclass(frozen=True)
class Picture:
    """One picture of the page, and its file."""

    name: str
    """Name of the file, without ``.png``."""
    alt: str
    """Text for readers who cannot see the picture."""
    svg: str
    png: bytes
    caption: str = ""

    @property
    def uri(self) -> str:
        """The SVG as a data URI."""
        return f"data:image/svg+xml;base64,{base64.b64encode(self.svg.encode()).decode()}"


def new_figure(height_inches: float) -> tuple["Figure", "Axes"]:
    """An empty figure of the page's width, with one pair of axes. Raises ConfigError where matplotlib is missing."""
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError(
            "the report draws with matplotlib, which is not installed: pip install 'megatron-mixcpt[plots]'"
        ) from error
    matplotlib.rcParams.update(_SETTINGS)
    figure = Figure(figsize=(WIDTH_INCHES, height_inches), layout="constrained")
    return figure, figure.subplots()


def finish(figure: "Figure", name: str, alt: str, caption: str = "") -> Picture:
    """Render a figure both ways."""
    svg, png = io.StringIO(), io.BytesIO()
    figure.savefig(svg, format="svg", transparent=True, metadata={"Date": None})
    figure.savefig(png, format="png", dpi=160, facecolor="white")
    slug = "".join(letter if letter.isalnum() else "-" for letter in name.lower())  # a name is no path
    return Picture(slug, alt, _following_the_colour_scheme(svg.getvalue()), png.getvalue(), caption)


class LineStyle(TypedDict):
    """What tells one line from another, as matplotlib names it."""

    color: str
    linestyle: str


def line_style(index: int) -> LineStyle:
    """Colour and dashes of the line with this number: 18 that differ."""
    return {"color": COLOURS[index % len(COLOURS)], "linestyle": STYLES[index // len(COLOURS) % len(STYLES)]}


def whole_numbers_only(axis: "Axis") -> None:
    """Put the ticks of an axis on whole numbers."""
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator("auto", steps=[1, 2, 2.5, 5, 10], integer=True))


def _following_the_colour_scheme(svg: str) -> str:
    names = {INK: "--ink", MUTED: "--muted", GRID: "--grid"}
    for colour, name in names.items():
        svg = svg.replace(colour, f"var({name})")
    light = "".join(f"{name}:{colour};" for colour, name in names.items())
    dark = "".join(f"{name}:{_DARK[colour]};" for colour, name in names.items())
    rule = f"<style>svg{{{light}}}@media(prefers-color-scheme:dark){{svg{{{dark}}}}}</style>"
    return svg.replace("<defs>", f"<defs>{rule}", 1)

"""What all figures of the report share: one style, and SVG text that takes its colours and fonts from the page."""

import hashlib
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import StringIO
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from markupsafe import Markup
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Drawn in these, replaced by the page's variables, so that one figure serves light, dark and print.
INK, FAINT, OLD, NEW, MARK, SOFT = "#010101", "#020202", "#030303", "#040404", "#050505", "#060606"
SERIES = tuple(f"#0200{number:02x}" for number in range(1, 9))
RAMP = tuple(f"#0300{number:02x}" for number in range(1, 8))
PAGE_COLOURS = {
    **{INK: "--ink", FAINT: "--line", OLD: "--old", NEW: "--new", MARK: "--mark", SOFT: "--soft"},
    **{colour: f"--s{number}" for number, colour in enumerate(SERIES, start=1)},
    **{colour: f"--r{number}" for number, colour in enumerate(RAMP, start=1)},
}

STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "infoprune",
    "text.parse_math": False,  # a layer may have dollar signs in its name
    "font.size": 9,
    "axes.titlesize": 9,
    "text.color": INK,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": SOFT,
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "axes.formatter.useoffset": False,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.4,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": SOFT,
    "ytick.labelcolor": SOFT,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
}
# Inches. A narrow figure fits a phone as it is, and two stand side by side on a desk; a wide one scrolls in its box.
WIDE, NARROW = 7.5, 3.6

# Up to this many, layers go by their names; beyond, by the numbers of the list that the page gives.
NAMED = 16
# Up to this many layers, a narrow figure holds one column for each.
FEW = 8
# The drawing of the whole network is narrow up to this many.
NARROW_LAYERS = 4


@dataclass(frozen=True)
class Drawing:
    """One figure of the page.

    Attributes:
        caption: what it shows.
        svg: the figure itself.
        narrow: whether two of its kind fit side by side.
        folded: under which words it is to be opened; empty for a figure that is seen at once.
    """

    caption: str
    svg: "Markup"
    narrow: bool = False
    folded: str = ""


@contextmanager
def style() -> Iterator[None]:
    """Our settings over matplotlib's defaults, not over the user's configuration file; gone afterwards."""
    import matplotlib

    with matplotlib.rc_context(), warnings.catch_warnings():
        # Layers may be named in any script; the browser has the letters that matplotlib's font lacks.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        yield


def panels(
    rows: int, columns: int = 1, *, height: float, width: float = WIDE, ratios: "Sequence[float] | None" = None
) -> "tuple[Figure, list[Axes]]":
    """A figure, `width` x `height` inches, and its panels row by row; those of a column share their axis."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, list(figure.subplots(rows, columns, squeeze=False, sharex="col", height_ratios=ratios).flat)


def width_for(layers: Sequence[str]) -> float:
    """Of a figure with one column per layer."""
    return NARROW if len(layers) <= FEW else WIDE


def label(axes: "Axes", names: Sequence[str], what: str) -> None:
    """Names along the axis as long as they fit, numbers beyond."""
    from matplotlib.ticker import MaxNLocator

    axes.set_xlim(0.3, len(names) + 0.7)
    if len(names) > NAMED:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel(f"{what}, numbered in the order of the forward pass")
        return
    axes.set_xticks(range(1, len(names) + 1), [shortened(name, 24) for name in names])
    if sum(map(len, names)) > (30 if len(names) <= FEW else 80):  # beyond what fits side by side
        for name in axes.get_xticklabels():
            name.set(rotation=35, ha="right", rotation_mode="anchor")


def shortened(name: str, length: int) -> str:
    """The end of a long name, which is what tells layers apart.

    >>> shortened("features.denseblock3.denselayer12.conv2", 18)
    '…enselayer12.conv2'
    """
    return name if len(name) <= length else f"…{name[1 - length :]}"


def logarithmic(axes: "Axes", which: Literal["x", "y"]) -> None:
    """A logarithmic axis whose numbers are plain text; matplotlib's own would be mathematics that the page lacks."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    axis = axes.xaxis if which == "x" else axes.yaxis
    axes.set(**{f"{which}scale": "log"})
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def legend(axes: "Axes", columns: int = 2) -> None:
    """Above the panel, at its left: there a phone shows it before one scrolls."""
    axes.legend(
        loc="lower left", bbox_to_anchor=(0, 1), ncols=columns, borderaxespad=0.2, labelcolor=INK, handlelength=1.4,
        columnspacing=1.2,
    )  # fmt: skip


def ramp(position: int, count: int) -> str:
    """The colour of one of `count` things in a row.

    >>> ramp(0, 40) == RAMP[0], ramp(39, 40) == RAMP[-1]
    (True, True)
    """
    return RAMP[round(position / max(1, count - 1) * (len(RAMP) - 1))]


def svg(figure: "Figure", title: str) -> "Markup":
    """The figure as an element of the page: no date, names of its own, the page's colours and fonts."""
    from markupsafe import Markup, escape

    text = StringIO()
    figure.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    drawn = text.getvalue()
    drawn = drawn[drawn.index("<svg") :]
    drawn = re.sub(r"<metadata>.*?</metadata>", "", drawn, flags=re.DOTALL)
    prefix = f"f{hashlib.sha256(title.encode()).hexdigest()[:8]}"
    drawn = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{prefix}-", drawn)
    drawn = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", drawn)
    drawn = re.sub(r"font-family: [^;\"]*; ", "", drawn)
    # Hundredths of a point are more than any screen shows, and half the file.
    drawn = re.sub(
        r'(?<= d=")[^"]*|(?<= [xy]=")[^"]*', lambda found: re.sub(r"(\.\d\d)\d+", r"\1", found.group()), drawn
    )
    for colour, variable in PAGE_COLOURS.items():
        drawn = drawn.replace(colour, f"var({variable})")
    return Markup(drawn.replace("<svg ", f'<svg role="img" aria-label="{escape(title)}" ', 1))

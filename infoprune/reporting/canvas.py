"""What all figures of the report share: one style, and SVG text that takes its colours and fonts from the page."""

import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import StringIO
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from markupsafe import Markup
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Drawn in these, replaced by the page's variables, so that one figure serves light, dark and print.
INK, FAINT, OLD, NEW, MARK = "#010101", "#020202", "#030303", "#040404", "#050505"
PAGE_COLOURS = {INK: "var(--ink)", FAINT: "var(--line)", OLD: "var(--old)", NEW: "var(--new)", MARK: "var(--mark)"}

STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "infoprune",
    "text.parse_math": False,  # a layer may have dollar signs in its name
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
}
WIDTH = 7.5  # inches; drawn text is then as large as the page's small print

# Up to this many, layers go by their names; beyond, by the numbers of the list that the page gives.
NAMED = 16


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
    rows: int, columns: int = 1, *, height: float, ratios: "list[int] | None" = None
) -> "tuple[Figure, list[Axes]]":
    """A figure of the page's width, `height` inches high, and its panels row by row."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, list(figure.subplots(rows, columns, squeeze=False, sharex="col", height_ratios=ratios).flat)


def label(axes: "Axes", names: Sequence[str], what: str) -> None:
    """Names along the axis as long as they fit, numbers beyond."""
    from matplotlib.ticker import MaxNLocator

    axes.set_xlim(0.3, len(names) + 0.7)
    if len(names) > NAMED:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel(f"{what}, numbered in the order of the forward pass")
        return
    axes.set_xticks(range(1, len(names) + 1), names)
    if sum(map(len, names)) > 80:  # beyond what fits side by side
        for name in axes.get_xticklabels():
            name.set(rotation=35, ha="right", rotation_mode="anchor")


def legend(axes: "Axes") -> None:
    """Above the panel, at its left: there a phone shows it before one scrolls."""
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, borderaxespad=0, labelcolor=INK, frameon=False)


def svg(figure: "Figure", title: str) -> "Markup":
    """The figure as an element of the page: no date, names of its own, the page's colours and fonts."""
    from markupsafe import Markup, escape

    text = StringIO()
    figure.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    drawn = text.getvalue()
    drawn = drawn[drawn.index("<svg") :]
    drawn = re.sub(r"<metadata>.*?</metadata>", "", drawn, flags=re.DOTALL)
    prefix = re.sub(r"\W+", "-", title).lower()
    drawn = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{prefix}-", drawn)
    drawn = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", drawn)
    drawn = re.sub(r"font-family: [^;\"]*; ", "", drawn)
    for colour, variable in PAGE_COLOURS.items():
        drawn = drawn.replace(colour, variable)
    return Markup(drawn.replace("<svg ", f'<svg role="img" aria-label="{escape(title)}" ', 1))

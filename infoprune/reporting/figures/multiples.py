"""Small multiples: one little panel per layer, drawn as lines and text of one figure.

A panel of matplotlib's own costs forty milliseconds, and networks have hundreds of layers.
"""

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from infoprune.analyses.base import Curve
from infoprune.reporting.canvas import FAINT, INK, MARK, NARROW, NEW, OLD, SOFT, WIDE, Drawing, shortened, style, svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Panels of one figure; of more layers, the figures are folded.
SHEET = 24
# Inches: a panel with its numbers and title, what of it is the panel itself, and where that begins.
HIGH, INSIDE, FROM = 1.3, 0.84, (0.6, 0.42)

Point = tuple[float, float]
Place = Callable[[float, float], Point]


class Panel(NamedTuple):
    """What is drawn of one layer."""

    curve: Curve
    mark: float | None
    """Where along the axis a vertical line stands."""


@style()
def sheets(title: str, panels: "dict[str, Panel]", across: str, up: str, caption: str) -> list[Drawing]:
    """One small panel per layer; of many layers, in sheets to be opened.

    Args:
        title: tells the figures of a page apart.
        panels: by layer, in the order of the forward pass.
        across, up: what lies along the axes.
        caption: of each sheet.
    """
    from matplotlib.figure import Figure

    names, found = list(panels), []
    for start in range(0, len(names), SHEET):
        part = names[start : start + SHEET]
        columns = min(len(part), 2 if len(part) <= 4 else 4)  # a phone shows two in a row as they are; more scroll
        rows, width = math.ceil(len(part) / columns), NARROW if columns <= 2 else WIDE
        height, step = FROM[1] + HIGH * rows, (width - 0.28) / columns
        figure = Figure(figsize=(width, height))
        axes = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(0, height))
        axes.set_axis_off()
        paths: dict[str, list[list[Point]]] = {kind: [] for kind in ("grid", "band", "frame", "curve", "mark")}
        for place, name in enumerate(part):
            row, column = divmod(place, columns)
            corner = FROM[0] + column * step, FROM[1] + (rows - 1 - row) * HIGH
            heading = f"{start + place + 1}  {shortened(name, 20 if columns > 2 else 24)}"
            axes.text(corner[0], corner[1] + INSIDE + 0.07, heading, fontsize=8, va="bottom", color=INK)
            _draw(axes, paths, panels[name], corner, step - 0.4)
        _lay(axes, paths)
        axes.text(width / 2, 0.02, across, ha="center", va="bottom", color=SOFT)
        axes.text(0.02, height / 2, up, ha="left", va="center", rotation=90, color=SOFT)
        folded = f"Layers {start + 1} to {start + len(part)}" if len(names) > SHEET else ""
        found.append(Drawing(caption, svg(figure, f"{title}, {start + 1}"), columns <= 2, folded))
    return found


def _draw(axes: "Axes", paths: dict[str, list[list[Point]]], panel: Panel, corner: Point, width: float) -> None:
    """One panel whose lower left corner is there: its numbers at once, its paths with those of the others."""
    curve = panel.curve
    x, y = curve.x.tolist(), curve.y.tolist()
    low, high = (y if side is None else side.tolist() for side in (curve.low, curve.high))
    known = [value for value in (*y, *low, *high) if math.isfinite(value)]
    if not known:
        return
    across, up = _wide(x if panel.mark is None else [*x, panel.mark]), _wide(known)
    at = _place(corner, width, across, up)
    (left, bottom), right, top = corner, corner[0] + width, corner[1] + INSIDE
    for tick in _ticks(up):
        height = at(0.0, tick)[1]
        paths["grid"].append([(left, height), (right, height)])
        axes.text(left - 0.05, height, f"{tick:g}", fontsize=7.5, ha="right", va="center", color=SOFT)
    for tick in _ticks(across, whole=True):
        place = at(tick, 0.0)[0]
        paths["frame"].append([(place, bottom), (place, bottom - 0.03)])
        axes.text(place, bottom - 0.06, f"{tick:g}", fontsize=7.5, ha="center", va="top", color=SOFT)
    paths["frame"].append([(left, top), (left, bottom), (right, bottom)])
    if curve.low is not None and curve.high is not None:
        edge = [*zip(x, low, strict=True), *reversed([*zip(x, high, strict=True)])]
        paths["band"].append([at(a, b) for a, b in edge if math.isfinite(b)])
    paths["curve"].append([at(a, b) for a, b in zip(x, y, strict=True)])
    if panel.mark is not None:
        place = at(panel.mark, 0.0)[0]
        paths["mark"].append([(place, bottom), (place, top)])


def _lay(axes: "Axes", paths: dict[str, list[list[Point]]]) -> None:
    """All paths of a sheet, kind by kind."""
    from matplotlib.collections import LineCollection, PolyCollection

    # Edges show a band that is thinner than a line.
    band = PolyCollection(paths["band"], facecolors=OLD, edgecolors=OLD, alpha=0.5)
    axes.add_collection(LineCollection(paths["grid"], colors=FAINT, linewidths=0.6))
    axes.add_collection(band)
    axes.add_collection(LineCollection(paths["frame"], colors=SOFT, linewidths=0.8))
    axes.add_collection(LineCollection(paths["curve"], colors=NEW, linewidths=1.4))
    axes.add_collection(LineCollection(paths["mark"], colors=MARK, linewidths=1.2, linestyles="--"))
    points = [point for path in paths["curve"] if len(path) <= 3 for point in path]
    axes.plot([x for x, _ in points], [y for _, y in points], "o", color=NEW, markersize=3)


def _place(corner: Point, width: float, across: Point, up: Point) -> Place:
    """From figures to inches."""

    def at(x: float, y: float) -> Point:
        return (
            corner[0] + width * (x - across[0]) / (across[1] - across[0]),
            corner[1] + INSIDE * (y - up[0]) / (up[1] - up[0]),
        )

    return at


def _wide(values: Sequence[float]) -> Point:
    """The range of values with a little room, and never empty."""
    low, high = min(values), max(values)
    room = 0.05 * (high - low) or 0.05 * max(abs(high), 1e-9)
    return low - room, high + room


def _ticks(limits: Point, *, whole: bool = False) -> list[float]:
    """Two to five round numbers within."""
    from matplotlib.ticker import MaxNLocator

    return [
        float(tick)
        for tick in MaxNLocator(nbins=4, integer=whole).tick_values(*limits)
        if limits[0] <= tick <= limits[1]
    ]

"""The figures of a comparison: accuracy against what is left, and what criteria cost."""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from infoprune.evaluation.metrics import StageMetrics
from infoprune.reporting.canvas import (
    FAINT,
    INK,
    NARROW,
    NEW,
    OLD,
    SERIES,
    SOFT,
    Drawing,
    logarithmic,
    panels,
    shortened,
    style,
    svg,
)
from infoprune.reporting.grids import STAGES, Row, name, stages
from infoprune.reporting.wording import seconds

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MARKERS = "osD^vPX*"
Dashes = Literal["-", "--"]


def against(found: Sequence[Row], whole: int, base: StageMetrics | None) -> list[Drawing]:
    """Per stage, accuracy against multiply-accumulates and against measured latency; first a key, and the costs."""
    return [
        *_key(found),
        *_cost(found),
        *(
            drawing
            for stage in stages(found)
            for drawing in (
                _plot(found, stage, "MACs kept, %", lambda row: (100 * row.macs / max(1, whole), 0.0), base),
                _plot(found, stage, "latency, ms", lambda row: (row.latency.mean, row.latency.deviation), base),
            )
        ),
    ]


@style()
def _key(found: Sequence[Row]) -> list[Drawing]:
    """Which line is which criterion, once for all figures."""
    from matplotlib.lines import Line2D

    looks = _looks(found)
    if not looks:
        return []
    figure, (axes,) = panels(1, height=0.15 + 0.2 * math.ceil(len(looks) / 2), width=NARROW)
    axes.set_axis_off()
    lines = [
        Line2D([], [], color=colour, marker=marker, linestyle=dashes, markersize=4.5, linewidth=1.2)
        for colour, marker, dashes in looks.values()
    ]
    axes.legend(
        lines, [shortened(name(criterion), 26) for criterion in looks], loc="center", ncols=2, labelcolor=INK,
        handlelength=1.7, columnspacing=1.2, borderaxespad=0,
    )  # fmt: skip
    caption = (
        "Key to the figures below: criteria are solid, controls dashed. Bars are standard deviations over seeds, the "
        "dotted line is the unpruned network; further up and to the left is better."
    )
    return [Drawing(caption, svg(figure, "Key to the comparison"), narrow=True)]


@style()
def _plot(
    found: Sequence[Row],
    stage: str,
    across: str,
    place: Callable[[Row], tuple[float, float]],
    base: StageMetrics | None,
) -> Drawing:
    """One line per criterion over the budgets, with deviations over seeds."""
    figure, (axes,) = panels(1, height=2.7, width=NARROW)
    for criterion, (colour, marker, dashes) in _looks(found).items():
        own = sorted((row for row in found if row.criterion == criterion and stage in row.scores), key=place)
        if not own:
            continue
        x, wide = zip(*map(place, own), strict=True)
        y = [100 * row.scores[stage].mean for row in own]
        high = [100 * row.scores[stage].deviation for row in own]
        axes.errorbar(
            x, y, yerr=high, xerr=wide if any(wide) else None, color=colour, marker=marker, linestyle=dashes,
            markersize=4.5, capsize=2, elinewidth=1, linewidth=1.2, label=name(criterion),
        )  # fmt: skip
    _fit(axes, [100 * row.scores[stage].mean for row in found if stage in row.scores], base)
    axes.set(xlabel=across, ylabel="accuracy, %")
    what = "multiply-accumulates" if "MACs" in across else "measured latency"
    caption = f"{STAGES[stage]}: accuracy on the test split against {what}."
    return Drawing(caption, svg(figure, f"{STAGES[stage]}: accuracy against {what}"), narrow=True)


def _fit(axes: "Axes", values: Sequence[float], base: StageMetrics | None) -> None:
    """Limits that leave the bulk apart; what lies far below or above them is said at the edge."""
    middle, top = statistics.median(values), max(values)
    # One network that learned nothing would press all others into a line.
    floor = max(min(values), middle - 3 * max(top - middle, 1.0))
    whole = math.nan if base is None else 100 * base.accuracy
    above = whole - top > 2 * (top - floor) + 1
    highest = max(top, whole) if base is not None and not above else top
    room = 0.12 * max(highest - floor, 0.5)
    axes.set_ylim(floor - room, highest + room)
    if min(values) < floor:
        below = sorted({f"{value:.0f}" for value in values if value < floor}, key=float)
        _aside(axes, f"off the scale: {', '.join(below)}", 0.0, "bottom")
    if base is None:
        return
    if above:
        _aside(axes, f"unpruned {whole:.1f}, above the scale", 1.0, "top")
        return
    axes.axhline(whole, color=SOFT, linewidth=1, linestyle=":")
    axes.annotate(
        "unpruned", (1, whole), (0, -3), xycoords=("axes fraction", "data"), textcoords="offset points", ha="right",
        va="top", fontsize=8, color=SOFT,
    )  # fmt: skip


def _aside(axes: "Axes", text: str, height: float, edge: Literal["top", "bottom"]) -> None:
    axes.annotate(text, (1, height), xycoords="axes fraction", ha="right", va=edge, fontsize=8, color=SOFT)


def _looks(found: Sequence[Row]) -> Mapping[str, tuple[str, str, Dashes]]:
    """Colour, marker and dashes of each criterion; controls are grey and dashed."""
    looks: dict[str, tuple[str, str, Dashes]] = {}
    ours = 0
    for row in found:
        if row.criterion in looks:
            continue
        if row.control:
            number = sum(look[2] == "--" for look in looks.values())
            looks[row.criterion] = ((OLD, SOFT, INK)[number % 3], "xP+"[number % 3], "--")
        else:
            looks[row.criterion] = (SERIES[ours % len(SERIES)], MARKERS[ours % len(MARKERS)], "-")
            ours += 1
    return looks


@style()
def _cost(found: Sequence[Row]) -> list[Drawing]:
    """Seconds that choosing took, per criterion; from milliseconds to hours on one scale."""
    mean: dict[str, list[float]] = {}
    for row in found:
        mean.setdefault(name(row.criterion), []).append(row.seconds)
    if not mean:
        return []
    figure, (axes,) = panels(1, height=0.8 + 0.24 * len(mean), width=NARROW)
    values = {criterion: sum(own) / len(own) for criterion, own in mean.items()}
    order = sorted(values, key=values.__getitem__)
    at, shown = range(len(order)), [max(values[criterion], 1e-3) for criterion in order]
    axes.hlines(at, min(shown) / 2, shown, color=FAINT)
    axes.plot(shown, at, "o", color=NEW, markersize=5)
    axes.set_yticks(at, order)
    axes.tick_params(axis="y", labelcolor=INK, length=0)
    axes.grid(visible=False, axis="y")
    logarithmic(axes, "x")
    axes.set(xlabel="seconds", xlim=(min(shown) / 2, max(shown) * 8), ylim=(-0.6, len(order) - 0.4))
    for place, value in zip(at, shown, strict=True):
        axes.annotate(
            seconds(value), (value, place), (6, 0), textcoords="offset points", va="center", fontsize=8, color=INK
        )
    caption = (
        "What choosing took: the criterion's own analysis over the calibration batches, sensitivities where widths "
        "follow from them, and planning; mean over budgets and seeds."
    )
    return [Drawing(caption, svg(figure, "Seconds to choose the filters"), narrow=True)]

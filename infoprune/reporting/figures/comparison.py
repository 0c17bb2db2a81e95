"""The figures of a comparison: accuracy against what is left, and what criteria cost."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from infoprune.artifacts import StageMetrics
from infoprune.reporting.canvas import FAINT, INK, NARROW, NEW, OLD, SERIES, SOFT, Drawing, legend, panels, style, svg
from infoprune.reporting.grids import STAGES, Row, name, stages

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MARKERS = "osD^vPX*"


def against(found: Sequence[Row], whole: int, base: StageMetrics | None) -> list[Drawing]:
    """Per stage, accuracy against multiply-accumulates and against measured latency."""
    return [
        drawing
        for stage in stages(found)
        for drawing in (
            _plot(found, stage, "MACs kept, %", lambda row: (100 * row.macs / max(1, whole), 0.0), base),
            _plot(found, stage, "latency, ms", lambda row: (row.latency.mean, row.latency.deviation), base),
        )
    ]


@style()
def _plot(
    found: Sequence[Row],
    stage: str,
    across: str,
    place: Callable[[Row], tuple[float, float]],
    base: StageMetrics | None,
) -> Drawing:
    """One line per criterion over the budgets, with deviations over seeds."""
    figure, (axes,) = panels(1, height=3.1 + 0.16 * len(_looks(found)), width=NARROW)
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
    if base is not None:
        axes.axhline(100 * base.accuracy, color=SOFT, linewidth=1, linestyle=":")
        axes.annotate(
            "unpruned", (1, 100 * base.accuracy), (0, -3), xycoords=("axes fraction", "data"),
            textcoords="offset points", ha="right", va="top", fontsize=8, color=SOFT,
        )  # fmt: skip
    axes.set(xlabel=across, ylabel="accuracy, %")
    legend(axes, 1)
    what = "multiply-accumulates" if "MACs" in across else "measured latency"
    caption = (
        f"{STAGES[stage]}: accuracy on the test split against {what}; bars are standard deviations over seeds, the "
        "dotted line the unpruned network. Further up and to the left is better."
    )
    return Drawing(caption, svg(figure, f"{STAGES[stage]}: accuracy against {what}"), narrow=True)


def _looks(found: Sequence[Row]) -> Mapping[str, tuple[str, str, str]]:
    """Colour, marker and dashes of each criterion; controls are grey and dashed."""
    looks: dict[str, tuple[str, str, str]] = {}
    ours = 0
    for row in found:
        if row.criterion in looks:
            continue
        if row.control:
            number = sum(look[2] == "--" for look in looks.values())
            looks[row.criterion] = ((OLD, SOFT, INK)[number % 3], "x+1"[number % 3], "--")
        else:
            looks[row.criterion] = (SERIES[ours % len(SERIES)], MARKERS[ours % len(MARKERS)], "-")
            ours += 1
    return looks


@style()
def cost(found: Sequence[Row]) -> list[Drawing]:
    """Seconds that choosing took, per criterion."""
    mean: dict[str, list[float]] = {}
    for row in found:
        mean.setdefault(name(row.criterion), []).append(row.seconds)
    if not mean:
        return []
    figure, (axes,) = panels(1, height=0.8 + 0.24 * len(mean), width=NARROW)
    values = {criterion: sum(own) / len(own) for criterion, own in mean.items()}
    order = sorted(values, key=values.__getitem__)
    _bars(axes, order, [values[criterion] for criterion in order])
    axes.set_xlabel("seconds to choose the filters")
    caption = (
        "What choosing took: the criterion's own analysis over the calibration batches, sensitivities where widths "
        "follow from them, and planning; mean over budgets and seeds."
    )
    return [Drawing(caption, svg(figure, "Seconds to choose the filters"), narrow=True)]


def _bars(axes: "Axes", names: Sequence[str], values: Sequence[float]) -> None:
    at = range(len(names))
    axes.barh(at, values, color=NEW, height=0.6)
    axes.set_yticks(at, names)
    axes.tick_params(axis="y", labelcolor=INK, length=0)
    axes.grid(visible=False, axis="y")
    axes.grid(visible=True, axis="x", color=FAINT)
    for position, value in zip(at, values, strict=True):
        axes.annotate(
            f"{value:.3g}", (value, position), (3, 0), textcoords="offset points", va="center", fontsize=8, color=INK
        )
    axes.margins(x=0.15)

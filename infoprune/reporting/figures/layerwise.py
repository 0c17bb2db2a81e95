"""Figures with one column per layer, which any analysis can have."""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from infoprune.analyses.base import Finding, Measure
from infoprune.reporting.canvas import (
    FAINT,
    INK,
    MARK,
    NARROW,
    NEW,
    OLD,
    Drawing,
    label,
    legend,
    panels,
    style,
    svg,
    width_for,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PERCENTILES = torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95], dtype=torch.float64)
# Single filters are drawn as dots up to this many; more would only weigh.
DOTS = 2500


class Line(NamedTuple):
    """One measure along the layers."""

    measure: str
    """Its name in the finding."""
    name: str
    """Its name in the legend."""
    colour: str
    marker: str = "o"
    dashes: str = "-"


def importance(finding: Finding, layers: Sequence[str], kept: Mapping[str, Collection[int]]) -> list[Drawing]:
    """How the filters' importance is spread in each layer, and which of them stay."""
    if not finding.importance:
        return []
    caption = (
        "Importance of the filters, layer by layer: line from the 5th to the 95th percentile, bar over the middle "
        "half, tick at the median. The larger, the more reason to keep a filter."
    )
    values = {layer: finding.importance[layer] for layer in layers if layer in finding.importance}
    total = sum(value.numel() for value in values.values())
    shown = {layer: kept[layer] for layer in values if layer in kept} if total <= DOTS else {}
    if shown:
        caption += " Each dot is a filter: filled where it stays, a cross where it goes."
    return [_spread(layers, values, "importance", f"{finding.analysis} importance", caption, shown)]


@style()
def lines(
    finding: Finding, layers: Sequence[str], rows: Sequence[tuple[str, Sequence[Line]]], title: str, caption: str
) -> list[Drawing]:
    """One panel per row, lines with their intervals in it; rows without a measure are left out."""
    found = []
    for unit, wanted in rows:
        known = [line for line in wanted if any(line.measure in finding.measures.get(layer, {}) for layer in layers)]
        if known:
            found.append((unit, known))
    if not found:
        return []
    figure, drawn = panels(len(found), height=0.7 + 1.75 * len(found), width=width_for(layers))
    for axes, (unit, known) in zip(drawn, found, strict=True):
        for line in known:
            along(axes, finding, layers, line)
        axes.set_ylabel(unit)
        _no_magnifying(axes)
        if len(known) > 1 or len(found) > 1:
            legend(axes, min(3, len(known)))
    label(drawn[-1], layers, "layer")
    return [Drawing(caption, svg(figure, f"{finding.analysis}: {title}"), width_for(layers) == NARROW)]


def along(axes: "Axes", finding: Finding, layers: Sequence[str], line: Line) -> None:
    """A measure over the layers that have it, with intervals where they are known."""
    at, values, intervals = [], [], []
    for position, layer in enumerate(layers, start=1):
        measure = finding.measures.get(layer, {}).get(line.measure)
        if measure is None or measure.value.dim() or not math.isfinite(float(measure.value)):
            continue
        at.append(position)
        values.append(float(measure.value))
        if measure.low is not None and measure.high is not None and not math.isnan(float(measure.low)):
            intervals.append((position, float(measure.low), float(measure.high)))
    if intervals:
        axes.vlines(*zip(*intervals, strict=True), color=line.colour, linewidth=3, alpha=0.35)
    size = 4 if len(layers) <= 60 else 2
    axes.plot(at, values, line.dashes, marker=line.marker, markersize=size, color=line.colour, label=line.name)


def _no_magnifying(axes: "Axes") -> None:
    """Keeps differences of less than a hundredth from looking like structure."""
    low, high = axes.get_ylim()
    least = 0.02 * max(abs(low), abs(high))
    if high - low < least:
        middle = (low + high) / 2
        axes.set_ylim(middle - least / 2, middle + least / 2)


def others(finding: Finding, layers: Sequence[str], used: Collection[str], folded: str) -> list[Drawing]:
    """Every measure that no other figure has shown."""
    figures = []
    for name in dict.fromkeys(name for layer in layers for name in finding.measures.get(layer, {})):
        if name in used:
            continue
        found = {layer: finding.measures[layer][name] for layer in layers if name in finding.measures.get(layer, {})}
        unit = next(iter(found.values())).unit
        title = f"{finding.analysis} {name}"
        if any(measure.value.dim() for measure in found.values()):
            caption = f"{name} in {unit}, over the filters of each layer: 5th to 95th percentile, middle half, median."
            values = {layer: measure.value for layer, measure in found.items()}
            drawn = _spread(layers, values, unit, title, caption, {})
        else:
            known = any(measure.low is not None for measure in found.values())
            caption = f"{name} in {unit}, layer by layer" + known * "; bars are 95 % intervals over mini-batches" + "."
            drawn = lines(finding, layers, [(unit, [Line(name, name, NEW)])], name, caption)[0]
        figures.append(Drawing(drawn.caption, drawn.svg, drawn.narrow, folded))
    return figures


@style()
def widths(finding: Finding, layers: Sequence[str], full: Mapping[str, int]) -> list[Drawing]:
    """Recommended widths beside those that layers have."""
    shown = [layer for layer in layers if layer in finding.widths and layer in full]
    if not shown:
        return []
    figure, (axes,) = panels(1, height=2.5, width=width_for(layers))
    at = [position for position, layer in enumerate(layers, start=1) if layer in finding.widths and layer in full]
    gap = 0.86 if len(layers) <= 60 else 1.0
    axes.bar(at, [full[layer] for layer in shown], width=gap, color=OLD, alpha=0.5, label="filters now")
    bounds = [(at[i], *_interval(finding.measures.get(layer, {}).get("width"))) for i, layer in enumerate(shown)]
    known = [row for row in bounds if not math.isnan(row[1])]
    if known:
        axes.vlines(*zip(*known, strict=True), color=INK, linewidth=1.2, label="95 % interval")
    size = 5 if len(layers) <= 60 else 3
    axes.plot(at, [finding.widths[layer] for layer in shown], "D", color=NEW, markersize=size, label="recommended")
    axes.set_ylabel("filters")
    legend(axes, 3)
    label(axes, layers, "layer")
    caption = "The width that the analysis recommends, beside the one that the layer has; what was flagged gets none."
    return [Drawing(caption, svg(figure, f"{finding.analysis}: recommended widths"), width_for(layers) == NARROW)]


def _interval(measure: Measure | None) -> tuple[float, float]:
    if measure is None or measure.low is None or measure.high is None or measure.value.dim():
        return math.nan, math.nan
    return float(measure.low), float(measure.high)


@style()
def _spread(
    layers: Sequence[str],
    values: Mapping[str, Tensor],
    unit: str,
    title: str,
    caption: str,
    kept: Mapping[str, Collection[int]],
) -> Drawing:
    """One column per layer: percentiles of its filters' values; values that are not finite are left out."""
    figure, (axes,) = panels(1, height=2.7, width=width_for(layers))
    at, rows, dots = [], [], list[tuple[int, float, bool]]()
    for position, layer in enumerate(layers, start=1):
        flat = values.get(layer, torch.empty(0)).detach().double().flatten().cpu()
        finite = flat[flat.isfinite()]
        if len(finite):
            at.append(position)
            rows.append(torch.quantile(finite, PERCENTILES))
        if layer in kept:
            dots += [(position, value, i in kept[layer]) for i, value in enumerate(flat.tolist())]
    if rows:
        low, lower, middle, upper, high = torch.stack(rows, dim=1).tolist()
        thick = 9 if len(layers) <= 30 else 3
        axes.vlines(at, low, high, color=OLD, linewidth=1.2)
        axes.vlines(at, lower, upper, color=OLD, linewidth=thick, alpha=0.55 if kept else 1)
        axes.plot(at, middle, "_", color=MARK if not kept else INK, markersize=thick + 2, markeredgewidth=2)
    axes.set_ylabel(unit)
    label(axes, layers, "layer")
    # Beside the bar, those that go to the right of those that stay.
    for stays, marker, colour, aside, word in ((True, "o", NEW, 0.16, "stays"), (False, "x", MARK, 0.32, "goes")):
        own = [(position + aside, value) for position, value, stayed in dots if stayed == stays]
        if dots:
            x, y = [each for each, _ in own], [each for _, each in own]
            axes.plot(x, y, marker, color=colour, markersize=2.6, markeredgewidth=0.7, alpha=0.8, label=word)
    if dots:
        legend(axes)
    return Drawing(caption, svg(figure, f"{title}: {unit} per layer"), width_for(layers) == NARROW)


def rule(axes: "Axes", value: float = 0.0) -> None:
    """A line across that means nothing happens."""
    axes.axhline(value, color=FAINT, linewidth=1)

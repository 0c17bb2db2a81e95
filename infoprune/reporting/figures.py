"""The figures of the report."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from infoprune.analyses.information_plane import COORDINATES, trajectories
from infoprune.artifacts import EpochRecord, Finding, Measure, Plan
from infoprune.reporting.canvas import FAINT, MARK, NAMED, NEW, OLD, label, legend, panels, style, svg

if TYPE_CHECKING:
    from markupsafe import Markup

PERCENTILES = torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95], dtype=torch.float64)


@style()
def widths(plan: Plan) -> "Markup | None":
    """Channels of every group before and after, in the order of the forward pass, and the share that stays."""
    if not plan.groups:
        return None
    figure, (top, bottom) = panels(2, height=4.2, ratios=[2, 1])
    at = range(1, len(plan.groups) + 1)
    before = [group.width_before for group in plan.groups]
    after = [group.width_after for group in plan.groups]
    few = len(before) <= 60  # beyond, gaps would be wider than the bars
    top.bar(at, before, width=0.86 if few else 1.0, color=OLD, label="before")
    top.bar(at, after, width=0.5 if few else 1.0, color=NEW, label="after")
    top.set_ylabel("channels")
    legend(top)
    kept = [100 * new / old for old, new in zip(before, after, strict=True)]
    bottom.vlines(at, 0, kept, color=FAINT, linewidth=1)
    bottom.plot(at, kept, "o", color=NEW, markersize=5 if few else 3)
    bottom.set(ylabel="kept, %", ylim=(0, 108), yticks=[0, 50, 100])
    label(bottom, [group.group for group in plan.groups], "channel group")
    return svg(figure, "Channels of every group before and after pruning")


@style()
def of_finding(finding: Finding) -> "list[tuple[str, Markup]]":
    """The figures of one analysis, each with its caption; all have the same layers along the axis."""
    layers = layers_of(finding)
    figures = []
    if finding.importance:
        caption = (
            "Importance of the filters, layer by layer: line from the 5th to the 95th percentile, bar over the middle "
            "half, dot at the median. The larger, the more reason to keep a filter."
        )
        figures.append((caption, _spread(layers, finding.importance, "importance", finding.analysis)))
    for name in dict.fromkeys(name for measures in finding.measures.values() for name in measures):
        found = {layer: measures[name] for layer, measures in finding.measures.items() if name in measures}
        unit = next(iter(found.values())).unit
        title = f"{finding.analysis} {name}"
        if any(measure.value.dim() for measure in found.values()):
            caption = f"{name} in {unit}, over the filters of each layer: 5th to 95th percentile, middle half, median."
            values = {layer: measure.value for layer, measure in found.items()}
            figures.append((caption, _spread(layers, values, unit, title)))
        else:
            known = any(measure.low is not None for measure in found.values())
            caption = f"{name} in {unit}, layer by layer" + known * "; bars are 95 % intervals over mini-batches" + "."
            figures.append((caption, _intervals(layers, found, unit, title)))
    return figures


def layers_of(finding: Finding) -> list[str]:
    """The layers that an analysis has figures for."""
    return list(dict.fromkeys([*finding.importance, *finding.measures]))


def numbered(finding: Finding) -> list[str]:
    """The layers that the figures of an analysis give by number, in this order; none where the names fit."""
    layers = layers_of(finding)
    return layers if len(layers) > NAMED else []


@style()
def curves(history: Sequence[EpochRecord]) -> "Markup | None":
    """Loss and accuracy over the epochs of fine-tuning."""
    from matplotlib.ticker import MaxNLocator

    if not history:
        return None
    figure, (left, right) = panels(1, 2, height=2.9)
    epochs = [record.epoch for record in history]
    for axes, kind, factor in ((left, "loss", 1), (right, "accuracy", 100)):
        for split, colour, line in (("train", OLD, "s--"), ("validation", NEW, "o-")):
            values = [factor * getattr(record, f"{split}_{kind}") for record in history]
            if any(math.isfinite(value) for value in values):
                axes.plot(epochs, values, line, color=colour, label=split, markersize=4 if len(epochs) < 40 else 0)
        axes.set(xlabel="epoch", ylabel="loss, nats" if kind == "loss" else "accuracy, %")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        legend(axes)
    return svg(figure, "Loss and accuracy over the epochs of fine-tuning")


@style()
def planes(steps: Mapping[int, Finding]) -> "Markup | None":
    """The ways of all layers through the plane and the modified plane while the network was trained."""
    from matplotlib.colors import LogNorm

    if len(steps) < 2:
        return None
    figure, both = panels(1, 2, height=3.4)
    for axes, modified in zip(both, (False, True), strict=True):
        paths = trajectories(steps, modified=modified)
        for number, path in enumerate(paths.values(), start=1):
            step, x, y = path.T.tolist()
            axes.plot(x, y, "-", color=FAINT, linewidth=1, zorder=1)
            drawn = axes.scatter(x, y, c=[s + 1 for s in step], norm=LogNorm(1, max(steps) + 1), s=16, zorder=2)
            if len(paths) <= NAMED:
                axes.annotate(str(number), (x[-1], y[-1]), (3, 3), textcoords="offset points", fontsize=8)
        across, up = COORDINATES[modified]
        axes.set(xlabel=f"{across}, bits", ylabel=f"{up}, bits")
    bar = figure.colorbar(drawn, ax=both, label="step", ticks=[step + 1 for step in steps], format=_step_of)
    bar.ax.minorticks_off()
    return svg(figure, "Information planes by training step")


def _step_of(value: float, _: int | None = None) -> str:
    """The scale is one ahead, so that step 0 has a place on a logarithmic one."""
    return f"{round(value) - 1}"


def _spread(layers: Sequence[str], values: Mapping[str, Tensor], unit: str, title: str) -> "Markup":
    """One column per layer: percentiles of its filters' values; values that are not finite are left out."""
    figure, (axes,) = panels(1, height=2.9)
    at, rows = [], []
    for position, layer in enumerate(layers, start=1):
        flat = values.get(layer, torch.empty(0)).detach().double().flatten().cpu()
        finite = flat[flat.isfinite()]
        if len(finite):
            at.append(position)
            rows.append(torch.quantile(finite, PERCENTILES))
    if rows:
        low, lower, middle, upper, high = torch.stack(rows, dim=1).tolist()
        thick = 7 if len(layers) <= 30 else 3
        axes.vlines(at, low, high, color=OLD, linewidth=max(1.0, thick / 4))
        axes.vlines(at, lower, upper, color=NEW, linewidth=thick)
        axes.plot(at, middle, "o", color=MARK, markersize=max(2.5, thick * 0.6))
    axes.set_ylabel(unit)
    label(axes, layers, "layer")
    return svg(figure, f"{title}: {unit} per layer")


def _intervals(layers: Sequence[str], found: Mapping[str, Measure], unit: str, title: str) -> "Markup":
    """One point per layer, with its interval where there is one."""
    figure, (axes,) = panels(1, height=2.9)
    at = [position for position, layer in enumerate(layers, start=1) if layer in found]
    measures = [found[layer] for layer in layers if layer in found]
    known = [
        (position, float(measure.low), float(measure.high))
        for position, measure in zip(at, measures, strict=True)
        if measure.low is not None and measure.high is not None
    ]
    if known:
        axes.vlines(*zip(*known, strict=True), color=OLD, linewidth=2.5)
    axes.plot(at, [float(measure.value) for measure in measures], "o-", color=NEW, markersize=4)
    axes.set_ylabel(unit)
    label(axes, layers, "layer")
    return svg(figure, f"{title}: {unit} per layer")

"""The network before and after, and how it was trained."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from infoprune.evaluation.metrics import EpochRecord
from infoprune.planning.plan import Plan
from infoprune.reporting.canvas import (
    FAINT,
    INK,
    MARK,
    NARROW,
    NARROW_LAYERS,
    NEW,
    OLD,
    SERIES,
    WIDE,
    label,
    legend,
    panels,
    shortened,
    style,
    svg,
)

if TYPE_CHECKING:
    from markupsafe import Markup
    from matplotlib.axes import Axes

    from infoprune.reporting.contents import LayerChange


@style()
def silhouette(layers: "Sequence[LayerChange]", title: str = "") -> "Markup | None":
    """The network from its first layer to its last: as wide as it was, and as it is."""
    if not layers:
        return None
    figure, (top, bottom) = panels(
        2, height=4.3, width=WIDE if len(layers) > NARROW_LAYERS else NARROW, ratios=[2.2, 1]
    )
    at = range(1, len(layers) + 1)
    few = len(layers) <= 60  # beyond, gaps would be wider than the bars
    gap = 0.84 if few else 1.0
    for name, colour, widths in (
        ("before", OLD, [layer.before for layer in layers]),
        ("after", NEW, [layer.after for layer in layers]),
    ):
        top.bar(at, widths, bottom=[-width / 2 for width in widths], width=gap, color=colour, label=name)
    gone = [position for position, layer in zip(at, layers, strict=True) if not layer.after]
    if gone:
        top.plot(gone, [0] * len(gone), "x", color=MARK, label="removed", markersize=5)
    if len(layers) <= 24:
        for position, layer in zip(at, layers, strict=True):
            text = f"{layer.before}" if layer.after == layer.before else f"{layer.before}\n→{layer.after}"
            top.annotate(
                text, (position, layer.before / 2), (0, 2), textcoords="offset points", ha="center", va="bottom",
                fontsize=7, color=INK, linespacing=0.95,
            )  # fmt: skip
        top.margins(y=0.14)
    top.set(ylabel="filters", yticks=[])
    top.grid(visible=False)
    top.spines[["left", "bottom"]].set_visible(False)
    legend(top, 3)
    _costs(bottom, layers, gap)
    label(bottom, [layer.layer for layer in layers], "layer")
    return svg(figure, f"{title or 'The network'} layer by layer, before and after pruning")


def _costs(axes: "Axes", layers: "Sequence[LayerChange]", gap: float) -> None:
    """Multiply-accumulates of each layer as shares of the whole."""
    whole = sum(layer.macs_before for layer in layers) or 1
    at = range(1, len(layers) + 1)
    axes.bar(at, [100 * layer.macs_before / whole for layer in layers], width=gap, color=OLD)
    axes.bar(at, [100 * layer.macs_after / whole for layer in layers], width=gap, color=NEW)
    axes.set_ylabel("MACs, %")


@style()
def kept(plans: "Sequence[tuple[str, Plan]]") -> "Markup | None":
    """The share of channels that stays in every group, for one plan or several side by side."""
    names = list(dict.fromkeys(group.group for _, plan in plans for group in plan.groups))
    if not names:
        return None
    figure, (axes,) = panels(1, height=2.6)
    place = {name: position for position, name in enumerate(names, start=1)}
    for number, (title, plan) in enumerate(plans):
        offset = 0.22 * (number - (len(plans) - 1) / 2)
        at = [place[group.group] + offset for group in plan.groups]
        shares = [100 * group.width_after / group.width_before for group in plan.groups]
        axes.vlines(at, 0, shares, color=FAINT, linewidth=1)
        look, name = "osD^v"[number % 5], shortened(title, 24)
        axes.plot(at, shares, look, color=SERIES[number % len(SERIES)], markersize=4.5, label=name)
    axes.set(ylabel="channels kept, %", ylim=(0, 108), yticks=[0, 50, 100])
    if len(plans) > 1:
        legend(axes)
    label(axes, names, "channel group")
    return svg(figure, "Channels kept in every group")


@style()
def curves(histories: "Sequence[tuple[str, Sequence[EpochRecord]]]") -> "list[Markup]":
    """Loss and accuracy over the epochs of fine-tuning; of several runs, validation alone."""
    from matplotlib.ticker import MaxNLocator

    found = []
    for kind, factor in (("loss", 1), ("accuracy", 100)):
        figure, (axes,) = panels(1, height=2.5, width=NARROW)
        for number, (title, history) in enumerate(histories):
            epochs = [record.epoch for record in history]
            for split, line in (("train", "s--"), ("validation", "o-")):
                if split == "train" and len(histories) > 1:
                    continue
                values = [factor * getattr(record, f"{split}_{kind}") for record in history]
                if not any(math.isfinite(value) for value in values):
                    continue
                colour = SERIES[number % len(SERIES)] if len(histories) > 1 else OLD if split == "train" else NEW
                name = shortened(title, 24) if len(histories) > 1 else split
                axes.plot(epochs, values, line, color=colour, label=name, markersize=4 if len(epochs) < 40 else 0)
        if not axes.has_data():
            continue
        axes.set(xlabel="epoch", ylabel="loss, nats" if kind == "loss" else "accuracy, %")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        legend(axes)
        found.append(svg(figure, f"{kind.capitalize()} over the epochs of fine-tuning"))
    return found

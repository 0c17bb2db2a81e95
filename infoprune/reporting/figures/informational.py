"""Figures of the analyses that measure information: saturation, tests against chance, data processing, planes."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from infoprune.analyses.base import Curve, Finding
from infoprune.analyses.information_plane import COORDINATES, trajectories
from infoprune.reporting.canvas import (
    FAINT,
    INK,
    MARK,
    NAMED,
    NARROW,
    NEW,
    SERIES,
    Drawing,
    label,
    legend,
    panels,
    ramp,
    style,
    svg,
    width_for,
)
from infoprune.reporting.figures.layerwise import Line, along, lines, rule
from infoprune.reporting.figures.multiples import Panel, sheets

if TYPE_CHECKING:
    from markupsafe import Markup


def redundancy(finding: Finding, layers: Sequence[str]) -> list[Drawing]:
    """How information about the image saturates with the number of filters, and what pairs of filters share."""
    named = {layer: curves["MMI"] for layer, curves in finding.curves.items() if "MMI" in curves}
    found = overlaid(
        finding,
        named,
        "filters, share of the layer's",
        "share of the layer's MMI",
        "Multivariate mutual information I(X; {T1…Tk}) of the first k filters, in an order drawn by chance, as a share "
        "of the whole layer's. Where a curve is flat, further filters say nothing new about the image.",
    )
    found += _panels(
        finding,
        named,
        "filters",
        "MMI, bits",
        "MMI against the number of filters; shaded its 95 % interval over mini-batches, the line where the analysis "
        "would stop.",
    )
    share = "share of I(X;{Ti,Tj})"
    found += lines(
        finding,
        layers,
        [
            (
                share,
                [
                    Line("trade-off share", "trade-off", SERIES[1]),
                    Line("non-redundant share", "non-redundant", SERIES[0], "s"),
                ],
            ),
            (
                "bits",
                [
                    Line("PID redundancy", "redundancy", SERIES[1]),
                    Line("PID unique", "unique", SERIES[0], "s"),
                    Line("PID synergy", "synergy", SERIES[2], "^"),
                ],
            ),
        ],
        "redundancy–synergy trade-off",
        "Above, the redundancy–synergy trade-off of pairs of filters (above 0 they repeat each other, below 0 they "
        "complete each other) and their weighted non-redundant information. Below, what pairs know by the MMI "
        "decomposition. Bars are 95 % intervals over mini-batches.",
    )
    return found


def permutation(finding: Finding, layers: Sequence[str]) -> list[Drawing]:
    """What the rest of a layer still tells about the class, against the band that chance leaves."""
    named = {layer: curves["CMI"] for layer, curves in finding.curves.items() if "CMI" in curves}
    caption = (
        "Conditional mutual information of the class and all filters that are left, given those chosen (first "
        "mini-batch). Shaded: what shuffled filters leave, 5th to 95th percentile. A filter joins while it leaves "
        "less to be learned than chance does; the line is the recommended width."
    )
    return _panels(finding, named, "filters chosen", "CMI, bits", caption)


def response(finding: Finding, layers: Sequence[str]) -> list[Drawing]:
    """What the next layer misses when only so many filters are kept."""
    named = {}
    for layer in layers:
        measure = finding.measures.get(layer, {}).get("error once gone")
        if measure is None or not measure.value.dim():
            continue
        errors = measure.value.double().sort().values
        count = len(errors)
        kept = list(range(count, -1, -1))
        named[layer] = Curve(errors.new_tensor(kept), errors.new_tensor([0.0, *errors.tolist()]))
    found = overlaid(
        finding,
        named,
        "filters kept, share of the layer's",
        "share of the response lost",
        "What the next layer's response loses when a share of the filters is kept, chosen by elimination and "
        "compensated linearly. A curve that leaves 0 late belongs to a layer that can be cut.",
        relative=False,
    )
    found += _panels(
        finding,
        named,
        "filters kept",
        "response lost",
        "The same layer by layer; the line is the recommended width, which loses no more than the tolerance.",
    )
    return found + lines(
        finding,
        layers,
        [("share", [Line("explained", "explained by all filters", NEW)])],
        "explained",
        "Share of the next layer's response that all filters of the layer explain linearly, with a jackknife's 95 % "
        "interval. Where it is low, a function between the two keeps the analysis from seeing the rest.",
    )


def processing(finding: Finding, layers: Sequence[str]) -> list[Drawing]:
    """Both data-processing inequalities along the network, and the blocks."""
    path = [layer for layer in layers if "I(X;T)" in finding.measures.get(layer, {})]
    return [*_inequalities(finding, path), *_blocks(finding, layers)] if path else []


@style()
def _inequalities(finding: Finding, path: Sequence[str]) -> list[Drawing]:
    terms = (
        ("I(X;T), bits", "I(X;T)", "forward violated", NEW),
        ("I(T;Y), bits", "I(T;Y)", "", NEW),
        ("I(δK;δ), bits", "I(δK;δ)", "backward violated", NEW),
    )
    figure, drawn = panels(3, height=5.2, width=width_for(path))
    for axes, (unit, term, violated, colour) in zip(drawn, terms, strict=True):
        along(axes, finding, path, Line(term, term, colour))
        wrong = [
            (position, float(finding.measures[layer][term].value))
            for position, layer in enumerate(path, start=1)
            if violated in finding.measures[layer] and float(finding.measures[layer][violated].value) > 0
        ]
        if wrong:
            axes.plot(*zip(*wrong, strict=True), "v", color=MARK, markersize=7, label="violated")
            legend(axes)
        axes.set_ylabel(unit)
    label(drawn[-1], path, "layer")
    caption = (
        "The data-processing inequalities along the network. Forward, I(X;T) may only fall from layer to layer; "
        "backward, what the loss gradient δ of a layer shares with the last one's may only fall towards the first. "
        "Shaded bars are bootstrap intervals over mini-batches, triangles steps whose whole interval goes the wrong "
        "way. In the middle, what layers tell about the class."
    )
    return [Drawing(caption, svg(figure, f"{finding.analysis}: inequalities"), width_for(path) == NARROW)]


@style()
def _blocks(finding: Finding, layers: Sequence[str]) -> list[Drawing]:
    terms = (
        ("block: loss of I(X;T)", "loss of I(X;T)", SERIES[0], "o"),
        ("block: gain of I(T;Y)", "gain of I(T;Y)", SERIES[1], "s"),
    )
    names = [name for name in finding.measures if terms[0][0] in finding.measures[name]]
    first = {
        name: next((i for i, layer in enumerate(layers) if f"{layer}.".startswith(f"{name}.")), 0) for name in names
    }
    names.sort(key=first.__getitem__)
    if not names:
        return []
    figure, (axes,) = panels(1, height=2.6, width=width_for(names))
    for offset, (term, name, colour, marker) in zip((-0.14, 0.14), terms, strict=True):
        at = [position + offset for position in range(1, len(names) + 1)]
        found = [finding.measures[block][term] for block in names]
        known = [
            (position, float(measure.low), float(measure.high))
            for position, measure in zip(at, found, strict=True)
            if measure.low is not None and measure.high is not None
        ]
        if known:
            axes.vlines(*zip(*known, strict=True), color=colour, linewidth=3, alpha=0.35)
        axes.plot(at, [float(measure.value) for measure in found], marker, color=colour, markersize=4.5, label=name)
    rule(axes)
    axes.set_ylabel("bits")
    legend(axes)
    label(axes, [f"{name} ✕" if name in finding.removable else name for name in names], "block")
    caption = (
        "What each block loses of the image and gains about the class, less chance, with bootstrap intervals. A block "
        "whose intervals both reach 0 does nothing measurable: it is marked ✕ and proposed for removal."
    )
    return [Drawing(caption, svg(figure, f"{finding.analysis}: blocks"), width_for(names) == NARROW)]


@style()
def plane(finding: Finding, layers: Sequence[str]) -> list[Drawing]:
    """Where the layers stand in the plane and in the modified plane."""
    found = []
    for modified in (False, True):
        across, up = COORDINATES[modified]
        rows = [
            (number, float(measures[across].value), float(measures[up].value))
            for number, layer in enumerate(layers, start=1)
            if across in (measures := finding.measures.get(layer, {})) and up in measures
        ]
        if not rows:
            continue
        figure, (axes,) = panels(1, height=2.9, width=NARROW)
        axes.plot([x for _, x, _ in rows], [y for _, _, y in rows], "-", color=FAINT, linewidth=1)
        colours = [ramp(place, len(rows)) for place in range(len(rows))]
        axes.scatter([x for _, x, _ in rows], [y for _, _, y in rows], c=colours, s=24, zorder=2)
        for number, x, y in rows:
            if len(rows) <= NAMED or number in (rows[0][0], rows[-1][0]):
                axes.annotate(str(number), (x, y), (4, 3), textcoords="offset points", fontsize=8, color=INK)
        axes.set(xlabel=f"{across}, bits", ylabel=f"{up}, bits")
        caption = (
            "The modified plane, without what pairs of filters hold in common."
            if modified
            else "The information plane: what each layer knows of the image and of the class. Layers are numbered in "
            "the order of the forward pass and joined by a line."
        )
        found.append(Drawing(caption, svg(figure, f"{finding.analysis}: {across} and {up}"), narrow=True))
    return found


@style()
def planes(steps: Mapping[int, Finding]) -> "list[Markup]":
    """The ways of all layers through the plane and the modified plane while the network was trained."""
    if len(steps) < 2:
        return []
    order, figures = sorted(steps), []
    for modified in (False, True):
        paths = trajectories(steps, modified=modified)
        if not paths:
            continue
        figure, (axes,) = panels(1, height=3.2, width=NARROW)
        for number, path in enumerate(paths.values(), start=1):
            step, x, y = path.T.tolist()
            axes.plot(x, y, "-", color=FAINT, linewidth=1, zorder=1)
            for place, known in enumerate(order):
                own = [(a, b) for s, a, b in zip(step, x, y, strict=True) if s == known]
                if own:
                    axes.plot(*zip(*own, strict=True), "o", color=ramp(place, len(order)), markersize=4)
            if len(paths) <= NAMED:
                axes.annotate(str(number), (x[-1], y[-1]), (3, 3), textcoords="offset points", fontsize=8)
        for place in dict.fromkeys((0, (len(order) - 1) // 2, len(order) - 1)):
            axes.plot([], [], "o", color=ramp(place, len(order)), markersize=4, label=f"step {order[place]}")
        legend(axes, 3)
        across, up = COORDINATES[modified]
        axes.set(xlabel=f"{across}, bits", ylabel=f"{up}, bits")
        figures.append(svg(figure, f"{across} and {up} by training step"))
    return figures


@style()
def overlaid(
    finding: Finding, named: Mapping[str, Curve], across: str, up: str, caption: str, *, relative: bool = True
) -> list[Drawing]:
    """The curves of all layers over each other, over the share of filters, coloured by depth."""
    if len(named) < 2:
        return []
    figure, (axes,) = panels(1, height=2.9, width=NARROW)
    marked = {0, (len(named) - 1) // 2, len(named) - 1}
    for place, curve in enumerate(named.values()):
        last, whole = float(curve.x.max()), float(curve.y[-1]) if relative else 1.0
        if last <= 0 or whole <= 0 or not math.isfinite(whole):
            continue
        name = f"layer {place + 1}" if place in marked else None
        x, y = (curve.x / last).tolist(), (curve.y / whole).tolist()
        axes.plot(x, y, "-", color=ramp(place, len(named)), linewidth=1.2, label=name)
    axes.set(xlabel=across, ylabel=up)
    legend(axes, 3)
    return [Drawing(caption, svg(figure, f"{finding.analysis}: all layers"), narrow=True)]


def _panels(finding: Finding, named: Mapping[str, Curve], across: str, up: str, caption: str) -> list[Drawing]:
    """One panel per layer: the curve, its band, and the width that is recommended."""
    panels = {layer: Panel(curve, finding.widths.get(layer)) for layer, curve in named.items()}
    return sheets(f"{finding.analysis}: {up}", panels, across, up, caption)

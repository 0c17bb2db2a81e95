"""Figures of the analyses that measure spectra, energies and ranks."""

import math
from collections.abc import Sequence

import numpy as np

from infoprune.analyses.base import Finding
from infoprune.reporting.canvas import (
    MARK,
    NARROW,
    NEW,
    OLD,
    SERIES,
    Drawing,
    label,
    legend,
    logarithmic,
    panels,
    style,
    svg,
    width_for,
)
from infoprune.reporting.figures.layerwise import Line, along, lines

NETWORK = "network"
"""Where analyses put figures of the network as a whole."""


@style()
def rolloff(finding: Finding, layers: Sequence[str]) -> list[Drawing]:
    """The profile of roll-off points over depth, with the baseline that pooling alone gives."""
    band = [
        (position, float(own["lower quartile"].value), float(own["upper quartile"].value))
        for position, layer in enumerate(layers, start=1)
        if "lower quartile" in (own := finding.measures.get(layer, {})) and "upper quartile" in own
    ]
    if not band:
        return []
    figure, (axes,) = panels(1, height=2.8, width=width_for(layers))
    at, lower, upper = zip(*band, strict=True)
    axes.fill_between(at, lower, upper, color=OLD, alpha=0.35, linewidth=0, label="middle half of the filters")
    along(axes, finding, layers, Line("SROP", "mean", NEW))
    along(axes, finding, layers, Line("baseline", "baseline: pooling alone", MARK, "s", "--"))
    axes.set_ylabel("roll-off point")
    legend(axes, 3 if width_for(layers) != NARROW else 1)
    label(axes, layers, "layer")
    unit = finding.measures[layers[band[0][0] - 1]]["SROP"].unit
    caption = (
        f"Spectral roll-off points of the maps, as a {unit}: below that frequency lies 85 % of a map's spectrum "
        "(or what kappa says). The dashed baseline is the image brought to the layer's size by pooling alone; layers "
        "above it carry finer detail than that, which may be noise. Bars are 95 % intervals over mini-batches."
    )
    return [Drawing(caption, svg(figure, f"{finding.analysis}: profile"), width_for(layers) == NARROW)]


@style()
def energy(finding: Finding, layers: Sequence[str]) -> list[Drawing]:
    """Energies over depth with both fits, and the frame bounds of the convolutions."""
    rows = [
        (position, float(own["energy"].value))
        for position, layer in enumerate(layers, start=1)
        if "energy" in (own := finding.measures.get(layer, {})) and float(own["energy"].value) > 0
    ]
    if len(rows) < 2:
        return []
    figure, (top, bottom) = panels(2, height=4.6, width=width_for(layers), ratios=[1.5, 1])
    along(top, finding, layers, Line("energy", "energy", NEW, dashes=""))
    at = np.array([position for position, _ in rows], dtype=float)
    logs = np.log([value for _, value in rows])
    whole = finding.measures.get(NETWORK, {})
    for name, x, sign, style_of, colour in (
        ("exponential", at, 1, "-", SERIES[1]),
        ("polynomial", np.log(at), -1, "--", SERIES[2]),
    ):
        if f"{name} rate" not in whole or math.isnan(rate := float(whole[f"{name} rate"].value)):
            continue
        slope = math.log(rate) if sign > 0 else -rate
        # The analysis says the slope; least squares leave the line through the means.
        line = np.exp(slope * x + (logs - slope * x).mean())
        goodness = float(whole[f"{name} goodness"].value)
        top.plot(at, line, style_of, color=colour, linewidth=1.3, label=f"{name}, R² {goodness:.2f}")
    logarithmic(top, "y")
    top.set_ylabel("share of the input's energy")
    legend(top, 3 if width_for(layers) != NARROW else 1)
    bounds = [
        (position, max(float(own["frame bound A"].value), 1e-9), max(float(own["frame bound B"].value), 1e-9))
        for position, layer in enumerate(layers, start=1)
        if "frame bound A" in (own := finding.measures.get(layer, {}))
        and math.isfinite(float(own["frame bound B"].value))
    ]
    if bounds:
        bottom.vlines(*zip(*bounds, strict=True), color=OLD, linewidth=4 if len(layers) <= 60 else 2)
        logarithmic(bottom, "y")
    bottom.set_ylabel("frame bounds")
    label(bottom, layers, "layer")
    caption = (
        "Above, the energy of each layer as a share of the input's, with the best exponential and polynomial decay "
        "over depth; an R² near 1 is a decay of that kind, near 0 none. Below, each convolution's frame bounds, least "
        "to largest gain of energy; a bar that reaches far down stands for inputs that the layer loses."
    )
    return [Drawing(caption, svg(figure, f"{finding.analysis}: decay"), width_for(layers) == NARROW)]


def scaling(finding: Finding, layers: Sequence[str]) -> list[Drawing]:
    """Ranks of the mixing matrices and entropies over depth."""
    ranks = lines(
        finding,
        layers,
        [
            (
                "filters",
                [
                    Line("rank", "rank", OLD, "s"),
                    Line("effective rank", "effective rank", NEW),
                    Line("stable rank", "stable rank", MARK, "^"),
                ],
            ),
        ],
        "ranks",
        "Rank, effective rank 2^H(σ) and stable rank of each layer's mixing matrix; a layer whose effective rank is "
        "far below its rank mixes fewer directions than it has filters.",
    )
    entropies = lines(
        finding,
        layers,
        [
            ("bits", [Line("entropy", "entropy S(T)", NEW), Line("log2 width", "log2 of the width", OLD, "s")]),
            ("bits", [Line("entropy gain", "gain over the layer before", SERIES[1], "^")]),
        ],
        "entropies",
        "Entropy of all filters of a layer as one variable, beside log2 of its width, and its gain over the layer "
        "before, which the scaling law bounds by log2 of the width.",
    )
    return [*ranks, *entropies]

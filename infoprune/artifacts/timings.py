"""How long layers take at several widths."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from infoprune.artifacts.channels import ChannelGraph


@dataclass(frozen=True)
class LayerTimes:
    """Milliseconds of one layer alone over a grid of widths, each ending with its own.

    Attributes:
        inputs, outputs: widths tried, rising; a depthwise layer has one input width.
        milliseconds: `outputs x inputs`.

    Raises:
        ValueError: where the numbers of widths and times do not fit.
    """

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    milliseconds: tuple[tuple[float, ...], ...]

    def __post_init__(self) -> None:
        rows, columns = len(self.outputs), len(self.inputs)
        if not rows or not columns or [len(row) for row in self.milliseconds] != rows * [columns]:
            raise ValueError(f"{rows} x {columns} widths need as many milliseconds")

    def at(self, inputs: float, outputs: float) -> float:
        """Straight between the widths tried, along both.

        >>> LayerTimes((2, 4), (4,), ((1.0, 3.0),)).at(3, 4)
        2.0
        """
        rows = [np.interp(inputs, self.inputs, row) for row in self.milliseconds]
        return float(np.interp(outputs, self.outputs, rows))


@dataclass(frozen=True)
class Timings:
    """What predicts the time of a forward pass from widths: `rest + scale * sum of the layers' times`.

    Attributes:
        layers: per convolution or linear layer, its times alone.
        scale, rest: fitted to whole networks at several widths; `rest` in milliseconds.
        whole: milliseconds of the unpruned network.
        error: largest relative error of the prediction for the networks of the fit.
        batch, device, threads: what was timed.
    """

    layers: Mapping[str, LayerTimes]
    scale: float
    rest: float
    whole: float
    error: float
    batch: int
    device: str
    threads: int

    def predict(self, graph: ChannelGraph, widths: Mapping[str, int]) -> float:
        """Milliseconds of a forward pass when groups have these widths, the others their own."""
        return self.rest + self.scale * sum_of(self.layers, graph, widths)


def sum_of(layers: Mapping[str, LayerTimes], graph: ChannelGraph, widths: Mapping[str, int]) -> float:
    """Milliseconds of all layers alone, one after the other."""
    found = graph.layer_widths(widths)
    return sum(times.at(*found[name]) for name, times in layers.items() if name in found)

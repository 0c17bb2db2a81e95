"""What layers cost as a function of their widths."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np


@dataclass(frozen=True)
class Cost:
    """What a network costs.

    Attributes:
        macs: multiply-accumulates per sample.
        parameters: number of parameters; shared ones count once.
        bytes: of parameters and buffers as they lie in memory and in a file, without the file's header.
    """

    macs: int
    parameters: int
    bytes: int


@dataclass(frozen=True)
class LayerCost:
    """Cost of one layer as a function of its widths.

    Attributes:
        layer: the module's dotted name.
        inputs, outputs: its widths in the unpruned model.
        macs: multiply-accumulates per sample of the unpruned layer.
        depthwise: whether each filter reads its own channel only, so that cost grows with one width; so do norms.
        weights: number of weights, which go with both widths (with one in a depthwise layer).
        vectors: number of biases and other parameters that go with the number of filters.
        buffers: number of running statistics that go with it.
        item: bytes per number.
    """

    layer: str
    inputs: int
    outputs: int
    macs: int
    depthwise: bool = False
    weights: int = 0
    vectors: int = 0
    buffers: int = 0
    item: int = 4


class CostTable:
    """The costs of all layers as arrays, so that one evaluation is two matrix products.

    Args:
        costs: one entry per layer.
        widths: of the unpruned groups.
        cuts: per group the layer sides that it cuts, with the indices that go with each channel there.
        fixed: what no width changes.
    """

    def __init__(
        self,
        costs: Sequence[LayerCost],
        widths: Mapping[str, int],
        cuts: Mapping[str, Sequence[tuple[str, Literal["out", "in"], int]]],
        fixed: Cost,
    ) -> None:
        self.fixed = fixed
        self.full = np.array([*widths.values()], dtype=float)
        self.columns = {name: column for column, name in enumerate(widths)}
        rows = {cost.layer: row for row, cost in enumerate(costs)}
        cut = {side: np.zeros((len(costs), len(widths))) for side in ("out", "in")}
        for name, sides in cuts.items():
            for layer, side, count in sides:
                if layer in rows:
                    cut[side][rows[layer], self.columns[name]] += count
        self.cut_outputs, self.cut_inputs = cut["out"], cut["in"]
        self.outputs, self.inputs, macs, weights, vectors, buffers, item = (
            np.array([float(getattr(cost, field)) for cost in costs])
            for field in ("outputs", "inputs", "macs", "weights", "vectors", "buffers", "item")
        )
        self.depthwise = np.array([cost.depthwise for cost in costs], dtype=bool)
        # Rows: MACs, parameters, bytes; once for what goes with both widths, once for what goes with filters alone.
        self.by_both = np.stack([macs, weights, item * weights])
        self.by_outputs = np.stack([0 * macs, vectors, item * (vectors + buffers)])

    def cost(self, widths: Mapping[str, int]) -> Cost:
        """Cost at these widths; groups that are not named keep their own."""
        removed = self._removed(widths)
        left_out = 1 - self.cut_outputs @ removed / self.outputs
        left_in = np.where(self.depthwise, 1.0, 1 - self.cut_inputs @ removed / self.inputs)
        # Each layer's share is rounded on its own, as its count would be if it were built that small.
        total = np.rint(self.by_both * (left_out * left_in) + self.by_outputs * left_out).sum(axis=1)
        macs, parameters, size = (int(value) for value in total)
        return Cost(self.fixed.macs + macs, self.fixed.parameters + parameters, self.fixed.bytes + size)

    def widths(self, widths: Mapping[str, int]) -> tuple[list[float], list[float]]:
        """Inputs and outputs of every layer at these widths of groups."""
        removed = self._removed(widths)
        inputs = self.inputs - self.cut_inputs @ removed
        return inputs.tolist(), (self.outputs - self.cut_outputs @ removed).tolist()

    def _removed(self, widths: Mapping[str, int]) -> np.ndarray:
        removed = np.zeros_like(self.full)
        for name, width in widths.items():
            column = self.columns[name]
            removed[column] = self.full[column] - width
        return removed

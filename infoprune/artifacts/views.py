"""What an analysis sees of one layer on one batch."""

from collections.abc import Callable, Hashable
from typing import Any, TypeVar

from torch import Tensor, nn

Value = TypeVar("Value")


class Memo:
    """Computes a thing for whoever asks first and hands the same thing to whoever asks next."""

    def __init__(self) -> None:
        self._kept: dict[Hashable, Any] = {}

    def once(self, key: Hashable, compute: Callable[[], Value]) -> Value:
        """The value under `key`, computed at the first call."""
        if key not in self._kept:
            self._kept[key] = compute()
        value: Value = self._kept[key]
        return value


class BatchView(Memo):
    """One calibration batch as every layer sees it.

    Attributes:
        inputs: the network's input, `samples x channels x height x width`.
        labels: class indices, `samples`; `None` where the batches carry none.
        index: number of this batch, from 0.
    """

    def __init__(self, inputs: Tensor, labels: Tensor | None, index: int) -> None:
        super().__init__()
        self.inputs, self.labels, self.index = inputs, labels, index


class LayerView(Memo):
    """One layer on one calibration batch; it dies with the forward hook that made it.

    Attributes:
        layer: the module's dotted name in the model.
        module: the layer itself.
        activations: what it put out, `samples x filters [x height x width]`, detached.
        gradients: loss gradient at that output, same shape; `None` unless an analysis asked for gradients.
        batch: what all layers share on this batch.
    """

    def __init__(
        self, layer: str, module: nn.Module, activations: Tensor, batch: BatchView, gradients: Tensor | None = None
    ) -> None:
        super().__init__()
        self.layer, self.module, self.activations, self.gradients = layer, module, activations, gradients
        self.batch = batch

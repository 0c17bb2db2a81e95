"""What the tests of single analyses share."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from infoprune.analyses.base import BatchView, LayerView


@pytest.fixture(autouse=True, scope="package")
def _one_thread() -> Iterator[None]:
    """Matrices this small gain nothing from a second thread, and on a busy machine they wait for it."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def view() -> Callable[..., LayerView]:
    """Makes a view of one layer: maps, and where wanted inputs, labels, the module, its name, the batch's number."""

    def make(
        maps: Tensor,
        inputs: Tensor | None = None,
        labels: Tensor | None = None,
        module: nn.Module | None = None,
        layer: str = "layer",
        batch: BatchView | None = None,
        index: int = 0,
        gradients: Tensor | None = None,
    ) -> LayerView:
        shared = batch or BatchView(maps if inputs is None else inputs, labels, index)
        return LayerView(layer, module or nn.Conv2d(1, maps.shape[1], 1), maps, shared, gradients)

    return make

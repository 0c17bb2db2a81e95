"""Measured sensitivity is judged by images that the refit has not seen."""

import torch
from torch import Tensor, nn

from infoprune.pruning import channel_graph
from infoprune.repairing.probing import measure_sensitivity


class Wide(nn.Module):
    """A classifier that reads more channels than there are images, so that a refit can answer any of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 64, 3, padding=1)
        self.head = nn.Linear(64, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.first(x)).amax((2, 3)))


def test_a_refit_that_can_fit_anything_does_not_make_channels_free() -> None:
    model = Wide().eval()
    nn.init.normal_(model.head.weight, std=1.0)
    batches = [(torch.randn(20, 3, 8, 8), torch.zeros(20))]
    graph = channel_graph(model, batches[0][0])
    table = measure_sensitivity(model, graph, {"first": torch.rand(64)}, batches, shares=(0.9, 0.5))
    assert table["first"][32] > table["first"][58] > 0.01
    assert table["first"][64] == 0

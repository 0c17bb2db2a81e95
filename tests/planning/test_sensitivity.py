"""Measured sensitivity: it sees which filters are free, judged by images that the refit has not seen."""

import copy
from inspect import signature

import pytest
import torch
from torch import Tensor, nn

from infoprune.errors import UserError
from infoprune.planning.greedy import allocate
from infoprune.planning.planner import plan
from infoprune.planning.sensitivity import SHARES, measure_sensitivities, measure_sensitivity
from infoprune.pruning.channel_graph import channel_graph
from tests.repairing.test_repair import Chain, duplicate, images, settled


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


def test_sensitivity_sees_which_filters_are_free_and_leaves_the_model_alone() -> None:
    torch.manual_seed(0)
    batches = images(4)
    model = settled(Chain(), batches)
    duplicate(model.first, model.norm1, [2, 3, 4, 5])
    state = copy.deepcopy(model.state_dict())
    graph = channel_graph(model, torch.zeros(1, 3, 8, 8))
    scores = {"first": torch.arange(6, 0, -1), "second": torch.arange(4, 0, -1)}
    table = measure_sensitivity(model, graph, scores, batches, shares=(0.3, 0.5))
    assert set(table["first"]) == {6, 3, 2}
    assert table["first"][2] < 1e-6 < table["second"][2]
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    widths = allocate(table, graph, 0.6)
    assert widths["first"] < 6
    assert graph.macs(widths) <= 0.6 * graph.macs({})
    with pytest.raises(UserError, match="out of reach"):
        allocate(table, graph, 0.01)


def test_widths_are_measured_down_to_the_least_that_a_plan_keeps() -> None:
    assert min(SHARES) <= signature(plan).parameters["min_share"].default


def test_several_rankings_at_once_are_measured_as_one_by_one() -> None:
    torch.manual_seed(0)
    batches = images(4)
    model = settled(Chain(), batches)
    graph = channel_graph(model, torch.zeros(1, 3, 8, 8))
    rankings = {
        "up": {"first": torch.arange(6), "second": torch.arange(4)},
        "down": {"first": torch.arange(6, 0, -1), "second": torch.arange(4, 0, -1)},
        "first alone": {"first": torch.tensor([0, 1, 2, 3, 5, 4])},
    }
    steps: list[tuple[int, int]] = []
    tables = measure_sensitivities(model, graph, rankings, batches, lambda *step: steps.append(step), shares=(0.3, 0.5))
    assert steps == [(1, 2), (2, 2)]
    assert tables.keys() == rankings.keys()
    assert tables["first alone"] == {"first": tables["up"]["first"]}  # which keeps the same two and the same three
    assert tables["up"]["first"] != tables["down"]["first"]
    for name, scores in rankings.items():
        alone = measure_sensitivity(model, graph, scores, batches, shares=(0.3, 0.5))
        assert tables[name] == alone

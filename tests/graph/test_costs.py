"""What the cost table predicts is what the pruned model costs."""

import pytest
import torch
from torch import Tensor, nn

from infoprune.evaluation.profile import count_macs, count_parameters
from infoprune.models import cifar_resnet
from infoprune.planning.plan import GroupPlan, Plan
from infoprune.pruning.channel_graph import channel_graph
from infoprune.pruning.prune import prune


def bytes_of(model: nn.Module) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())


def halved(model: nn.Module, images: Tensor) -> tuple[nn.Module, dict[str, int]]:
    graph = channel_graph(model, images)
    kept = {group.name: tuple(range(0, group.width, 2)) for group in graph.groups if not group.refusal}
    groups = tuple(GroupPlan(name, own, 2 * len(own), len(own), 0, 0, "") for name, own in kept.items())
    widths = {name: len(own) for name, own in kept.items()}
    return prune(model, Plan(groups, {}, 0, 0, graph.input_shape)), widths


class Depthwise(nn.Module):
    """Depthwise convolution, biases, a linear head behind a flatten, and a parameter outside any layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.own = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)
        self.point = nn.Conv2d(8, 6, 1)
        self.head = nn.Linear(6 * 16, 5)
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.point(self.own(torch.relu(self.norm(self.first(x)))))
        logits: Tensor = self.head(torch.relu(x).flatten(1)) * self.scale
        return logits


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("build", [Depthwise, lambda: cifar_resnet.build(depth=8, shortcut="projection")])
def test_predicted_cost_is_the_pruned_models(build: type[nn.Module], dtype: torch.dtype) -> None:
    model, images = build().to(dtype), torch.zeros(1, 3, 4, 4, dtype=dtype)
    graph = channel_graph(model, images)
    for built, cost in (
        (model, graph.cost({})),
        ((pair := halved(model, images))[0], graph.cost(pair[1])),
    ):
        assert cost.macs == count_macs(built, images)
        assert cost.parameters == count_parameters(built)
        assert cost.bytes == bytes_of(built)


def test_shared_weights_count_once() -> None:
    model = nn.Sequential(nn.Conv2d(3, 3, 1, bias=False), nn.Conv2d(3, 3, 1, bias=False))
    model[1].weight = model[0].weight
    cost = channel_graph(model, torch.zeros(1, 3, 4, 4)).cost({})
    assert (cost.parameters, cost.macs, cost.bytes) == (9, 2 * 9 * 16, 36)

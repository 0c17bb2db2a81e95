"""Whole blocks removed: proven, replayed from a checkpoint, and repaired."""

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from infoprune.errors import UserError
from infoprune.evaluation.metrics import ModelReference
from infoprune.evaluation.profile import count_macs, count_parameters
from infoprune.graph.depth import shorten
from infoprune.io import checkpoint
from infoprune.models import cifar_resnet
from infoprune.planning.plan import GroupPlan, Plan
from infoprune.planning.sensitivity import measure_sensitivity
from infoprune.pruning.channel_graph import channel_graph
from infoprune.pruning.prune import prune
from infoprune.pruning.verify import verify
from infoprune.repairing.repair import repair

OPTIONS = {"depth": 14, "widths": [4, 6, 8]}
REMOVED = ("layer1.1", "layer3.1")


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    made = cifar_resnet.build(**OPTIONS)
    made.train()
    with torch.no_grad():
        for _ in range(20):
            made(torch.randn(32, 3, 8, 8))
    return made.eval()


@pytest.fixture
def images() -> Tensor:
    return torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def plan_of(model: nn.Module, images: Tensor) -> Plan:
    graph = channel_graph(model, images, REMOVED)
    kept = {group.name: tuple(range(0, group.width, 2)) for group in graph.groups if not group.refusal}
    groups = tuple(GroupPlan(name, own, 2 * len(own), len(own), 0, 0, "") for name, own in kept.items())
    return Plan(groups, {}, 0, 0, graph.input_shape, removed=REMOVED)


def test_graph_without_blocks(model: nn.Module, images: Tensor) -> None:
    whole, rest = channel_graph(model, images), channel_graph(model, images, REMOVED)
    assert {group.name for group in whole.groups} - {group.name for group in rest.groups} == {
        "layer1.1.conv1",
        "layer3.1.conv1",
    }
    assert rest.unpruned == whole.cost({}) == whole.unpruned
    short = shorten(copy.deepcopy(model), REMOVED)
    assert rest.cost({}).macs == count_macs(short, images)
    assert rest.cost({}).parameters == count_parameters(short)


def test_removed_blocks_pass_their_input_on(model: nn.Module, images: Tensor) -> None:
    plan = plan_of(model, images)
    pruned = prune(model, plan)
    graph = channel_graph(model, images, REMOVED)
    assert verify(model, pruned, graph, plan.kept(), images).max_rel_difference < 1e-5
    # The branch's last norm at zero is the same network: a block behind a ReLU adds nothing then.
    silent = copy.deepcopy(model)
    for name in REMOVED:
        nn.init.zeros_(silent.get_submodule(name).bn2.weight)
        nn.init.zeros_(silent.get_submodule(name).bn2.bias)
    only = prune(model, Plan((), {}, 0, 0, graph.input_shape, removed=REMOVED))
    torch.testing.assert_close(only(images), silent(images))


def test_checkpoint_replays_the_removal(model: nn.Module, images: Tensor, tmp_path: Path) -> None:
    plan = plan_of(model, images)
    pruned = prune(model, plan)
    checkpoint.save(tmp_path / "a.safetensors", pruned, ModelReference("cifar_resnet", OPTIONS), plan)
    assert torch.equal(checkpoint.load(tmp_path / "a.safetensors")(images), pruned(images))


@pytest.mark.parametrize("method", ["compensate", "reconstruct"])
def test_what_is_left_is_refitted_to_the_whole_network(model: nn.Module, images: Tensor, method: str) -> None:
    plan = Plan((), {}, 0, 0, (3, 8, 8), removed=REMOVED)
    pruned = prune(model, plan)
    before = (pruned(images) - model(images)).square().mean()
    batches = [(images, torch.zeros(64))]
    done = repair(pruned, model, channel_graph(model, images, REMOVED), {}, batches, method=method, steps=20)
    assert (pruned(images) - model(images)).square().mean() < 0.75 * before
    assert not any(layer.layer.startswith(REMOVED) for layer in done.layers)


def test_sensitivity_is_that_of_what_is_left(model: nn.Module, images: Tensor) -> None:
    graph = channel_graph(model, images, REMOVED)
    scores = {group.name: torch.arange(group.width) for group in graph.groups if not group.refusal}
    table = measure_sensitivity(model, graph, scores, [(images, torch.zeros(64))], shares=(0.5,))
    assert table.keys() == scores.keys()


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        (["layer1.9"], "has no block 'layer1.9' to remove; did you mean 'layer1."),
        ([""], "has no block ''"),
        (["layer1", "layer1.0"], "'layer1.0' is removed with 'layer1' already"),
        (["layer1.0", "layer1.0"], "name it once"),
        (["layer2.0"], r"goes from \[\(1, 4, 8, 8\)\] to \(1, 6, 4, 4\); only what"),
        (["linear"], "goes from"),
    ],
)
def test_blocks_that_cannot_go(model: nn.Module, images: Tensor, blocks: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        channel_graph(model, images[:1], blocks)
    with pytest.raises(UserError, match=message):
        prune(model, Plan((), {}, 0, 0, (3, 8, 8), removed=tuple(blocks)))

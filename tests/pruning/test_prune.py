"""Channel groups, legal cuts, and every way a cut could go wrong in silence."""

import copy
import random
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from infoprune.config import registry
from infoprune.errors import RunError, UserError
from infoprune.graph.channels import ChannelGraph, ChannelGroup
from infoprune.planning.plan import GroupPlan, Plan
from infoprune.pruning.channel_graph import channel_graph
from infoprune.pruning.prune import check_kept, prune
from infoprune.pruning.verify import masked, verify


def plan_of(graph: ChannelGraph, kept: dict[str, Sequence[int]]) -> Plan:
    """A plan by hand."""
    widths = {group.name: group.width for group in graph.groups}
    groups = tuple(GroupPlan(n, tuple(k), widths.get(n, 0), len(k), 0, 0, "by hand") for n, k in kept.items())
    return Plan(groups, {}, 0, 0, graph.input_shape)


def random_kept(graph: ChannelGraph, seed: int, share: float = 0.5) -> dict[str, tuple[int, ...]]:
    """A random legal cut of every group that can be cut."""
    draw, kept = random.Random(seed), {}
    for group in graph.groups:
        if not group.refusal:
            part = group.width // group.partitions
            chosen = sorted(draw.sample(range(part), max(1, round(part * share))))
            kept[group.name] = tuple(channel + part * i for i in range(group.partitions) for channel in chosen)
    return kept


def cut_and_verify(model: nn.Module, example: Tensor, seed: int, share: float = 0.5) -> nn.Module:
    graph = channel_graph(model, example)
    kept = random_kept(graph, seed, share)
    pruned = prune(model, plan_of(graph, kept))
    assert verify(model, pruned, graph, kept, example).max_rel_difference <= 1e-5
    widths = {name: len(channels) for name, channels in kept.items()}
    assert channel_graph(pruned, example).macs({}) == graph.macs(widths) < graph.macs({})
    return pruned


class Grouped(nn.Module):
    """A grouped convolution between two plain ones."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.grouped = nn.Conv2d(2, 12, 3), nn.Conv2d(12, 24, 3, groups=3)
        self.last = nn.Conv2d(24, 5, 1)

    def forward(self, images: Tensor) -> Tensor:
        return self.last(torch.relu(self.grouped(torch.relu(self.first(images))))).mean((2, 3))


class Concatenated(nn.Module):
    """Two branches side by side, then a depthwise convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(2, 6, 1)
        self.norm, self.depthwise = nn.BatchNorm2d(10), nn.Conv2d(10, 10, 3, groups=10)
        self.last = nn.Conv2d(10, 5, 1)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.norm(torch.cat([self.left(images), self.right(images)], 1))
        return self.last(torch.relu(self.depthwise(maps))).mean((2, 3))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
def test_pruned_equals_masked_chain(chain: nn.Module, images: Tensor, seed: int, share: float) -> None:
    cut_and_verify(chain, images, seed, share)


@pytest.mark.parametrize("kind", [Grouped, Concatenated])
def test_pruned_equals_masked_grouped_and_concatenated(kind: type[nn.Module], images: Tensor) -> None:
    cut_and_verify(kind().eval(), images, seed=1)


@pytest.mark.parametrize("shortcut", ["pad", "projection"])
def test_residual_streams(shortcut: str) -> None:
    model = registry.find("models", "cifar_resnet")(depth=8, input_channels=1, shortcut=shortcut).eval()
    graph = channel_graph(model, torch.randn(2, 1, 16, 16))
    stream = next(group for group in graph.groups if group.name == "conv1")
    assert sum(member.side == "out" for member in stream.members) > 2
    # Zero-padding puts channels of one stream into another of a different width: no index means the same in both.
    assert bool(stream.refusal) == (shortcut == "pad")
    cut_and_verify(model, torch.randn(2, 1, 16, 16), seed=0)


def test_head_is_never_cut(chain: nn.Module, images: Tensor) -> None:
    graph = channel_graph(chain, images)
    assert {group.name: group.refusal for group in graph.groups if group.refusal} == {
        "head": "its channels are the network's output"
    }
    with pytest.raises(UserError, match=r"'head' cannot be pruned: .*output; leave it out"):
        prune(chain, plan_of(graph, {"head": [0, 1]}))


@pytest.mark.parametrize(
    ("kept", "message"),
    [
        ([], "no channel is kept; keep at least 1"),
        ([0, 6], r"run from 0 to 6, but it has 0\.\.5"),
        ([-1, 2], "run from -1 to 2"),
        ([1, 1, 2], "not sorted and unique"),
        ([2, 1], "not sorted and unique"),
    ],
)
def test_illegal_indices_are_refused(chain: nn.Module, images: Tensor, kept: list[int], message: str) -> None:
    before = copy.deepcopy(chain.state_dict())
    graph = channel_graph(chain, images)
    with pytest.raises(UserError, match=message):
        prune(chain, plan_of(graph, {"second": range(3), "first": kept}))
    assert all(torch.equal(value, before[name]) for name, value in chain.state_dict().items())


def test_unknown_group_is_refused(chain: nn.Module, images: Tensor) -> None:
    graph = channel_graph(chain, images)
    plan = Plan((GroupPlan("secnd", (0,), 8, 1, 0, 0, ""),), {}, 0, 0, graph.input_shape)
    with pytest.raises(UserError, match="no such channel group; did you mean 'second'"):
        prune(chain, plan)


def test_grouped_convolution_needs_aligned_indices(images: Tensor) -> None:
    model = Grouped().eval()
    graph = channel_graph(model, images)
    assert {group.name: group.partitions for group in graph.groups} == {"first": 3, "grouped": 3, "last": 1}
    with pytest.raises(UserError, match="keep the same 4-channel pattern in each part"):
        prune(model, plan_of(graph, {"first": [0, 1, 4, 5, 8, 10]}))


@given(st.lists(st.integers(-2, 9), max_size=8))
@settings(max_examples=200)
def test_check_kept_accepts_exactly_the_legal(kept: list[int]) -> None:
    group = ChannelGroup("layer", 8, (), partitions=2)
    halves = [{k for k in kept if k < 4}, {k - 4 for k in kept if k >= 4}]
    legal = bool(kept) and kept == sorted(set(kept)) and min(kept) >= 0 and max(kept) < 8 and halves[0] == halves[1]
    try:
        check_kept(group, kept)
    except UserError:
        assert not legal
    else:
        assert legal


def test_original_is_untouched_and_its_state_carries_over(chain: nn.Module, images: Tensor) -> None:
    chain.train()
    chain.first_norm.eval()
    chain.third.weight.requires_grad_(False)
    chain.to(memory_format=torch.channels_last)
    before = copy.deepcopy(chain.state_dict())
    graph = channel_graph(chain, images)
    pruned = prune(chain, plan_of(graph, {"first": [0, 2, 5], "third": [1, 2]}))
    assert all(torch.equal(value, before[name]) for name, value in chain.state_dict().items())
    assert pruned.training
    assert not pruned.first_norm.training
    assert pruned.second_norm.training
    assert not pruned.third.weight.requires_grad
    assert pruned.first.weight.requires_grad
    assert pruned.second.weight.is_contiguous(memory_format=torch.channels_last)
    assert pruned.first.weight.shape == (3, 2, 3, 3)
    assert all(parameter.grad is None for parameter in pruned.parameters())
    torch.testing.assert_close(pruned.first.weight, chain.first.weight[[0, 2, 5]])


def test_frozen_model_is_pruned_whole(chain: nn.Module, images: Tensor) -> None:
    chain.requires_grad_(False)
    pruned = cut_and_verify(chain, images, seed=0)
    assert not any(parameter.requires_grad for parameter in pruned.parameters())


def test_float64_model(chain: nn.Module, images: Tensor) -> None:
    pruned = cut_and_verify(chain.double(), images.double(), seed=0)
    assert pruned.first.weight.dtype == torch.float64


def test_mask_silences_norms_and_deafens_readers(chain: nn.Module, images: Tensor) -> None:
    graph = channel_graph(chain, images)
    seen: dict[str, Tensor] = {}
    with masked(chain, graph, {"second": [0, 1, 2]}), torch.no_grad():
        chain.second_norm.register_forward_hook(lambda _, __, output: seen.update(norm=output))
        # sigmoid(0) is a half: readers have to be deaf
        chain.third.register_forward_hook(lambda _, given, __: seen.update(read=given[0]))
        chain(images)
    assert seen["norm"][:, 3:].abs().sum() == seen["read"][:, 3:].abs().sum() == 0
    assert seen["norm"][:, :3].abs().min() > 0


def test_wrong_cut_is_found_out(chain: nn.Module, images: Tensor) -> None:
    graph = channel_graph(chain, images)
    pruned = prune(chain, plan_of(graph, {"first": [0, 2, 5]}))
    with pytest.raises(RunError, match="differs from its masked reference model"):
        verify(chain, pruned, graph, {"first": [0, 2, 4]}, images)


def test_cut_output_is_found_out(chain: nn.Module, images: Tensor) -> None:
    graph = channel_graph(chain, images)
    smaller = copy.deepcopy(chain)
    smaller.head = nn.Linear(16, 2)
    with pytest.raises(RunError, match="its output layer was cut"):
        verify(chain, smaller, graph, {}, images)


def test_models_that_cannot_be_pruned(images: Tensor) -> None:
    with pytest.raises(UserError, match="runs no convolution or linear layer"):
        channel_graph(nn.Sequential(nn.ReLU()), images)
    with pytest.raises(UserError, match=r"does not run on an input of shape \(2, 2, 8, 8\)"):
        channel_graph(nn.Conv2d(3, 4, 1), images)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "squeezenet1_1"])
def test_torchvision_families(name: str) -> None:
    model = registry.find("models", "torchvision")(architecture=name).eval()
    cut_and_verify(model, torch.randn(2, 3, 48, 48), seed=0)


def test_bytes_of_parameters_outside_layers_are_counted() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 2, 3)
            self.scale = nn.Parameter(torch.ones(2, 1, 1))
            self.register_buffer("steps", torch.zeros(5, dtype=torch.float64))

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.second(torch.relu(self.first(images))) * self.scale

    model = Scaled()
    cost = channel_graph(model.eval(), torch.zeros(1, 1, 8, 8)).unpruned
    tensors = [*model.parameters(), *model.buffers()]
    assert cost.bytes == sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    assert cost.parameters == sum(parameter.numel() for parameter in model.parameters())

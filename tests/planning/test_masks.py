"""Masks written by hand, and plans one after the other."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from infoprune.errors import UserError
from infoprune.graph.channels import ChannelGraph, ChannelGroup, Member
from infoprune.models import cifar_resnet
from infoprune.planning.masks import compose, kept_by
from infoprune.planning.planner import plan
from infoprune.pruning.channel_graph import channel_graph
from infoprune.pruning.prune import prune
from tests.planning.test_planner import line, scored


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return cifar_resnet.build(depth=8, widths=[4, 6, 8], shortcut="projection").eval()


@pytest.fixture
def images() -> Tensor:
    return torch.randn(4, 3, 8, 8)


def test_masks_of_layers_become_a_plan(model: nn.Module, images: Tensor) -> None:
    graph = channel_graph(model, images)
    masks = {"layer1.0.conv1": [0, 2], "layer1.0.conv2": [1, 3]}  # the second is part of the residual stream of conv1
    found = plan([], graph, masks=masks)
    assert found.kept() == {"conv1": (1, 3), "layer1.0.conv1": (0, 2)}
    assert prune(model, found).layer1[0].conv1.weight.shape == (2, 2, 3, 3)
    assert all(group.reason == "chosen by hand" for group in found.groups)
    agreeing = plan([], graph, masks={"conv1": [1, 3], "layer1.0.conv2": [1, 3]})
    assert agreeing.kept() == {"conv1": (1, 3)}


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        ({"conv9": [0]}, "names 'conv9', which is no layer with filters; did you mean"),
        ({"layer1.0.conv1": [2, 0]}, "not sorted and unique"),
        ({"layer1.0.conv1": [0, 0]}, "not sorted and unique"),
        ({"layer1.0.conv1": []}, "is empty; it has filters 0..3"),
        ({"layer1.0.conv1": [0, 4]}, "runs from 0 to 4; it has filters 0..3"),
        ({"layer1.0.conv1": [-1, 2]}, "masks = .*: expected a table, each entry a list of whole numbers, each from 0"),
        ({"conv1": [0], "layer1.0.conv2": [1]}, "masks of 'conv1' and 'layer1.0.conv2' differ"),
        ({"linear": [0]}, "'linear', which stays whole: its channels are the network's output"),
    ],
)
def test_wrong_masks_are_refused(model: nn.Module, images: Tensor, masks: dict[str, list[int]], message: str) -> None:
    with pytest.raises(UserError, match=message):
        plan([], channel_graph(model, images), masks=masks)


def test_wrong_masks_of_a_file_are_refused(model: nn.Module, images: Tensor, tmp_path: Path) -> None:
    path = tmp_path / "masks.json"
    path.write_text('{"layer1.0.conv1": [-1, 2]}')
    with pytest.raises(UserError, match="runs from -1 to 2"):
        plan([], channel_graph(model, images), masks=str(path))


def test_filters_that_go_together_only() -> None:
    group = ChannelGroup("a", 2, (Member("a", "out", ((0, 1), (2, 3))),))
    graph = ChannelGraph((group,), (), (1,))
    assert kept_by({"a": [2, 3]}, graph) == {"a": (1,)}
    with pytest.raises(UserError, match=r"keeps some of the filters \[0, 1\]"):
        kept_by({"a": [0, 2, 3]}, graph)


def test_two_rounds_are_one_plan(model: nn.Module, images: Tensor) -> None:
    first = plan([scored(graph := channel_graph(model, images))], graph, rank_by="l2", macs=0.6)
    smaller = prune(model, first)
    second = plan([scored(rest := channel_graph(smaller, images))], rest, rank_by="l2", macs=0.6)
    at_once = compose(first, second)
    assert torch.equal(prune(model, at_once)(images), prune(smaller, second)(images))
    assert at_once.macs_before == first.macs_before
    assert at_once.macs_after == second.macs_after
    with pytest.raises(UserError, match="make the second for the model that the first one left"):
        compose(first, first)


def test_blocks_removed_in_either_round(images: Tensor) -> None:
    model = cifar_resnet.build(depth=14, widths=[4, 6, 8]).eval()
    graph = channel_graph(model, images, ["layer1.1"])
    first = plan([scored(graph)], graph, rank_by="l2", macs=0.6)
    smaller = prune(model, first)
    rest = channel_graph(smaller, images, ["layer3.1"])
    second = plan([scored(rest)], rest, rank_by="l2", macs=0.6)
    at_once = compose(first, second)
    assert at_once.removed == ("layer1.1", "layer3.1")
    assert not [group.group for group in at_once.groups if group.group.startswith("layer3.1")]
    assert torch.equal(prune(model, at_once)(images), prune(smaller, second)(images))


def test_masks_with_nothing_else() -> None:
    graph = line(4, 4, 2)
    assert plan([], graph, masks={}).kept() == {}

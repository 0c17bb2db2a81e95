"""Widths as constructor arguments: offered only where they build exactly that network."""

import pytest
import torch
from torch import nn

from infoprune.evaluation.metrics import ModelReference
from infoprune.io.checkpoint import build
from infoprune.models import cifar_resnet
from infoprune.pipeline.architecture import narrowed
from infoprune.planning.planner import first_channels
from infoprune.pruning.channel_graph import channel_graph
from infoprune.pruning.prune import prune


def shapes(model: nn.Module) -> list[tuple[int, ...]]:
    return [tuple(value.shape) for value in model.state_dict().values()]


@pytest.mark.parametrize(
    ("reference", "example"),
    [
        (ModelReference("lenet", {"hidden": [20]}), (1, 28, 28)),
        (ModelReference("vgg", {"depth": 11, "widths": [4, 6, 8, 8, 10, 10, 12, 12]}), (3, 32, 32)),
        (ModelReference("cifar_resnet", {"depth": 14, "widths": [4, 6, 8], "shortcut": "projection"}), (3, 8, 8)),
        (ModelReference("cifar_resnet", {"depth": 8, "widths": [4, 6, 8]}), (3, 8, 8)),
    ],
)
def test_the_family_builds_what_pruning_leaves(reference: ModelReference, example: tuple[int, ...]) -> None:
    model, images = build(reference), torch.zeros(1, *example)
    graph = channel_graph(model, images)
    plan = first_channels(graph, 0.5)
    widths = {name: own for name, (_, own) in graph.layer_widths({g.group: g.width_after for g in plan.groups}).items()}
    found = narrowed(reference, model, widths)
    assert found is not None
    assert shapes(build(found)) == shapes(prune(model, plan))


def test_blocks_left_out() -> None:
    reference = ModelReference("cifar_resnet", {"depth": 20, "widths": [4, 6, 8]})
    found = narrowed(reference, build(reference), {"layer2.2.conv1": 3}, ["layer1.1", "layer2.1"])
    assert found is not None
    made = build(found)
    assert [len(getattr(made, f"layer{stage}")) for stage in (1, 2, 3)] == [2, 2, 3]
    assert made.layer2[1].conv1.out_channels == 3


def test_no_answer_where_the_family_has_none() -> None:
    reference = ModelReference("torchvision", {"architecture": "squeezenet1_1"})
    assert narrowed(reference, build(reference), {"features.0": 32}) is None
    lenet = ModelReference("lenet", {})
    assert narrowed(lenet, build(lenet), {}, ["conv1"]) is None
    # One block's outputs alone cannot be narrower than its stage.
    resnet = ModelReference("cifar_resnet", {"depth": 14, "widths": [4, 6, 8]})
    assert narrowed(resnet, build(resnet), {"layer1.1.conv2": 2}) is None


def test_a_users_own_family() -> None:
    reference = ModelReference("tests.pipeline.test_architecture:own", {"widths": [5]})
    found = narrowed(reference, own(widths=[5]), {"0": 3})
    assert found == ModelReference("tests.pipeline.test_architecture:own", {"widths": [3]})


def own(*, widths: list[int]) -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, widths[0], 3), nn.Flatten(), nn.Linear(widths[0] * 36, 2))


def test_blocks_and_inner_widths_of_resnets() -> None:
    from infoprune.errors import UserError

    usual, same = cifar_resnet.build(depth=14), cifar_resnet.build(blocks=[2, 2, 2], inner=[16, 16, 32, 32, 64, 64])
    assert shapes(usual) == shapes(same)
    for options, words in (
        ({"blocks": [1, 2]}, "expected 3 numbers, one per stage"),
        ({"blocks": [0, 1, 1]}, "blocks = .*: expected a list of whole numbers, each from 1"),
        ({"depth": 8, "inner": [4]}, "expected 3 numbers, one per block"),
        ({"depth": 8, "inner": [0, 1, 1]}, "inner = .*: expected a list of whole numbers, each from 1"),
    ):
        with pytest.raises(UserError, match=words):
            cifar_resnet.build(**options)

"""Gradient steps per block: every block ends no worse, and blocks are cut where one value is alive."""

import copy

import pytest
import torch
from torch import nn

from infoprune.models import cifar_resnet
from infoprune.repairing.graph_replay import Walker
from infoprune.repairing.reconstruct import find_blocks, reconstruct
from infoprune.repairing.repair import repair
from tests.repairing.test_repair import difference, resnet


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def test_reconstruction_lowers_every_blocks_error() -> None:
    model, pruned, graph, kept, batches = resnet()
    modes = [module.training for module in pruned.modules()]
    report = repair(pruned, model, graph, kept, batches, method="reconstruct", steps=20)
    blocks = [layer for layer in report.layers if layer.target == "block"]
    assert len(blocks) >= 3
    assert all(block.error_after <= block.error_before for block in blocks)
    assert sum(block.error_after < block.error_before for block in blocks) >= 2
    assert modes == [module.training for module in pruned.modules()]
    assert all(parameter.requires_grad and parameter.grad is None for parameter in pruned.parameters())


def test_reconstruction_of_no_steps_corrects_statistics_and_changes_no_output() -> None:
    model, pruned, graph, kept, batches = resnet()
    before = copy.deepcopy(pruned)
    reconstruct(pruned, model, graph, kept, batches, steps=0)
    assert difference(pruned, before) < 1e-5
    norm, old = pruned.layer1[0].bn2, before.layer1[0].bn2
    assert not torch.allclose(norm.running_mean, old.running_mean, atol=1e-2)


def test_blocks_are_cut_where_one_value_is_alive() -> None:
    model = cifar_resnet.build(depth=8)
    outputs = {name: range(m.out_channels) for name, m in model.named_modules() if isinstance(m, nn.Conv2d)}
    blocks = find_blocks(Walker(model), model, {**outputs, "linear": range(10)})
    convolutions = [[name for name in block.modules if "conv" in name or name == "linear"] for block in blocks]
    # The stem runs until the first sum, since the shortcut reads its output.
    assert convolutions == [
        ["conv1", "layer1.0.conv1", "layer1.0.conv2"],
        ["layer2.0.conv1", "layer2.0.conv2"],
        ["layer3.0.conv1", "layer3.0.conv2"],
        ["linear"],
    ]  # fmt: skip

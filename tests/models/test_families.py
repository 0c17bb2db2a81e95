"""LeNet, AlexNet, VGG and DenseNet: published sizes, any width per convolution, and cuts that are sound."""

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from infoprune.errors import UserError
from infoprune.graph.channels import ChannelGraph
from infoprune.models import alexnet, densenet, lenet, vgg
from infoprune.planning.plan import GroupPlan, Plan
from infoprune.pruning.channel_graph import channel_graph
from infoprune.pruning.prune import prune
from infoprune.pruning.verify import verify

Build = Callable[..., nn.Module]
# Small ones, with the shape of an image; activations that are not 0 at 0 make masking and removal differ if wrong.
SMALL: list[tuple[Build, dict[str, Any], tuple[int, ...]]] = [
    (lenet.build, {}, (1, 28, 28)),
    (lenet.build, {"activation": "sigmoid", "size": 32, "input_channels": 3, "hidden": []}, (3, 32, 32)),
    (alexnet.build, {"widths": [4, 6, 8, 10], "hidden": [12, 9], "classes": 7, "dropout": 0.5}, (3, 64, 64)),
    (alexnet.build, {"widths": [4, 6, 8, 10], "hidden": [12, 9], "activation": "tanh", "size": 33}, (3, 33, 33)),
    (vgg.build, {"depth": 11, "widths": [4, 6, 8, 8, 6, 6, 5, 5]}, (3, 32, 32)),
    (densenet.build, {"depth": 10, "growth": 4}, (3, 16, 16)),
    (densenet.build, {"depth": 7, "widths": [6, 3, 4, 5, 6, 2], "input_channels": 1}, (1, 16, 16)),
]


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def convolutions(model: nn.Module) -> list[int]:
    return [module.out_channels for module in model.modules() if isinstance(module, nn.Conv2d)]


# LeCun et al. have 60,000, with a partly connected second convolution. VGG: the convolutions of 1409.1556, plus norms
# and one linear layer. DenseNet: 1.0 M in the paper's table 2.
@pytest.mark.parametrize(
    ("build", "options", "count"),
    [
        (lenet.build, {}, 61_706),
        (vgg.build, {"depth": 11}, 9_228_362),
        (vgg.build, {"depth": 13}, 9_413_066),
        (vgg.build, {"depth": 16}, 14_724_042),
        (vgg.build, {"depth": 19}, 20_035_018),
        (densenet.build, {}, 1_019_722),
    ],
)
def test_published_sizes(build: Build, options: dict[str, Any], count: int) -> None:
    with torch.device("meta"):  # shapes without numbers
        assert parameters(build(**options)) == count


def test_widths_are_those_of_the_convolutions_in_forward_order() -> None:
    assert convolutions(lenet.build(widths=[3, 5])) == [3, 5]
    assert convolutions(alexnet.build(widths=[3, 5, 7, 9])) == [3, 5, 7, 9]
    assert convolutions(vgg.build(depth=13, widths=list(range(1, 11)))) == list(range(1, 11))
    assert convolutions(densenet.build(depth=7, widths=[6, 3, 4, 5, 6, 2])) == [6, 3, 4, 5, 6, 2]
    assert len(convolutions(densenet.build())) == 39


def test_maps_have_the_sizes_of_the_papers() -> None:
    sizes: dict[str, tuple[int, ...]] = {}
    model = vgg.build(depth=16, widths=[2] * 13).eval()
    for name, module in model.named_children():
        module.register_forward_hook(lambda _, __, out, name=name: sizes.update({name: tuple(out.shape[2:])}))
    model(torch.zeros(1, 3, 32, 32))
    assert sizes["conv5_3"] == (2, 2)
    assert sizes["pool5"] == (1, 1)
    lecun = lenet.build()
    assert lecun.pool2(lecun.conv2(lecun.pool1(lecun.conv1(torch.zeros(1, 1, 28, 28))))).shape == (1, 16, 5, 5)


def test_a_dense_layer_puts_its_maps_behind_what_it_read() -> None:
    layer = densenet.DenseLayer(5, 3).eval()
    x = torch.randn(2, 5, 4, 4)
    out = layer(x)
    torch.testing.assert_close(out[:, :5], x, rtol=0, atol=0)
    torch.testing.assert_close(out[:, 5:], layer.conv(torch.relu(layer.bn(x))), rtol=0, atol=0)


@pytest.mark.parametrize("activation", ["relu", "sigmoid", "tanh"])
def test_initial_signals_keep_their_size(activation: Any) -> None:
    """An initialisation that suits the activation lets the images' differences through to the logits."""
    logits = lenet.build(activation=activation)(torch.randn(64, 1, 28, 28))
    assert 0.05 < logits.std(0).mean() < 20


def random_plan(graph: ChannelGraph, seed: int) -> Plan:
    draw = random.Random(seed)
    groups = []
    for group in graph.groups:
        if not group.refusal:
            kept = sorted(draw.sample(range(group.width), draw.randint(1, group.width - 1)))
            groups.append(GroupPlan(group.name, tuple(kept), group.width, len(kept), 0, 0, "by chance"))
    return Plan(tuple(groups), {}, 0, 0, graph.input_shape)


def unusual(model: nn.Module) -> nn.Module:
    """Norms and biases as after training, not as at the start, where some mistakes would not show."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
        elif getattr(module, "bias", None) is not None:
            nn.init.normal_(module.bias)
    return model.eval()


@pytest.mark.parametrize("case", range(len(SMALL)))
def test_random_cuts_equal_the_masked_network(case: int) -> None:
    build, options, shape = SMALL[case]
    model, images = unusual(build(**options)), torch.randn(3, *shape)
    graph = channel_graph(model, images)
    refused = [group.name for group in graph.groups if group.refusal]
    assert refused in (["head"], ["linear"]), "only the logits must stay whole"
    for seed in range(3):
        plan = random_plan(graph, seed)
        pruned = prune(model, plan)
        assert verify(model, pruned, graph, plan.kept(), images).max_rel_difference <= 1e-5
        assert parameters(pruned) < parameters(model)


def test_the_widths_of_a_cut_network_build_the_same_architecture() -> None:
    model, images = vgg.build(depth=11, widths=[4, 6, 8, 8, 6, 6, 5, 5]).eval(), torch.randn(2, 3, 32, 32)
    pruned = prune(model, random_plan(channel_graph(model, images), 0))
    narrow = vgg.build(depth=11, widths=convolutions(pruned))
    assert {n: v.shape for n, v in pruned.state_dict().items()} == {n: v.shape for n, v in narrow.state_dict().items()}


def logits_of(build: Build, options: dict[str, Any], shape: tuple[int, ...]) -> Tensor:
    torch.manual_seed(3)
    logits: Tensor = build(**options).eval()(torch.ones(2, *shape))
    return logits


@pytest.mark.parametrize("case", range(len(SMALL)))
def test_the_same_seed_gives_the_same_network(case: int) -> None:
    assert torch.equal(logits_of(*SMALL[case]), logits_of(*SMALL[case]))


@pytest.mark.parametrize(
    ("build", "options", "words"),
    [
        (lenet.build, {"widths": [6]}, r"widths \[6\]; expected 2 numbers"),
        (lenet.build, {"hidden": [10, 0]}, r"hidden = \[10, 0\]: expected a list of whole numbers, each from 1"),
        (lenet.build, {"activation": "swish"}, "activation 'swish'; expected relu, sigmoid, tanh"),
        (lenet.build, {"size": 11}, "size = 11: expected a whole number from 12"),
        (lenet.build, {"classes": 0}, "classes = 0: expected a whole number from 1"),
        (alexnet.build, {"widths": [1, 2, 3, 0]}, "expected a list of whole numbers, each from 1"),
        (alexnet.build, {"hidden": [5]}, "hidden"),
        (alexnet.build, {"dropout": 1.0}, "dropout = 1.0: expected a number from 0 to below 1"),
        (alexnet.build, {"size": 15}, "expected a whole number from 16"),
        (vgg.build, {"depth": 12}, "depth 12; expected 11, 13, 16, 19"),
        (vgg.build, {"widths": [64] * 12}, "expected 13 numbers"),
        (densenet.build, {"depth": 41}, "such as 40 or 43"),
        (densenet.build, {"depth": 4}, "depth = 4: expected a whole number from 7"),
        (densenet.build, {"growth": 0}, "growth = 0: expected a whole number from 1"),
        (densenet.build, {"widths": [16, 12]}, "densenet-40 got widths .*expected 39 numbers"),
    ],
)
def test_families_refuse_what_they_cannot_build(build: Build, options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        build(**options)

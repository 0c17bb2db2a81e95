"""Repair held to known answers: what a cut leaves determined comes back exactly, and nothing else changes."""

import copy
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from infoprune.errors import UserError
from infoprune.graph.channels import ChannelGraph
from infoprune.models import cifar_resnet
from infoprune.planning.plan import GroupPlan, Plan
from infoprune.pruning.channel_graph import channel_graph
from infoprune.pruning.prune import prune
from infoprune.repairing.repair import recalibrate, repair

Kept = dict[str, tuple[int, ...]]


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def images(batches: int = 3, samples: int = 16, size: int = 8, channels: int = 3) -> list[tuple[Tensor, Tensor]]:
    return [(torch.randn(samples, channels, size, size), torch.zeros(samples)) for _ in range(batches)]


def settled(model: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> nn.Module:
    """A model whose batch norms have seen data and whose affine terms are nothing special."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
    recalibrate(model, batches)
    return model.eval()


def cut(model: nn.Module, kept: Kept, size: int = 8, channels: int = 3) -> tuple[nn.Module, ChannelGraph]:
    graph = channel_graph(model, torch.zeros(1, channels, size, size))
    full = {group.name: group.width for group in graph.groups}
    groups = tuple(GroupPlan(name, own, full[name], len(own), 0, 0, "") for name, own in kept.items())
    return prune(model, Plan(groups, {}, 0, 0, graph.input_shape)), graph


def difference(one: nn.Module, other: nn.Module) -> float:
    x = torch.randn(8, 3, 8, 8)
    with torch.no_grad():
        return float((one(x) - other(x)).abs().max() / other(x).abs().max())


def duplicate(producer: nn.Module, norm: nn.Module | None, rows: Sequence[int]) -> None:
    """Filters `rows` become copies of the first two in turn."""
    for module in (producer, norm):
        for name in ("weight", "bias", "running_mean", "running_var"):
            tensor = getattr(module, name, None)
            for row in rows if isinstance(tensor, Tensor) else ():
                tensor.data[row] = tensor[row % 2]


class Chain(nn.Module):
    """A convolution, a consumer of each kind, and a linear layer behind a flatten."""

    def __init__(self, norm: bool = True, bias: bool = False, activation: Callable[[Tensor], Tensor] = F.relu) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, padding=1, bias=bias)
        self.norm1 = nn.BatchNorm2d(6) if norm else nn.Identity()
        self.second = nn.Conv2d(6, 4, 3, stride=2, padding=1, padding_mode="reflect", bias=bias)
        self.norm2 = nn.BatchNorm2d(4) if norm else nn.Identity()
        self.head = nn.Linear(4 * 16, 5)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        x = self.activation(self.norm1(self.first(x)))
        x = self.activation(self.norm2(self.second(x)))
        return self.head(x.flatten(1))


class Depthwise(nn.Module):
    """An inverted residual block: expansion, depthwise, projection, and a sum; in-place activations."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.block = nn.Sequential(
            nn.Conv2d(4, 8, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU6(inplace=True),
            nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False), nn.BatchNorm2d(8), nn.ReLU6(inplace=True),
            nn.Conv2d(8, 4, 1, bias=False), nn.BatchNorm2d(4),
        )  # fmt: skip
        self.head = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head((x + self.block(x)).mean((2, 3)))


class Concat(nn.Module):
    """Two branches read by one layer, of which one is cut."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(3, 4, 1)
        self.join = nn.Conv2d(10, 4, 3, padding=1)
        self.head = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        both = torch.cat([F.relu(self.left(x)), F.relu(self.right(x))], 1)
        return self.head(F.relu(self.join(both)).mean((2, 3)))


class Untraceable(Chain):
    """Its forward pass depends on values, which torch.fx cannot follow."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if x.sum() > -1e9 else -x)


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("method", ["consumers", "all"])
def test_duplicated_filters_come_back_exactly(norm: bool, bias: bool, method: str) -> None:
    batches = images()
    model = settled(Chain(norm, bias), batches)
    duplicate(model.first, model.norm1 if norm else None, [2, 3])
    pruned, graph = cut(model, {"first": (0, 1, 4, 5)})
    assert difference(pruned, model) > 0.01
    repair(pruned, model, graph, {"first": (0, 1, 4, 5)}, batches, scope=method, positions=0)
    assert difference(pruned, model) < 2e-6


def test_linearly_dependent_filters_come_back_exactly() -> None:
    batches = images()
    model = settled(Chain(activation=lambda x: 1.5 * x), batches)
    norm, first = model.norm1, model.first.weight
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    with torch.no_grad():  # Behind the norm, filter 5 is half of filter 0 minus twice filter 1 plus a constant.
        first[5] = (0.5 * scale[0] * first[0] - 2 * scale[1] * first[1]) / scale[5]
        norm.bias[5] = 3.0
    kept = {"first": (0, 1, 2, 3, 4)}
    pruned, graph = cut(model, kept)
    assert difference(pruned, model) > 0.01
    repair(pruned, model, graph, kept, batches, positions=0)
    assert difference(pruned, model) < 5e-6


@pytest.mark.parametrize(
    ("build", "kept"),
    [
        (lambda: Depthwise(), {"block.0": (0, 1, 4, 5, 6, 7)}),
        (lambda: Concat(), {"left": (0, 1, 4, 5)}),
    ],
    ids=["depthwise", "concat"],
)
def test_other_consumers_come_back_exactly(build: Callable[[], nn.Module], kept: Kept) -> None:
    batches = images()
    model = settled(build(), batches)
    if isinstance(model, Depthwise):
        for first in (0, 3):
            duplicate(model.block[first], model.block[first + 1], [2, 3])
    else:
        duplicate(model.left, None, [2, 3])
    pruned, graph = cut(model, kept)
    assert difference(pruned, model) > 0.01
    repair(pruned, model, graph, kept, batches, positions=0)
    assert difference(pruned, model) < 5e-6


def test_linear_behind_a_flatten() -> None:
    batches = images()
    model = settled(Chain(), batches)
    duplicate(model.second, model.norm2, [2, 3])
    pruned, graph = cut(model, {"second": (0, 1)})
    batches = images(8)  # 32 inputs of the linear layer need more samples than that
    report = repair(pruned, model, graph, {"second": (0, 1)}, batches)
    assert [layer.layer for layer in report.layers] == ["head"]
    assert difference(pruned, model) < 1e-5


def resnet() -> tuple[nn.Module, nn.Module, ChannelGraph, Kept, list[tuple[Tensor, Tensor]]]:
    batches = images(4, 24)
    model = settled(cifar_resnet.build(depth=8, widths=[6, 8, 10]), batches)
    kept: Kept = {"layer1.0.conv1": (0, 2, 5), "layer2.0.conv1": (1, 2, 3, 4), "layer3.0.conv1": (0, 1, 2, 7, 9)}
    pruned, graph = cut(model, kept)
    return model, pruned, graph, kept, batches


def test_residual_sums_are_the_target_and_no_layer_gets_worse() -> None:
    model, pruned, graph, kept, batches = resnet()
    before = difference(pruned, model)
    report = repair(pruned, model, graph, kept, batches, scope="consumers")
    assert [(layer.layer, layer.target) for layer in report.layers] == [
        ("layer1.0.conv2", "sum"), ("layer2.0.conv2", "sum"), ("layer3.0.conv2", "sum"),
    ]  # fmt: skip
    assert all(layer.error_after <= layer.error_before for layer in report.layers)
    assert difference(pruned, model) < 0.8 * before


def test_the_shortcuts_error_is_taken_in() -> None:
    """A stream that lost a channel: a later block, itself uncut, can put out what the shortcut lacks."""
    batches = images(6)
    model = settled(Depthwise(), batches)
    with torch.no_grad():
        model.stem.weight[3] = 0  # a constant channel: all that its removal takes away is a constant
        model.stem.bias[3] = 2.0
    kept = {"stem": (0, 1, 2)}
    pruned, graph = cut(model, kept)
    assert graph.groups[0].name == "stem"
    report = repair(pruned, model, graph, kept, batches, positions=0)
    assert next(layer for layer in report.layers if layer.layer == "block.6").target == "sum"
    assert {layer.layer for layer in report.layers} == {"block.0", "block.3", "block.6", "head"}


def test_only_consumers_and_their_norms_change_and_everything_else_stays() -> None:
    model, pruned, graph, kept, batches = resnet()
    teacher = copy.deepcopy(model.state_dict())
    before = {name: value.clone() for name, value in pruned.state_dict().items()}
    pruned.layer1[0].bn1.train()
    pruned.layer2[0].conv2.weight.requires_grad_(False)
    modes = [module.training for module in pruned.modules()]
    steps: list[tuple[int, int]] = []
    repair(pruned, model, graph, kept, batches, lambda *at: steps.append(at), scope="consumers")
    changed = {name for name, value in pruned.state_dict().items() if not torch.equal(value, before[name])}
    blocks = ("layer1.0", "layer2.0", "layer3.0")
    parts = ("conv2.weight", "bn2.weight", "bn2.bias", "bn2.running_mean", "bn2.running_var")
    assert changed == {f"{block}.{part}" for block in blocks for part in parts}
    assert modes == [module.training for module in pruned.modules()]
    assert not pruned.layer2[0].conv2.weight.requires_grad
    assert all(torch.equal(value, teacher[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks for net in (pruned, model) for module in net.modules())
    assert steps == [(1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize("method", ["compensate", "reconstruct"])
def test_statistics_written_are_the_true_ones(method: str) -> None:
    """A recalibration on the same images finds about what is there: the norms before it change a little."""
    model, pruned, graph, kept, batches = resnet()
    repair(pruned, model, graph, kept, batches, method=method, scope="consumers", positions=0, steps=10)
    norm = pruned.layer1[0].bn2
    mean, var = norm.running_mean.clone(), norm.running_var.clone()
    recalibrate(pruned, batches)
    assert torch.allclose(norm.running_mean, mean, atol=5e-3)
    assert torch.allclose(norm.running_var, var, rtol=2e-2)


def test_a_small_cache_changes_time_and_nothing_else() -> None:
    model, pruned, graph, kept, batches = resnet()
    again = copy.deepcopy(pruned)
    repair(pruned, model, graph, kept, batches)
    repair(again, model, graph, kept, batches, cache_mb=0)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in pruned.state_dict().items())


def test_an_untraceable_model_is_refitted_to_its_layers_own_outputs() -> None:
    batches = images()
    model = settled(Untraceable(bias=True), batches)
    duplicate(model.first, model.norm1, [2, 3])
    kept = {"first": (0, 1, 4, 5)}
    pruned, graph = cut(model, kept)
    report = repair(pruned, model, graph, kept, batches, positions=0)
    assert {layer.target for layer in report.layers} == {"output"}
    assert "cannot be traced" in report.notes[0]
    assert difference(pruned, model) < 5e-6


def test_recalibration_finds_the_mean_and_variance_of_all_batches() -> None:
    batches = images(4, 8)
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Dropout(0.9))
    model[0].train(False)
    recalibrate(model, batches)
    everything = torch.cat([batch for batch, _ in batches])
    variances = torch.stack([batch.var((0, 2, 3)) for batch, _ in batches])
    assert torch.allclose(model[0].running_mean, everything.mean((0, 2, 3)), atol=1e-6)
    assert torch.allclose(model[0].running_var, variances.mean(0), rtol=1e-5)
    assert model[0].momentum == 0.1
    assert not model[0].training
    assert model[1].training


@pytest.mark.parametrize("method", ["compensate", "reconstruct", "batch_norm"])
def test_bad_input_is_refused(method: str) -> None:
    model, pruned, graph, kept, batches = resnet()
    with pytest.raises(UserError, match="no calibration images"):
        repair(pruned, model, graph, kept, [], method=method)
    broken = [(batch.clone(), label) for batch, label in batches]
    broken[1][0][0, 0, 0, 0] = float("nan")
    with pytest.raises(UserError, match="NaN"):
        repair(pruned, model, graph, kept, broken, method=method)


def test_a_plan_of_another_network_is_refused() -> None:
    model, pruned, graph, kept, batches = resnet()
    with pytest.raises(UserError, match="should have 6 filters"):
        repair(pruned, model, graph, {}, batches)
    with pytest.raises(UserError, match="positions = -1"):
        repair(pruned, model, graph, kept, batches, positions=-1)
    with pytest.raises(UserError, match=r"ridge = 0\.0: expected a number above 0"):
        repair(pruned, model, graph, kept, batches, ridge=0.0)
    with pytest.raises(UserError, match="method is 'magic'"):
        repair(pruned, model, graph, kept, batches, method="magic")  # type: ignore[arg-type]

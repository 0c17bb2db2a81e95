"""Norms on the way of a cut: those that mix channels take their statistics over what is kept."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import FrozenBatchNorm2d

from infoprune.errors import UserError
from infoprune.graph.channels import ChannelGraph, ChannelGroup, Member
from infoprune.planning.plan import GroupPlan, Plan
from infoprune.pruning.channel_graph import channel_graph
from infoprune.pruning.prune import prune
from infoprune.pruning.verify import masked
from infoprune.repairing.repair import repair

Prove = Callable[..., tuple[nn.Module, dict[str, str]]]


class MapNorm(nn.LayerNorm):
    """Over the channels of maps, as ConvNeXt's."""

    def forward(self, maps: Tensor) -> Tensor:
        return super().forward(maps.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Block(nn.Module):
    """A ConvNeXt block: depthwise, channels last, two linear layers, a scale per channel outside layers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.depthwise, self.norm = nn.Conv2d(width, width, 3, padding=1, groups=width), nn.LayerNorm(width)
        self.wide, self.narrow = nn.Linear(width, 3 * width), nn.Linear(3 * width, width)
        self.scale = nn.Parameter(torch.rand(width, 1, 1) + 0.5)

    def forward(self, maps: Tensor) -> Tensor:
        inner = self.norm(self.depthwise(maps).permute(0, 2, 3, 1))
        return maps + self.scale * self.narrow(F.gelu(self.wide(inner))).permute(0, 3, 1, 2)


def convnext() -> nn.Module:
    """Two stages of one block, as small as they come."""
    stem, between = nn.Sequential(nn.Conv2d(3, 8, 2, 2), MapNorm(8)), nn.Sequential(MapNorm(8), nn.Conv2d(8, 12, 2, 2))
    return nn.Sequential(stem, Block(8), between, Block(12), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 4))


class Residual(nn.Module):
    """A residual block with group norms."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.one, self.two = (nn.Conv2d(width, width, 3, padding=1, bias=False) for _ in range(2))
        self.norm_one, self.norm_two = nn.GroupNorm(groups, width), nn.GroupNorm(groups, width)

    def forward(self, maps: Tensor) -> Tensor:
        return F.relu(maps + self.norm_two(self.two(F.relu(self.norm_one(self.one(maps))))))


def group_resnet(groups: int = 4) -> nn.Module:
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 4))
    stem = (nn.Conv2d(3, 12, 3, padding=1), nn.GroupNorm(groups, 12), nn.ReLU())
    return nn.Sequential(*stem, Residual(12, groups), Residual(12, groups), *head)


def between(norm: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 12, 3), norm, nn.Sigmoid(), nn.Conv2d(12, 5, 3), nn.Flatten(), nn.LazyLinear(3))


def unsettled(model: nn.Module) -> nn.Module:
    """Affine terms and statistics that are nothing special."""
    model(torch.randn(2, 3, 8, 8))  # lazy layers
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.dim() == 1 and tensor.is_floating_point():
            with torch.no_grad():
                tensor.uniform_(0.5, 2) if name.endswith(("weight", "var")) else tensor.normal_()
    return model.eval()


NORMS: dict[str, Callable[[], nn.Module]] = {
    "group": lambda: nn.GroupNorm(3, 12),
    "group, one part": lambda: nn.GroupNorm(1, 12),
    "group, a part per channel": lambda: nn.GroupNorm(12, 12),
    "group, plain": lambda: nn.GroupNorm(4, 12, affine=False),
    "layer over maps' channels": lambda: MapNorm(12),
    "layer, plain": lambda: MapNorm(12, elementwise_affine=False),
    "layer without bias": lambda: MapNorm(12, bias=False),
    "instance": lambda: nn.InstanceNorm2d(12),
    "instance with statistics": lambda: nn.InstanceNorm2d(12, affine=True, track_running_stats=True),
    "batch": lambda: nn.BatchNorm2d(12),
    "batch, plain": lambda: nn.BatchNorm2d(12, affine=False),
    "batch without statistics": lambda: nn.BatchNorm2d(12, track_running_stats=False),
    "frozen batch": lambda: FrozenBatchNorm2d(12),
}


@pytest.mark.parametrize("share", [0.25, 0.5, 0.75])
@pytest.mark.parametrize("name", NORMS)
def test_every_norm_is_cut_whole(name: str, share: float, prove: Prove) -> None:
    model = unsettled(between(NORMS[name]()))
    pruned, refused = prove(model, torch.randn(4, 3, 8, 8), share)
    assert list(refused) == ["5"]
    width = len(pruned[0].weight)
    assert width < 12
    assert type(pruned[1]) is type(model[1])
    left = [tensor for tensor in (*pruned[1].parameters(), *pruned[1].buffers()) if tensor.dim() == 1]
    assert all(len(tensor) == width for tensor in left)


@pytest.mark.parametrize("make", [convnext, group_resnet])
@pytest.mark.parametrize("share", [0.25, 0.5, 0.75])
def test_residual_streams_with_norms_that_mix(make: Callable[[], nn.Module], share: float, prove: Prove) -> None:
    pruned, refused = prove(unsettled(make()), torch.randn(4, 3, 8, 8), share)
    assert len(refused) == 1  # the head
    if make is convnext:
        assert pruned[1].scale.shape == (len(pruned[0][0].weight), 1, 1)
        assert pruned[1].norm.normalized_shape == (len(pruned[0][0].weight),)


def test_many_channels_of_a_layer_norm_stay_in_order(prove: Prove) -> None:
    # Python's sets of many small numbers are no longer sorted, and torch-pruning takes a layer norm's from one.
    model = nn.Sequential(nn.Linear(5, 300), nn.LayerNorm(300), nn.ReLU(), nn.Linear(300, 3))
    nn.init.normal_(model[1].weight)
    for share in (0.03, 0.1, 0.3):
        prove(model.eval(), torch.randn(4, 5), share)


def test_masked_norm_is_the_norm_of_what_is_kept() -> None:
    norm, maps, kept = nn.LayerNorm(6), torch.randn(2, 6), [0, 2, 5]
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    model = nn.Sequential(nn.Identity(), norm)
    group = ChannelGroup("0", 6, (Member("1", "out", tuple((c,) for c in range(6))),))
    with masked(model, ChannelGraph((group,), (), (6,)), {"0": kept}):
        found = model(maps)
    mean, spread = maps[:, kept].mean(1, keepdim=True), maps[:, kept].var(1, correction=0, keepdim=True)
    expected = (maps[:, kept] - mean) / (spread + norm.eps).sqrt() * norm.weight[kept] + norm.bias[kept]
    torch.testing.assert_close(found[:, kept], expected)
    assert not found[:, [1, 3, 4]].any()
    torch.testing.assert_close(model(maps), norm(maps))  # and the mask is gone


def test_group_norm_keeps_as_many_in_each_part() -> None:
    model, images = group_resnet(4).eval(), torch.randn(2, 3, 8, 8)
    graph = channel_graph(model, images)
    assert {group.name: group.partitions for group in graph.groups} == {"0": 4, "3.one": 4, "4.one": 4, "7": 1}
    plan = Plan((GroupPlan("3.one", (0, 1, 2, 3, 4, 6, 8, 9), 12, 8, 0, 0, ""),), {}, 0, 0, graph.input_shape)
    with pytest.raises(UserError, match="keep the same 3-channel pattern in each part"):
        prune(model, plan)


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (nn.LayerNorm((12, 6, 6)), "'1' normalises over several axes, not over channels alone"),
        (nn.Conv2d(12, 24, 1, groups=12), "'1' is a depthwise convolution with several filters per channel"),
    ],
)
def test_what_cannot_be_cut_says_why(layer: nn.Module, reason: str) -> None:
    model = unsettled(nn.Sequential(nn.Conv2d(3, 12, 3), layer, nn.LazyConv2d(2, 1)))
    graph = channel_graph(model, torch.randn(2, 3, 8, 8))
    assert graph.groups[0].refusal == reason


def test_parts_that_branches_share_are_refused() -> None:
    class Joined(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 8, 1)
            self.norm, self.head = nn.GroupNorm(3, 12), nn.Conv2d(12, 2, 1)

        def forward(self, images: Tensor) -> Tensor:
            return self.head(self.norm(torch.cat([self.left(images), self.right(images)], 1)))

    reasons = {group.name: group.refusal for group in channel_graph(Joined().eval(), torch.randn(2, 3, 4, 4)).groups}
    assert reasons["left"] == reasons["right"] == "'norm' works in 3 parts, which its channels do not fill in order"


@pytest.mark.parametrize("make", [convnext, group_resnet])
@pytest.mark.parametrize("method", ["compensate", "reconstruct"])
def test_repair_works_behind_norms_that_mix(make: Callable[[], nn.Module], method: str) -> None:
    model = unsettled(make())
    batches = [(torch.randn(16, 3, 8, 8), torch.zeros(16)) for _ in range(4)]
    graph = channel_graph(model, batches[0][0])
    kept = {}
    for group in graph.groups:
        if not group.refusal:
            part = group.width // group.partitions
            kept[group.name] = tuple(c for c in range(group.width) if c % part < (part + 1) // 2)
    widths = {group.name: group.width for group in graph.groups}
    groups = tuple(GroupPlan(n, k, widths[n], len(k), 0, 0, "") for n, k in kept.items())
    plan = Plan(groups, {}, 0, 0, graph.input_shape)
    pruned = prune(model, plan)

    def error() -> float:
        with torch.no_grad():
            return sum(float(F.mse_loss(pruned(images), model(images))) for images, _ in batches)

    before = error()
    repair(pruned, model, graph, kept, batches, method=method, steps=20)
    assert error() < 0.5 * before

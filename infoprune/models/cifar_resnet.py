"""The thin residual networks of He et al. for small images (CIFAR-10 ResNet-20, 32, 44, 56, 110).

Layer names are those of the widely used pretrained weights of github.com/akamaster/pytorch_resnet_cifar10.
"""

from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise
from typing import Annotated, Any, Literal

from msgspec import Meta
from torch import Tensor, nn
from torch.nn import functional as F

from infoprune.config.ranges import Channels, Classes, Width, in_range
from infoprune.errors import UserError

Shortcut = Literal["pad", "projection"]
STAGE_WIDTHS = (16, 32, 64)


class PadShortcut(nn.Module):
    """He et al.'s shortcut "option A": every `stride`-th pixel, with new channels of zeros on both sides; no weights.

    `samples x inputs x height x width` becomes `samples x outputs x height/stride x width/stride`.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.stride, self.before = stride, (outputs - inputs) // 2
        self.after = outputs - inputs - self.before

    def forward(self, x: Tensor) -> Tensor:
        # A 1x1 pooling picks the same pixels as x[:, :, ::stride, ::stride], and every tracer and exporter knows it.
        picked = F.avg_pool2d(x, kernel_size=1, stride=self.stride)
        return F.pad(picked, (0, 0, 0, 0, self.before, self.after))


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with batch norm, added to the shortcut; each ReLU is a module of its own to be observed."""

    def __init__(self, inputs: int, inner: int, outputs: int, stride: int, shortcut: Shortcut) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, inner, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(inner, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = (
                PadShortcut(inputs, outputs, stride)
                if shortcut == "pad"
                else nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
            )
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu1(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        out: Tensor = self.relu2(y + self.shortcut(x))
        return out


class CifarResNet(nn.Module):
    """A convolution, stages of residual blocks (all but the first halve the maps), mean over the map, a classifier."""

    def __init__(
        self,
        blocks: Sequence[int],
        classes: int,
        channels: int,
        shortcut: Shortcut,
        widths: Sequence[int],
        inner: Sequence[int],
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, widths[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.relu = nn.ReLU()
        self.stages = len(widths)
        inputs, inside = widths[0], iter(inner)
        for stage, width in enumerate(widths, start=1):
            stride = 1 if stage == 1 else 2
            layer = [ResidualBlock(inputs, next(inside), width, stride, shortcut)]
            layer += [ResidualBlock(width, next(inside), width, 1, shortcut) for _ in range(blocks[stage - 1] - 1)]
            self.add_module(f"layer{stage}", nn.Sequential(*layer))
            inputs = width
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        for stage in self._stages():
            x = self.get_submodule(f"layer{stage}")(x)
        logits: Tensor = self.linear(self.pool(x).flatten(1))
        return logits

    def arguments_for(self, widths: Mapping[str, int], removed: Collection[str]) -> dict[str, Any]:
        """Arguments of `build` for a network with these filters per layer and without these blocks.

        Args:
            widths: filters of every convolution by its name.
            removed: names of blocks (`layer1.2`).
        """
        stages = [
            [f"layer{s}.{n}" for n, _ in self.get_submodule(f"layer{s}").named_children()] for s in self._stages()
        ]
        left = [[block for block in stage if block not in removed] for stage in stages]
        return {
            "blocks": [len(stage) for stage in left],
            "widths": [widths[f"{stage[0]}.conv2"] for stage in left],
            "inner": [widths[f"{block}.conv1"] for stage in left for block in stage],
        }

    def _stages(self) -> range:
        return range(1, self.stages + 1)


@in_range("[model]")
def build(
    *,
    depth: Annotated[int, Meta(ge=4, le=2_000)] = 20,
    classes: Classes = 10,
    input_channels: Channels = 3,
    shortcut: Shortcut = "pad",
    widths: list[Width] | None = None,
    blocks: list[Annotated[int, Meta(ge=1, le=1_000)]] | None = None,
    inner: list[Width] | None = None,
) -> CifarResNet:
    """A residual network for small images, with random weights (He initialisation, from torch's global seed).

    It maps `samples x input_channels x height x width` to logits, `samples x classes`. Source: He et al., "Deep
    residual learning for image recognition", CVPR 2016, section 4.2.

    >>> sum(parameter.numel() for parameter in build(depth=56).parameters())  # 0.85 M in the paper's table 6
    853018

    Args:
        depth: number of weighted layers, 6n + 2 with the usual three stages (2n per stage, + 2).
        classes: number of outputs.
        input_channels: channels of the images.
        shortcut: where the width or resolution changes: "pad" with zeros (no weights) or a 1x1 "projection" with norm.
        widths: filters of each stage; 16, 32, 64 if not given.
        blocks: residual blocks of each stage, in place of `depth`.
        inner: filters of each block's first convolution, in the order of the forward pass; its stage's if not given.

    Raises:
        UserError: for a depth that whole blocks cannot make, numbers out of range, as many of them as do not fit, or
            widths that shrink under "pad".
    """
    stages = tuple(widths) if widths is not None else STAGE_WIDTHS
    if not stages:
        raise UserError("cifar_resnet got widths []; expected at least one stage")
    counts = [_blocks(depth, len(stages))] * len(stages) if blocks is None else list(blocks)
    if len(counts) != len(stages):
        raise UserError(f"cifar_resnet got blocks {counts}; expected {len(stages)} numbers, one per stage")
    inside = [width for width, count in zip(stages, counts, strict=True) for _ in range(count)]
    if inner is not None and len(inner) != len(inside):
        raise UserError(f"cifar_resnet got inner {inner}; expected {len(inside)} numbers, one per block")
    if shortcut == "pad" and any(later < earlier for earlier, later in pairwise(stages)):
        raise UserError(f"widths {list(stages)} shrink, which zero-padding cannot do; set shortcut = 'projection'")
    model = CifarResNet(counts, classes, input_channels, shortcut, stages, inside if inner is None else inner)
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    return model


def _blocks(depth: int, stages: int) -> int:
    """Residual blocks per stage."""
    step = 2 * stages
    blocks, rest = divmod(depth - 2, step)
    if rest or blocks < 1:
        near = [2 + step * max(1, blocks), 2 + step * max(2, blocks + 1)]
        raise UserError(f"cifar_resnet got depth {depth}; expected {step}n + 2, such as {near[0]} or {near[1]}")
    return blocks

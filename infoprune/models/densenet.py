"""DenseNet for small images (Huang et al., "Densely connected convolutional networks", CVPR 2017, 1608.06993)."""

from collections.abc import Iterator
from typing import Annotated

import torch
from msgspec import Meta
from torch import Tensor, nn

from infoprune.config.ranges import Channels, Classes, Width, in_range
from infoprune.errors import UserError
from infoprune.models._parts import initialise, widths_of

BLOCKS = 3


class DenseLayer(nn.Module):
    """Batch norm, ReLU and a 3x3 convolution, whose maps are put behind what it read."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(inputs)
        self.relu = nn.ReLU()
        self.conv = nn.Conv2d(inputs, width, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.conv(self.relu(self.bn(x)))], dim=1)


class Transition(nn.Sequential):
    """Batch norm, ReLU, a 1x1 convolution, and mean-pooling that halves the maps."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(inputs)
        self.relu = nn.ReLU()
        self.conv = nn.Conv2d(inputs, width, 1, bias=False)
        self.pool = nn.AvgPool2d(2)


@in_range("[model]")
def build(
    *,
    depth: Annotated[int, Meta(ge=7, le=2_000)] = 40,
    growth: Width = 12,
    widths: list[Width] | None = None,
    classes: Classes = 10,
    input_channels: Channels = 3,
) -> nn.Sequential:
    """A DenseNet of three blocks without bottlenecks or compression, with random weights (He initialisation).

    It maps `samples x input_channels x height x width` to logits, `samples x classes`. Layers are named `conv0`,
    `block1.0.conv`, …, `transition1.conv`, …, `linear`.

    >>> sum(parameter.numel() for parameter in build(depth=40, growth=12).parameters())  # 1.0 M in the paper's table 2
    1019722

    Args:
        depth: number of weighted layers, 3n + 4 with n layers in each block.
        growth: filters of each layer in a block.
        widths: filters of each convolution, in the order of the forward pass: the first, those of a block, its
            transition, and so on (39 for depth 40); 16, then as `growth` says, if not given.
        classes: number of outputs.
        input_channels: channels of the images.

    Raises:
        UserError: for a depth that three equal blocks cannot make, another number of widths, or numbers out of range.
    """
    layers, rest = divmod(depth - BLOCKS - 1, BLOCKS)
    if rest:
        near = BLOCKS * layers + BLOCKS + 1
        raise UserError(f"densenet got depth {depth}; expected 3n + 4, such as {near} or {near + BLOCKS}")
    outputs = iter(widths_of(f"densenet-{depth}", widths, list(_usual(layers, growth))))
    inputs = next(outputs)
    model = nn.Sequential()
    model.add_module("conv0", nn.Conv2d(input_channels, inputs, 3, padding=1, bias=False))
    for number in range(1, BLOCKS + 1):
        block = nn.Sequential()
        for _ in range(layers):
            width = next(outputs)
            block.append(DenseLayer(inputs, width))
            inputs += width
        model.add_module(f"block{number}", block)
        if number < BLOCKS:
            width = next(outputs)
            model.add_module(f"transition{number}", Transition(inputs, width))
            inputs = width
    model.add_module("bn", nn.BatchNorm2d(inputs))
    model.add_module("relu", nn.ReLU())
    model.add_module("mean", nn.AdaptiveAvgPool2d(1))
    model.add_module("flatten", nn.Flatten())
    model.add_module("linear", nn.Linear(inputs, classes))
    initialise(model, "relu")
    return model


def _usual(layers: int, growth: int) -> Iterator[int]:
    """The paper's widths: 16, then `growth` everywhere, and transitions as wide as what they read."""
    total = 16
    yield total
    for number in range(1, BLOCKS + 1):
        yield from [growth] * layers
        total += layers * growth
        if number < BLOCKS:
            yield total

"""VGG for small images: the convolutions of Simonyan and Zisserman (1409.1556) with batch norm and one linear layer."""

from collections import OrderedDict
from typing import Annotated

from msgspec import Meta
from torch import nn

from infoprune.config.ranges import Channels, Classes, Width, in_range
from infoprune.errors import UserError
from infoprune.models._parts import initialise, widths_of

STAGE_WIDTHS = (64, 128, 256, 512, 512)
STAGES = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
"""Convolutions per stage, by the published number of weighted layers."""


@in_range("[model]")
def build(
    *,
    depth: Annotated[int, Meta(ge=11, le=19)] = 16,
    widths: list[Width] | None = None,
    classes: Classes = 10,
    input_channels: Channels = 3,
) -> nn.Sequential:
    """A VGG with batch norm for 32x32 images and up, with random weights (He initialisation).

    It maps `samples x input_channels x height x width` to logits, `samples x classes`. Layers are named as in the
    paper, `conv5_3` for the third convolution of the fifth stage. As usual for CIFAR-10 (Li et al., 1608.08710; Liu
    et al., 1810.05270) convolutions have no bias before the norm, and a single linear layer follows the last stage.

    >>> sum(parameter.numel() for parameter in build(depth=16).parameters())  # 14.72 M
    14724042

    Args:
        depth: 11, 13, 16 or 19: the paper's number of weighted layers, which counts three linear ones.
        widths: filters of each convolution, in the order of the forward pass; 64 to 512 as in the paper if not given.
        classes: number of outputs.
        input_channels: channels of the images.

    Raises:
        UserError: for an unknown depth, another number of widths, or numbers out of range.
    """
    if depth not in STAGES:
        raise UserError(f"vgg got depth {depth}; expected {', '.join(map(str, STAGES))}")
    usual = [width for width, count in zip(STAGE_WIDTHS, STAGES[depth], strict=True) for _ in range(count)]
    outputs = iter(widths_of(f"vgg-{depth}", widths, usual))
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    inputs = input_channels
    for stage, count in enumerate(STAGES[depth], start=1):
        for number in range(1, count + 1):
            width, place = next(outputs), f"{stage}_{number}"
            layers[f"conv{place}"] = nn.Conv2d(inputs, width, 3, padding=1, bias=False)
            layers[f"bn{place}"] = nn.BatchNorm2d(width)
            layers[f"relu{place}"] = nn.ReLU()
            inputs = width
        layers[f"pool{stage}"] = nn.MaxPool2d(2)
    layers["mean"] = nn.AdaptiveAvgPool2d(1)  # does nothing to 32x32 images, of which one place is left
    layers["flatten"] = nn.Flatten()
    layers["linear"] = nn.Linear(inputs, classes)
    model = nn.Sequential(layers)
    initialise(model, "relu")
    return model

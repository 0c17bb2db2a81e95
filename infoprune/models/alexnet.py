"""A small AlexNet for images of 64x64 (after Krizhevsky et al., NIPS 2012), as in "Understanding CNNs…", Sec. III."""

from collections import OrderedDict
from typing import Annotated

from msgspec import Meta
from torch import nn

from infoprune.config.ranges import Channels, Classes, ShareBelowOne, Width, in_range
from infoprune.models._parts import Activation, initialise, module_of, widths_of

WIDTHS, HIDDEN = (16, 32, 64, 128), (256, 128)
KERNELS = (5, 5, 3, 3)


@in_range("[model]")
def build(
    *,
    widths: list[Width] | None = None,
    hidden: list[Width] | None = None,
    activation: Activation = "relu",
    dropout: ShareBelowOne = 0.0,
    classes: Classes = 71,
    input_channels: Channels = 3,
    size: Annotated[int, Meta(ge=16, le=8_192)] = 64,
) -> nn.Sequential:
    """Four convolutions (5x5, 5x5, 3x3, 3x3), each with max-pooling behind it, and three linear layers; random weights.

    It maps `samples x input_channels x size x size` to logits, `samples x classes`. The paper gives the numbers of
    convolutions, of linear layers and of filters; kernels, pooling and the widths of the linear layers are ours.

    >>> import torch
    >>> build(widths=[6, 12, 16, 24], classes=5)(torch.zeros(1, 3, 64, 64)).shape
    torch.Size([1, 5])

    Args:
        widths: filters of the four convolutions; 16, 32, 64, 128 if not given.
        hidden: widths of the two linear layers before the head; 256, 128 if not given.
        activation: "relu", "sigmoid" or "tanh".
        dropout: probability, 0..1, that an input of a linear layer but the head is dropped in training.
        classes: number of outputs; Fruits-360 has 71 here.
        input_channels: channels of the images.
        size: height and width of the images, at least 16.

    Raises:
        UserError: for another number of widths, or numbers out of range.
    """
    act = module_of("alexnet", activation)
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    inputs = input_channels
    for number, (width, kernel) in enumerate(zip(widths_of("alexnet", widths, WIDTHS), KERNELS, strict=True), start=1):
        layers[f"conv{number}"] = nn.Conv2d(inputs, width, kernel, padding=kernel // 2)
        layers[f"act{number}"] = act()
        layers[f"pool{number}"] = nn.MaxPool2d(2)
        inputs = width
    layers["flatten"] = nn.Flatten()
    inputs *= (size // 2 ** len(KERNELS)) ** 2
    for number, width in enumerate(widths_of("alexnet", hidden, HIDDEN, "hidden"), start=1):
        if dropout:
            layers[f"drop{number}"] = nn.Dropout(dropout)
        layers[f"fc{number}"] = nn.Linear(inputs, width)
        layers[f"fc_act{number}"] = act()
        inputs = width
    layers["head"] = nn.Linear(inputs, classes)
    model = nn.Sequential(layers)
    initialise(model, activation)
    return model

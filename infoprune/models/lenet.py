"""LeNet-5 (LeCun et al., "Gradient-based learning applied to document recognition", Proc. IEEE 1998)."""

from typing import Annotated

from msgspec import Meta
from torch import Tensor, nn

from infoprune.config.ranges import Channels, Classes, Width, in_range
from infoprune.models._parts import Activation, initialise, module_of, widths_of

WIDTHS, HIDDEN = (6, 16), (120, 84)


class LeNet(nn.Module):
    """Two 5x5 convolutions, each with max-pooling behind it, and linear layers."""

    def __init__(
        self, widths: list[int], hidden: list[int], act: type[nn.Module], channels: int, size: int, classes: int
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, widths[0], 5, padding=2)
        self.act1 = act()
        self.pool1 = nn.MaxPool2d(2)
        self.conv2 = nn.Conv2d(widths[0], widths[1], 5)
        self.act2 = act()
        self.pool2 = nn.MaxPool2d(2)
        self.flatten = nn.Flatten()
        inputs = widths[1] * ((size // 2 - 4) // 2) ** 2
        self.hidden = len(hidden)
        for number, width in enumerate(hidden, start=1):
            self.add_module(f"fc{number}", nn.Linear(inputs, width))
            self.add_module(f"fc_act{number}", act())
            inputs = width
        self.head = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool1(self.act1(self.conv1(x)))
        x = self.flatten(self.pool2(self.act2(self.conv2(x))))
        for number in range(1, self.hidden + 1):
            x = self.get_submodule(f"fc_act{number}")(self.get_submodule(f"fc{number}")(x))
        logits: Tensor = self.head(x)
        return logits


@in_range("[model]")
def build(
    *,
    widths: list[Width] | None = None,
    hidden: list[Width] | None = None,
    activation: Activation = "relu",
    classes: Classes = 10,
    input_channels: Channels = 1,
    size: Annotated[int, Meta(ge=12, le=8_192)] = 28,
) -> LeNet:
    """A LeNet-5 with random weights; its first convolution is padded, so that 28x28 images need no border.

    It maps `samples x input_channels x size x size` to logits, `samples x classes`. As usual today, filters read all
    channels, pooling takes the maximum, and the head is linear.

    >>> sum(parameter.numel() for parameter in build().parameters())
    61706

    Args:
        widths: filters of the two convolutions; 6, 16 if not given.
        hidden: widths of the linear layers before the head, any number of them; 120, 84 if not given.
        activation: "relu", "sigmoid" or "tanh".
        classes: number of outputs.
        input_channels: channels of the images.
        size: height and width of the images, at least 12.

    Raises:
        UserError: for another number of widths, or numbers out of range.
    """
    model = LeNet(
        widths_of("lenet", widths, WIDTHS),
        list(HIDDEN if hidden is None else hidden),
        module_of("lenet", activation),
        input_channels,
        size,
        classes,
    )
    initialise(model, activation)
    return model

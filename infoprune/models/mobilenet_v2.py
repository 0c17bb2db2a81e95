"""MobileNetV2 (Sandler et al., CVPR 2018): torchvision's, with batch norm folded and TensorFlow's padding if wanted.

Layer names are those of torchvision, so that its published weights fit too.
"""

from collections.abc import Mapping
from typing import Annotated, Literal

from msgspec import Meta
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import fuse_conv_bn_eval
from torchvision.models import mobilenetv2

from infoprune.config.ranges import Classes, ShareBelowOne, Width, in_range
from infoprune.errors import UserError

Padding = Literal["torch", "same"]
STAGE_WIDTHS = (16, 24, 32, 64, 96, 160, 320)
BLOCKS = (1, 2, 3, 4, 3, 3, 1)
STRIDES = (1, 2, 2, 2, 1, 2, 1)


class SameConv2d(nn.Conv2d):
    """A convolution with TensorFlow's SAME padding: the output has ⌈size / stride⌉ pixels, odd ones go after."""

    def forward(self, input: Tensor) -> Tensor:
        pads = []
        for size, kernel, stride in zip(input.shape[:1:-1], self.kernel_size[::-1], self.stride[::-1], strict=True):
            total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
            pads += [total // 2, total - total // 2]
        return F.conv2d(F.pad(input, pads), self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


class MobileNetV2(mobilenetv2.MobileNetV2):  # type: ignore[misc]  # torchvision has no types
    """torchvision's network, which also knows its layers by their numbers."""

    def translate(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weights under this network's names, where they come under numbers: `0.weight` … `51.weight`, `fc.weight`.

        Convolutions count in the order of the forward pass. Any other names stay as they are.
        """
        names = [name for name, module in self.named_modules() if isinstance(module, nn.Conv2d)]
        known = {str(number): name for number, name in enumerate(names)} | {"fc": "classifier.1"}
        if not all(name.rpartition(".")[0] in known for name in tensors):
            return dict(tensors)
        split = {name: name.rpartition(".") for name in tensors}
        return {f"{known[layer]}.{kind}": tensors[name] for name, (layer, _, kind) in split.items()}


@in_range("[model]")
def build(
    *,
    classes: Classes = 1000,
    width_multiplier: Annotated[float, Meta(gt=0, le=100)] = 1.0,
    widths: list[Width] | None = None,
    small_images: bool = False,
    folded: bool = False,
    padding: Padding = "torch",
    dropout: ShareBelowOne = 0.2,
) -> MobileNetV2:
    """A MobileNetV2 with random weights: inverted residual blocks with linear bottlenecks.

    It maps `samples x 3 x height x width` to logits, `samples x classes`. Source: Sandler et al., "MobileNetV2:
    inverted residuals and linear bottlenecks", CVPR 2018, table 2.

    >>> sum(parameter.numel() for parameter in build().parameters())  # 3.4 M in the paper's table 4
    3504872

    Args:
        classes: number of outputs.
        width_multiplier: of all widths, which are then rounded to multiples of 8; the last convolution never has fewer
            than 1,280 filters.
        widths: filters of the seven stages; 16, 24, 32, 64, 96, 160, 320 if not given.
        small_images: for 32x32 pixels: stride 1 in the first convolution and in the first stage that halves the maps,
            so that the last maps are 4x4.
        folded: convolutions with bias in place of batch norm, for weights that have it folded in.
        padding: of convolutions of stride 2: "torch" puts one pixel on every side, "same" is TensorFlow's.
        dropout: before the classifier, 0..1.

    Raises:
        UserError: for a number of widths other than seven, or numbers out of range.
    """
    stages = list(STAGE_WIDTHS if widths is None else widths)
    if len(stages) != len(STAGE_WIDTHS):
        raise UserError(f"mobilenet_v2 got widths {stages}; expected {len(STAGE_WIDTHS)} numbers")
    rows = zip(stages, BLOCKS, STRIDES, strict=True)
    settings = [[6 if stage else 1, width, count, stride] for stage, (width, count, stride) in enumerate(rows)]
    if small_images:
        settings[1][3] = 1
    model = MobileNetV2(classes, width_multiplier, settings, round_nearest=8 if widths is None else 1, dropout=dropout)
    if small_images:
        model.features[0][0].stride = (1, 1)
    if folded:
        _fold(model)
    for module in model.modules() if padding == "same" else ():
        if isinstance(module, nn.Conv2d) and module.stride != (1, 1):
            module.__class__ = SameConv2d
    return model


def _fold(model: nn.Module) -> None:
    """Merges every batch norm into the convolution before it; an identity keeps its place, and so all names."""
    for block in [module for module in model.modules() if isinstance(module, nn.Sequential)]:
        for place in range(len(block) - 1):
            layer, norm = block[place], block[place + 1]
            if isinstance(layer, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                block[place] = fuse_conv_bn_eval(layer.eval(), norm.eval()).train()
                block[place + 1] = nn.Identity()

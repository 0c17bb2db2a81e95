"""Every convolutional network of timm, a package of its own (`pip install timm`), by the name it has there."""

import re
from typing import Any
from urllib.error import URLError

from torch import nn

from infoprune.config.ranges import Channels, Classes, in_range
from infoprune.errors import RunError, UserError, did_you_mean


@in_range("[model]")
def build(
    *, architecture: str, pretrained: bool = False, classes: Classes | None = None, input_channels: Channels = 3
) -> nn.Module:
    """A network of timm.

    What published weights expect of images is in timm's model card; `[model] weights` reads a file of any origin.

    Args:
        architecture: timm's name, such as "resnet10t" or "mobilenetv4_conv_small"; with a tag behind a dot
            ("resnet50.a1_in1k") for one of several published weights.
        pretrained: whether timm downloads the published weights.
        classes: number of outputs; the weights' own (mostly 1000) if not given, any other gets a new last layer.
        input_channels: channels of the images.

    Raises:
        UserError: where timm is not installed, for an unknown architecture, or numbers out of range.
        RunError: where the weights cannot be downloaded.
    """
    try:
        import timm
    except ModuleNotFoundError as missing:
        raise UserError("networks of timm need the package timm: pip install timm") from missing
    known = timm.list_models()
    # A tag of other characters would be a place: timm's names may also be addresses and folders.
    if architecture.split(".")[0] not in known or not re.fullmatch(r"\w+(\.\w+)?", architecture):
        raise UserError(f"timm has no network '{architecture}'{did_you_mean(architecture, known)}")
    options: dict[str, Any] = {} if classes is None else {"num_classes": classes}
    try:
        model: nn.Module = timm.create_model(architecture, pretrained=pretrained, in_chans=input_channels, **options)
    except (URLError, OSError) as failure:
        raise RunError(
            f"cannot download the weights of {architecture}: {failure}; fetch them where there is a network, and name "
            "the file as [model] weights"
        ) from failure
    except RuntimeError as failure:  # of timm's own: no such weights, a tag that it does not know
        raise UserError(f"timm cannot build {architecture}: {failure}") from failure
    return model


@in_range("[model]")
def without_weights(
    *, architecture: str, pretrained: bool = False, classes: Classes | None = None, input_channels: Channels = 3
) -> nn.Module:
    """The network of `build` with initial weights: nothing is downloaded, whatever `pretrained` says.

    Args:
        architecture: as for `build`; a tag's size of images and number of classes are kept.
        pretrained: no matter.
        classes: as for `build`.
        input_channels: as for `build`.

    Raises:
        UserError: as `build` does.
    """
    return build(architecture=architecture, pretrained=False, classes=classes, input_channels=input_channels)

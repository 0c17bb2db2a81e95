"""Every classification network of torchvision, with the pretrained weights that torchvision publishes for it."""

from typing import Any
from urllib.error import URLError

import torch
from torch import nn

from infoprune.errors import RunError, UserError, did_you_mean

# Their training mode returns extra logits of auxiliary heads, which serve training from scratch only.
AUXILIARY_HEADS = ("googlenet", "inception_v3")


def build(*, architecture: str, pretrained: str | None = None, classes: int | None = None) -> nn.Module:
    """A classification network of torchvision, by its name there; auxiliary heads are left off.

    >>> build(architecture="squeezenet1_1", classes=5)(torch.zeros(1, 3, 64, 64)).shape
    torch.Size([1, 5])

    Args:
        architecture: torchvision's name, such as "resnet50" or "mobilenet_v2".
        pretrained: name of its weights, such as "IMAGENET1K_V1" or "DEFAULT"; torchvision downloads them.
        classes: number of outputs; the weights' own (1000) if not given, any other gets a new, untrained last layer.

    Raises:
        UserError: for an unknown architecture or unknown weights, or fewer than one class.
        RunError: where the weights cannot be downloaded.
    """
    from torchvision import models

    known = models.list_models(module=models)
    if architecture not in known:
        raise UserError(
            f"torchvision has no classification network '{architecture}'{did_you_mean(architecture, known)}"
        )
    if classes is not None and classes < 1:
        raise UserError(f"got classes {classes}; expected at least 1")
    options: dict[str, Any] = {"aux_logits": False} if architecture in AUXILIARY_HEADS else {}
    if pretrained is None:
        if architecture in AUXILIARY_HEADS:
            options["init_weights"] = True  # torchvision warns where this is left to its default
        network: nn.Module = models.get_model(architecture, weights=None, num_classes=classes or 1000, **options)
        return network
    network, outputs = _with_weights(architecture, pretrained, options)
    if classes is not None and classes != outputs:
        _renew_head(network, outputs, classes)
    return network


def _with_weights(architecture: str, pretrained: str, options: dict[str, Any]) -> tuple[nn.Module, int]:
    """The pretrained network and its number of classes."""
    from torchvision import models

    published = models.get_model_weights(architecture)
    if pretrained not in published.__members__:
        raise UserError(
            f"torchvision has no weights '{pretrained}' for {architecture}"
            f"{did_you_mean(pretrained, published.__members__)}"
        )
    weights = published[pretrained]
    try:
        return models.get_model(architecture, weights=weights, **options), len(weights.meta["categories"])
    except (URLError, OSError) as failure:
        raise RunError(
            f"cannot download {weights.url}: {failure}; fetch it where there is a network and put it into "
            f"{torch.hub.get_dir()}/checkpoints"
        ) from failure


def _renew_head(network: nn.Module, outputs: int, classes: int) -> None:
    """Replaces the last layer with `outputs` outputs, linear or (SqueezeNet) a 1x1 convolution."""
    heads = {
        name: module
        for name, module in network.named_modules()
        if getattr(module, "out_features", None) == outputs or getattr(module, "out_channels", None) == outputs
    }
    name, old = list(heads.items())[-1]
    new: nn.Module
    if isinstance(old, nn.Linear):
        new = nn.Linear(old.in_features, classes, bias=old.bias is not None)
    elif isinstance(old, nn.Conv2d):
        new = nn.Conv2d(old.in_channels, classes, kernel_size=1, bias=old.bias is not None)
    parent, _, child = name.rpartition(".")
    setattr(network.get_submodule(parent), child, new)

"""Every classification and segmentation network of torchvision, with the weights that torchvision publishes for it."""

from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from urllib.error import URLError

import torch
from torch import Tensor, nn

from infoprune.config.ranges import Classes, in_range
from infoprune.errors import RunError, UserError, did_you_mean

# Their training mode returns extra logits of auxiliary heads, which serve training from scratch only.
AUXILIARY_HEADS = ("googlenet", "inception_v3")
FILES = (".pth", ".pt", ".th")


@in_range("[model]")
def build(*, architecture: str, pretrained: str | None = None, classes: Classes | None = None) -> nn.Module:
    """A classification or segmentation network of torchvision, by its name there; auxiliary heads are left off.

    Segmentation networks put out a dictionary, as torchvision's do, with `samples x classes x height x width` in "out".
    What published weights expect of images, `[data] name = "image_folder"` with `expected_by` prepares.

    >>> build(architecture="squeezenet1_1", classes=5)(torch.zeros(1, 3, 64, 64)).shape
    torch.Size([1, 5])

    Args:
        architecture: torchvision's name, such as "resnet50" or "lraspp_mobilenet_v3_large".
        pretrained: name of its weights, such as "DEFAULT" or "IMAGENET1K_V1" ("ResNet50_Weights.IMAGENET1K_V1" in
            full), which torchvision downloads; or a file (.pth) with a state dict of this network, read with
            weights_only=True.
        classes: number of outputs; the weights' own (1000; 21 for segmentation) if not given, any other gets a new,
            untrained last layer.

    Raises:
        UserError: for an unknown architecture, unknown weights or weights that do not fit, or a number of classes out
            of range.
        RunError: where the weights cannot be downloaded.
    """
    from torchvision import models

    outputs, options = _usual(architecture)
    if pretrained is None:
        outputs = classes or outputs
        network: nn.Module = models.get_model(architecture, weights=None, num_classes=outputs, **options)
    elif pretrained.endswith(FILES):
        network = _with_file(architecture, Path(pretrained), {"num_classes": outputs, **options})
    else:
        network, outputs = _with_weights(architecture, pretrained)
    if classes is not None and classes != outputs:
        _renew_head(network, outputs, classes)
    return network


@in_range("[model]")
def without_weights(*, architecture: str, pretrained: str | None = None, classes: Classes | None = None) -> nn.Module:
    """The network of `build` with initial weights: no file is read, and nothing downloaded.

    Args:
        architecture: as for `build`.
        pretrained: as for `build`; what the weights say of the architecture is kept, such as a size of images.
        classes: as for `build`.

    Raises:
        UserError: as `build` does, and where nothing but the file of weights says what the network computes.
    """
    from torchvision import models

    outputs, options = _usual(architecture)
    if pretrained is not None and not pretrained.endswith(FILES):
        outputs, said = _said_by(architecture, _published(architecture, pretrained))
        options |= said
    elif pretrained is not None and architecture in AUXILIARY_HEADS:
        raise UserError(
            f"whether {architecture} transforms its inputs is told by the file '{pretrained}' alone, which is not read "
            "where other weights are loaded; give the network itself as load(path, model), or leave out pretrained"
        )
    network: nn.Module = models.get_model(architecture, weights=None, num_classes=outputs, **options)
    if classes is not None and classes != outputs:
        _renew_head(network, outputs, classes)
    return network


def _usual(architecture: str) -> tuple[int, dict[str, Any]]:
    """The number of outputs of a network without weights, and torchvision's other options for it."""
    from torchvision import models

    segmenting = models.list_models(module=models.segmentation)
    known = [*models.list_models(module=models), *segmenting]
    if architecture not in known:
        raise UserError(
            f"torchvision has no classification or segmentation network '{architecture}'"
            f"{did_you_mean(architecture, known)}"
        )
    if architecture in AUXILIARY_HEADS:
        return 1000, {"aux_logits": False, "init_weights": True}  # torchvision warns where the latter is not given
    return (21, {"weights_backbone": None}) if architecture in segmenting else (1000, {})


def _with_file(architecture: str, file: Path, options: dict[str, Any]) -> nn.Module:
    """The network with the weights of a file, whose auxiliary heads are left out."""
    from torchvision import models

    try:
        stored = torch.load(file.expanduser(), map_location="cpu", weights_only=True)
    except (OSError, UnpicklingError, RuntimeError, EOFError) as failure:
        raise UserError(f"cannot read weights '{file}': {failure}; give a file with a state dict") from failure
    if isinstance(stored, Mapping) and isinstance(stored.get("state_dict"), Mapping):
        stored = stored["state_dict"]
    if not isinstance(stored, Mapping) or not all(isinstance(value, Tensor) for value in stored.values()):
        raise UserError(f"'{file}' holds no state dict; save one with torch.save(model.state_dict(), …)")
    auxiliary = [key for key in stored if key.startswith(("aux1.", "aux2.", "AuxLogits.", "aux_classifier."))]
    if auxiliary and architecture in AUXILIARY_HEADS:
        options = {**options, "transform_input": True}  # as torchvision does for these weights, which have the heads
    network: nn.Module = models.get_model(architecture, weights=None, **options)
    try:
        network.load_state_dict({key: value for key, value in stored.items() if key not in auxiliary})
    except RuntimeError as failure:
        raise UserError(f"the weights '{file}' do not fit {architecture}: {failure}") from failure
    return network


def _published(architecture: str, pretrained: str) -> Any:
    """What torchvision knows of the weights that it publishes under a name."""
    from torchvision import models

    published = models.get_model_weights(architecture)
    pretrained = pretrained.removeprefix(f"{published.__name__}.")
    if pretrained not in published.__members__:
        raise UserError(
            f"torchvision has no weights '{pretrained}' for {architecture}"
            f"{did_you_mean(pretrained, published.__members__)}"
        )
    if published[pretrained].meta["categories"] is None:
        raise UserError(f"torchvision's weights '{pretrained}' of {architecture} have no classifier; take others")
    return published[pretrained]


def _said_by(architecture: str, weights: Any) -> tuple[int, dict[str, Any]]:
    """The number of outputs, and what else of the architecture torchvision takes from published weights."""
    said: dict[str, Any] = {}
    if architecture in AUXILIARY_HEADS:
        said["transform_input"] = True
    if architecture.startswith("vit_"):
        said["image_size"] = weights.meta["min_size"][0]
    if architecture.startswith("maxvit_"):
        said["input_size"] = weights.meta["min_size"]
    return len(weights.meta["categories"]), said


def _with_weights(architecture: str, pretrained: str) -> tuple[nn.Module, int]:
    """The pretrained network and its number of classes."""
    from torchvision import models

    weights = _published(architecture, pretrained)
    try:
        network = models.get_model(architecture, weights=weights)
    except (URLError, OSError) as failure:
        raise RunError(
            f"cannot download {weights.url}: {failure}; fetch it where there is a network and put it into "
            f"{torch.hub.get_dir()}/checkpoints"
        ) from failure
    for name in ("aux_classifier", "aux1", "aux2", "AuxLogits"):  # torchvision builds what the weights hold
        if getattr(network, name, None) is not None:
            setattr(network, name, None)
    if architecture in AUXILIARY_HEADS:
        network.aux_logits = False
    return network, len(weights.meta["categories"])


def _renew_head(network: nn.Module, outputs: int, classes: int) -> None:
    """Replaces the last layer with `outputs` outputs, linear or a 1x1 convolution; LR-ASPP adds up two of them."""
    heads = {
        name: module
        for name, module in network.named_modules()
        if getattr(module, "out_features", None) == outputs or getattr(module, "out_channels", None) == outputs
    }
    last = [name for name in heads if name.startswith("classifier.") and name.endswith("_classifier")] or [*heads][-1:]
    for name in last:
        old = heads[name]
        new: nn.Module
        if isinstance(old, nn.Linear):
            new = nn.Linear(old.in_features, classes, bias=old.bias is not None)
        elif isinstance(old, nn.Conv2d):
            new = nn.Conv2d(old.in_channels, classes, kernel_size=1, bias=old.bias is not None)
        parent, _, child = name.rpartition(".")
        setattr(network.get_submodule(parent), child, new)

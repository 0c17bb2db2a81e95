"""MobileNetV2: the published architecture, its folded and its small variants, and weights under numbers."""

import os
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from infoprune.datasets import nips2017
from infoprune.errors import UserError
from infoprune.evaluation.accuracy import evaluate
from infoprune.evaluation.metrics import ModelReference
from infoprune.io import checkpoint
from infoprune.models import mobilenet_v2
from infoprune.pruning.channel_graph import channel_graph

FOLDER = os.environ.get("INFOPRUNE_DATA", "")
NARROW = {"classes": 10, "widths": [4, 4, 6, 6, 8, 8, 10]}


def test_layer_names_are_torchvisions_and_so_its_weights_fit() -> None:
    from torchvision import models

    theirs = models.get_model("mobilenet_v2", weights=None).eval()
    ours = mobilenet_v2.build().eval()
    ours.load_state_dict(theirs.state_dict())
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(ours(images), theirs(images))


@pytest.mark.parametrize(("size", "stride"), [(8, 2), (7, 2), (9, 3), (5, 1)])
def test_same_padding_puts_the_odd_pixel_behind(size: int, stride: int) -> None:
    layer = mobilenet_v2.SameConv2d(2, 3, 3, stride)
    x = torch.randn(1, 2, size, size)
    out = layer(x)
    assert out.shape[2:] == (-(-size // stride),) * 2
    # TensorFlow's documentation: pads (⌈n/s⌉ - 1) s + k - n in all, of which the smaller half goes first.
    total = (-(-size // stride) - 1) * stride + 3 - size
    first = F.pad(x, (total // 2, 3, total // 2, 3))[:, :, :3, :3]
    torch.testing.assert_close(out[:, :, 0, 0], F.conv2d(first, layer.weight, layer.bias)[:, :, 0, 0])


def test_a_folded_network_computes_what_batch_norm_would_have() -> None:
    torch.manual_seed(3)
    normed = mobilenet_v2.build(**NARROW)  # type: ignore[arg-type]
    torch.manual_seed(3)
    folded = mobilenet_v2.build(folded=True, **NARROW)  # type: ignore[arg-type]
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    assert [name for name, _ in folded.named_modules()] == [name for name, _ in normed.named_modules()]
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(folded.eval()(images), normed.eval()(images), rtol=1e-4, atol=1e-5)


def test_small_images_keep_maps_of_4x4_and_widths_reach_the_network() -> None:
    model = mobilenet_v2.build(small_images=True, **NARROW).eval()  # type: ignore[arg-type]
    with torch.no_grad():
        assert model.features(torch.zeros(1, 3, 32, 32)).shape == (1, 1280, 4, 4)
        assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 10)
    assert [model.features[place].out_channels for place in (1, 2, 4, 7, 11, 14, 17)] == NARROW["widths"]
    half = mobilenet_v2.build(width_multiplier=0.5)
    assert [half.features[place].out_channels for place in (1, 2, 4, 7, 11, 14, 17)] == [8, 16, 16, 32, 48, 80, 160]


@pytest.mark.parametrize("options", [{}, {"folded": True, "padding": "same"}, {"small_images": True}])
def test_every_variant_can_be_cut_along_its_hidden_channels(options: dict[str, bool]) -> None:
    model = mobilenet_v2.build(**{**NARROW, **options}).eval()  # type: ignore[arg-type]
    groups = {group.name: group for group in channel_graph(model, torch.zeros(1, 3, 64, 64)).groups}
    assert {member.layer for member in groups["features.3.conv.0.0"].members} >= {
        "features.3.conv.0.0", "features.3.conv.1.0", "features.3.conv.2",
    }  # fmt: skip
    assert not groups["features.3.conv.0.0"].refusal


def test_integer_weights_under_numbers_are_those_of_the_layers_in_order(tmp_path: Path) -> None:
    reference = ModelReference("mobilenet_v2", {**NARROW, "folded": True})
    model = checkpoint.build(reference)
    layers = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    file, expected = {}, []
    for name, layer in [*((str(i), layer) for i, layer in enumerate(layers)), ("fc", model.classifier[1])]:
        scale = torch.rand(len(layer.weight)) + 0.1
        file |= {f"{name}.q": torch.randint(-128, 128, layer.weight.shape, dtype=torch.int8), f"{name}.scale": scale}
        file[f"{name}.bias"] = torch.randn(len(layer.weight))
        expected.append(file[f"{name}.q"] * scale.view(-1, *[1] * (layer.weight.dim() - 1)))
    torch.save(file, tmp_path / "small.pth")
    model = checkpoint.build(reference, tmp_path / "small.pth")
    loaded = [module for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    for layer, weight in zip(loaded, expected, strict=True):
        torch.testing.assert_close(layer.weight.detach(), weight, rtol=1e-6, atol=0)
    del file["3.scale"]
    torch.save(file, tmp_path / "small.pth")
    with pytest.raises(UserError, match=r"'3\.q' without a '3\.scale'"):
        checkpoint.build(reference, tmp_path / "small.pth")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"widths": [8, 8]}, "expected 7 numbers"),
        ({"width_multiplier": 0.0}, "width_multiplier = 0.0: expected a number above 0"),
        ({"classes": 0}, "classes = 0: expected a whole number from 1"),
        ({"dropout": 1.0}, "dropout = 1.0: expected a number from 0 to below 1"),
    ],
)
def test_what_cannot_be_built_is_refused(options: dict[str, object], words: str) -> None:
    with pytest.raises(UserError, match=words):
        mobilenet_v2.build(**options)  # type: ignore[arg-type]


@pytest.mark.skipif(not FOLDER, reason="set INFOPRUNE_DATA to the folder with nips2017/ and weights/")
def test_published_weights_get_100_images_as_right_as_ever() -> None:
    reference = ModelReference("mobilenet_v2", {"folded": True, "padding": "same"})
    model = checkpoint.build(reference, "weights/mobilenet_v2_int8.pth")
    data = nips2017.load(normalisation="symmetric")
    score = evaluate(model, data.batches("validation", batch_size=50))  # of the test half nothing is looked at
    assert round(score.accuracy * score.samples) == 77

"""torchvision's networks from weights files and for segmentation, and images prepared as published weights expect."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torchvision import models
from torchvision.models import WeightsEnum

from infoprune.datasets import image_folder
from infoprune.errors import UserError
from infoprune.models import torchvision as torchvision_models


@pytest.mark.parametrize("name", ["lraspp_mobilenet_v3_large", "deeplabv3_mobilenet_v3_large", "fcn_resnet50"])
def test_segmentation_networks_put_out_classes_per_pixel(name: str) -> None:
    with torch.device("meta"):  # shapes without numbers
        model = torchvision_models.build(architecture=name, classes=4).train()
        out = model(torch.empty(2, 3, 64, 64))
    assert list(out) == ["out"]
    assert out["out"].shape == (2, 4, 64, 64)
    with torch.device("meta"):
        assert torchvision_models.build(architecture=name).eval()(torch.empty(1, 3, 64, 64))["out"].shape[1] == 21


@pytest.mark.parametrize("name", ["lraspp_mobilenet_v3_large", "deeplabv3_mobilenet_v3_large"])
def test_published_segmentation_weights_get_heads_for_other_classes(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    auxiliary = {} if name.startswith("lraspp") else {"aux_loss": True}
    published = models.get_model(name, weights=None, weights_backbone=None, **auxiliary)
    file = tmp_path / "checkpoints" / models.get_model_weights(name)["DEFAULT"].url.rpartition("/")[2]
    file.parent.mkdir(parents=True)
    torch.save(published.state_dict(), file)
    model = torchvision_models.build(architecture=name, pretrained="DEFAULT", classes=3).eval()
    assert model(torch.randn(1, 3, 64, 64))["out"].shape == (1, 3, 64, 64)
    assert not any(key.startswith("aux") for key in model.state_dict())
    same = torchvision_models.build(architecture=name, pretrained="DEFAULT").eval()
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(same(images)["out"], published.eval()(images)["out"], rtol=0, atol=0)


def test_a_file_of_weights_gives_its_network(tmp_path: Path) -> None:
    original = models.squeezenet1_1().eval()
    torch.save({"state_dict": original.state_dict(), "epoch": 3}, tmp_path / "own.pth")
    model = torchvision_models.build(architecture="squeezenet1_1", pretrained=str(tmp_path / "own.pth")).eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(model(images), original(images), rtol=0, atol=0)
        other = torchvision_models.build(
            architecture="squeezenet1_1", pretrained=str(tmp_path / "own.pth"), classes=5
        ).eval()
        assert other(images).shape == (2, 5)


def test_auxiliary_heads_in_a_file_are_left_out_and_its_inputs_transformed_as_published(tmp_path: Path) -> None:
    torch.manual_seed(0)
    original = models.googlenet(aux_logits=True, init_weights=False, transform_input=True).eval()
    torch.save(original.state_dict(), tmp_path / "googlenet.pth")
    model = torchvision_models.build(architecture="googlenet", pretrained=str(tmp_path / "googlenet.pth"))
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(images), original(images), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "cannot read weights"),
        (b"no weights", "cannot read weights"),
        ([1, 2], "holds no state dict"),
        ({"epoch": 3}, "holds no state dict"),
        ({"conv.weight": torch.zeros(1)}, "do not fit squeezenet1_1"),
    ],
)
def test_files_that_are_no_weights_are_told(content: object, words: str, tmp_path: Path) -> None:
    file = tmp_path / "own.pth"
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif content is not None:
        torch.save(content, file)
    with pytest.raises(UserError, match=words):
        torchvision_models.build(architecture="squeezenet1_1", pretrained=str(file))


def test_images_reach_the_network_as_its_weights_expect(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    for split in ("train", "val", "test"):
        for kind in ("cats", "dogs"):
            (tmp_path / split / kind).mkdir(parents=True)
            pixels = generator.integers(0, 256, (300, 260, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / split / kind / "0.png")
    weights = models.EfficientNet_B0_Weights.IMAGENET1K_V1  # bicubic
    data = image_folder.load(root=str(tmp_path), expected_by="EfficientNet_B0_Weights.IMAGENET1K_V1", workers=0)
    images, _ = next(iter(data.batches("test", batch_size=2)))
    expected = [weights.transforms()(Image.open(tmp_path / "test" / kind / "0.png")) for kind in ("cats", "dogs")]
    # Stored as bytes after resizing, so that a value is off by one level of 256 at most.
    torch.testing.assert_close(images, torch.stack(expected), rtol=0, atol=1.01 / 255 / 0.224)


@pytest.mark.parametrize("name", ["ResNet5_Weights.DEFAULT", "resnet50", "FCN_ResNet50_Weights.DEFAULT"])
def test_weights_without_a_known_preparation_are_told(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no classification weights of torchvision .*ResNet50_Weights.IMAGENET1K_V2"):
        image_folder.load(root=str(tmp_path), expected_by=name)


SAYING_MORE = [("vit_b_16", "IMAGENET1K_SWAG_E2E_V1"), ("maxvit_t", "DEFAULT"), ("googlenet", "DEFAULT")]
SAYING_MORE += [("inception_v3", "DEFAULT"), ("fcn_resnet50", "DEFAULT"), ("resnet18", "DEFAULT")]


@pytest.mark.parametrize(("architecture", "weights"), SAYING_MORE)
@pytest.mark.parametrize("classes", [None, 7])
def test_without_weights_the_network_is_the_same(
    monkeypatch: pytest.MonkeyPatch, architecture: str, weights: str, classes: int | None
) -> None:
    """What published weights say of an architecture counts, though none are read: sizes, and transformed inputs."""
    asked: list[Any] = []
    monkeypatch.setattr(WeightsEnum, "get_state_dict", lambda self, *_, **__: asked.append(self))
    monkeypatch.setattr(nn.Module, "load_state_dict", lambda *_, **__: None)
    with torch.device("meta"):
        bare = torchvision_models.without_weights(architecture=architecture, pretrained=weights, classes=classes)
        assert not asked
        whole = torchvision_models.build(architecture=architecture, pretrained=weights, classes=classes)
    assert asked
    shapes = [{name: value.shape for name, value in each.state_dict().items()} for each in (bare, whole)]
    assert shapes[0] == shapes[1]
    assert getattr(bare, "transform_input", None) == getattr(whole, "transform_input", None)


def test_published_weights_of_networks_with_auxiliary_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    original = models.googlenet(aux_logits=True, init_weights=False, transform_input=True).eval()
    monkeypatch.setattr(WeightsEnum, "get_state_dict", lambda *_, **__: original.state_dict())
    model = torchvision_models.build(architecture="googlenet", pretrained="DEFAULT")
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(images), original(images), rtol=0, atol=0)
    assert model.train()(images).shape == (2, 1000)  # and no tuple with the heads


def test_weights_without_a_classifier_are_told() -> None:
    with pytest.raises(UserError, match="have no classifier"):
        torchvision_models.build(architecture="vgg16", pretrained="IMAGENET1K_FEATURES")

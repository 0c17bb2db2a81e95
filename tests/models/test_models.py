"""Model families: the architectures are the published ones, layer by layer, and say what is wrong with a request."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn

import infoprune.models
from infoprune.datasets import digits
from infoprune.errors import RunError, UserError
from infoprune.evaluation.accuracy import evaluate
from infoprune.models import cifar_resnet
from infoprune.models import torchvision as torchvision_models

FOLDER = os.environ.get("INFOPRUNE_DATA", "")
needs_data = pytest.mark.skipif(not FOLDER, reason="set INFOPRUNE_DATA to the folder with cifar10/ and weights/")


def published(depth: int, file: str) -> nn.Module:
    """A CIFAR ResNet with the weights that its author published."""
    stored = torch.load(Path(FOLDER) / "weights" / file, map_location="cpu", weights_only=True)["state_dict"]
    model = cifar_resnet.build(depth=depth)
    lacking = model.load_state_dict({key.removeprefix("module."): value for key, value in stored.items()}, strict=False)
    assert not lacking.unexpected_keys
    assert all(key.endswith("num_batches_tracked") for key in lacking.missing_keys)
    return model


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


# He et al., table 6, in millions: 0.27, 0.46, 0.66, 0.85, 1.7.
@pytest.mark.parametrize(("depth", "count"), [(20, 269722), (32, 464154), (44, 658586), (56, 853018), (110, 1727962)])
def test_cifar_resnets_have_the_papers_number_of_parameters(depth: int, count: int) -> None:
    assert parameters(cifar_resnet.build(depth=depth)) == count


@pytest.mark.parametrize("shortcut", ["pad", "projection"])
def test_a_block_adds_its_two_branches(shortcut: cifar_resnet.Shortcut) -> None:
    block = cifar_resnet.ResidualBlock(3, 8, 8, 2, shortcut).eval()
    x = torch.randn(2, 3, 6, 6)
    branch = block.bn2(block.conv2(torch.relu(block.bn1(block.conv1(x)))))
    expected = torch.relu(branch + block.shortcut(x))
    torch.testing.assert_close(block(x), expected, rtol=0, atol=0)


def test_the_pad_shortcut_keeps_every_other_pixel_between_channels_of_zeros() -> None:
    x = torch.randn(2, 3, 6, 6)
    out = cifar_resnet.PadShortcut(3, 8, 2)(x)
    assert out.shape == (2, 8, 3, 3)
    torch.testing.assert_close(out[:, 2:5], x[:, :, ::2, ::2], rtol=0, atol=0)
    assert not out[:, :2].any()
    assert not out[:, 5:].any()


def test_options_of_cifar_resnet_reach_the_network() -> None:
    model = cifar_resnet.build(depth=10, classes=3, input_channels=1, shortcut="projection", widths=[4, 6, 8, 6])
    assert model(torch.randn(2, 1, 16, 16)).shape == (2, 3)
    assert not hasattr(model, "layer5")
    assert model.get_submodule("layer4.0.shortcut.0").out_channels == 6
    assert model.get_submodule("layer1.0.shortcut") is not None


def test_the_same_seed_gives_the_same_network() -> None:
    states = []
    for _ in range(2):
        torch.manual_seed(4)
        states.append(cifar_resnet.build(depth=8).state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"depth": 21}, "such as 20 or 26"),
        ({"depth": 5}, "such as 8 or 14"),
        ({"depth": 2}, "depth = 2: expected a whole number from 4"),
        ({"widths": [32, 16, 64]}, "projection"),
        ({"widths": []}, "at least one stage"),
        ({"classes": 0}, "classes = 0: expected a whole number from 1"),
    ],
)
def test_cifar_resnet_refuses_what_it_cannot_build(options: dict[str, object], words: str) -> None:
    with pytest.raises(UserError, match=words):
        cifar_resnet.build(**options)  # type: ignore[arg-type]


# Of all 10,000 they classify 91.73 % and 93.39 %, the errors that their author printed.
@needs_data
@pytest.mark.parametrize(
    ("depth", "file", "right"), [(20, "resnet20-12fca82f.th", 182), (56, "resnet56-4bfd9763.th", 188)]
)
def test_published_weights_get_200_test_images_as_right_as_ever(depth: int, file: str, right: int) -> None:
    with Image.open(Path(FOLDER) / "cifar10" / "test-00.webp") as image:
        sheet = np.asarray(image.convert("RGB"))[: 5 * 32]
    pixels = torch.tensor(sheet.reshape(5, 32, 40, 32, 3).transpose(0, 2, 4, 1, 3).reshape(200, 3, 32, 32)) / 255
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    images = (pixels - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    labels = torch.tensor(list((Path(FOLDER) / "cifar10" / "test-labels.u8").read_bytes()[:200]))
    score = evaluate(published(depth, file), [(images, labels)])
    assert round(score.accuracy * score.samples) == right


@pytest.mark.parametrize(
    "name", ["mobilenet_v3_small", "squeezenet1_0", "resnet50", "vgg11_bn", "googlenet", "inception_v3"]
)
def test_torchvision_networks_give_logits_of_the_asked_number_even_in_training(name: str) -> None:
    with torch.device("meta"):  # shapes without numbers
        model = torchvision_models.build(architecture=name, classes=7).train()
        logits = model(torch.empty(2, 3, 96, 96))
    assert isinstance(logits, torch.Tensor)
    assert logits.shape == (2, 7)


def test_the_shipped_digits_network_is_small_and_right() -> None:
    file = Path(infoprune.models.__path__[0]).parent / "weights" / "digits_resnet.safetensors"
    assert file.stat().st_size < 1_500_000
    model = cifar_resnet.build(depth=14, input_channels=1, shortcut="projection")
    model.load_state_dict(load_file(file))
    score = evaluate(model, digits.load().batches("test", batch_size=449))
    assert score.samples == 449
    assert score.accuracy >= 0.98


def weights_in_the_cache(folder: Path, architecture: str, monkeypatch: pytest.MonkeyPatch) -> nn.Module:
    """Puts random weights where torchvision would download the published ones to."""
    from torchvision import models

    monkeypatch.setattr(torch.hub, "_hub_dir", str(folder))
    network: nn.Module = models.get_model(architecture, weights=None)
    file = folder / "checkpoints" / models.get_model_weights(architecture)["IMAGENET1K_V1"].url.rpartition("/")[2]
    file.parent.mkdir(parents=True)
    torch.save(network.state_dict(), file)
    return network.eval()


@pytest.mark.parametrize("name", ["squeezenet1_1", "mobilenet_v3_small"])
def test_pretrained_weights_are_loaded_and_only_another_head_is_new(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = weights_in_the_cache(tmp_path, name, monkeypatch)
    same = torchvision_models.build(architecture=name, pretrained="IMAGENET1K_V1", classes=1000).eval()
    other = torchvision_models.build(architecture=name, pretrained="IMAGENET1K_V1", classes=5).eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(same(images), original(images), rtol=0, atol=0)
        assert other(images).shape == (2, 5)
    changed = [key for key, value in other.state_dict().items() if value.shape != original.state_dict()[key].shape]
    assert sorted(key.rpartition(".")[2] for key in changed) == ["bias", "weight"]
    kept = {key: value for key, value in other.state_dict().items() if key not in changed}
    assert all(torch.equal(value, original.state_dict()[key]) for key, value in kept.items())


def test_a_failed_download_says_what_to_fetch_and_where_to_put_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from urllib.error import URLError

    def no_network(*_: object, **__: object) -> None:
        raise URLError("no network")

    monkeypatch.setattr("torch.hub.download_url_to_file", no_network)
    monkeypatch.setattr(torch.hub, "_hub_dir", "/nonexistent-cache")
    monkeypatch.setattr("os.makedirs", lambda *_, **__: None)
    with pytest.raises(RunError, match=r"cannot download https://.*resnet18.*checkpoints"):
        torchvision_models.build(architecture="resnet18", pretrained="DEFAULT")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"architecture": "resnet5"}, "did you mean 'resnet50'"),
        ({"architecture": "resnet18", "pretrained": "IMAGENET1K"}, "did you mean 'IMAGENET1K_V1'"),
        ({"architecture": "resnet18", "classes": 0}, "classes = 0: expected a whole number from 1"),
    ],
)
def test_torchvision_names_are_checked(options: dict[str, object], words: str) -> None:
    with pytest.raises(UserError, match=words):
        torchvision_models.build(**options)  # type: ignore[arg-type]

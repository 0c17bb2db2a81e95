"""What every model family and every data set in the folders has to do, from the day its file appears."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from infoprune.config import registry
from infoprune.data.dataset import Data
from infoprune.errors import UserError
from infoprune.evaluation.metrics import ModelReference
from infoprune.exporting.export import export
from infoprune.io import checkpoint
from infoprune.pruning.channel_graph import channel_graph

# Only what a family cannot do without; everything else has to have a default.
REQUIRED = {"torchvision": {"architecture": "squeezenet1_1"}, "timm": {"architecture": "resnet10t"}}
INPUTS = {"torchvision": (3, 64, 64), "convac": (1, 16, 16), "lenet": (1, 28, 28), "alexnet": (3, 64, 64)}
# Built to check theorems on: no convolution to cut.
NOT_PRUNABLE = {"convac"}


@pytest.fixture(params=registry.names("models"))
def reference(request: pytest.FixtureRequest) -> ModelReference:
    if request.param == "timm":
        pytest.importorskip("timm", reason="timm is not installed")
    return ModelReference(request.param, REQUIRED.get(request.param, {}))


def example_for(reference: ModelReference) -> torch.Tensor:
    return torch.randn(2, *INPUTS.get(reference.name, (3, 32, 32)))


def test_models_are_built_alike_and_can_be_pruned(reference: ModelReference) -> None:
    model = checkpoint.build(reference)
    assert isinstance(model, nn.Module)
    assert not model.training
    assert registry.find("models", reference.name).__doc__
    if reference.name in NOT_PRUNABLE:
        with pytest.raises(UserError, match="there is nothing to prune"):
            channel_graph(model, example_for(reference))
    else:
        assert [group for group in channel_graph(model, example_for(reference)).groups if not group.refusal]
    again = checkpoint.build(reference)
    assert {name: value.shape for name, value in model.state_dict().items()} == {
        name: value.shape for name, value in again.state_dict().items()
    }


def test_model_checkpoints_give_the_same_outputs(reference: ModelReference, tmp_path: Path) -> None:
    model, example = checkpoint.build(reference), example_for(reference)
    checkpoint.save(tmp_path / "model.safetensors", model, reference)
    with torch.no_grad():
        assert torch.equal(checkpoint.load(tmp_path / "model.safetensors")(example), model(example))


def test_models_are_written_as_python(reference: ModelReference, tmp_path: Path) -> None:
    if reference.name in NOT_PRUNABLE:
        pytest.skip("it asks for the smallest number of the input's type, which no trace records")
    row = export(checkpoint.build(reference), example_for(reference), tmp_path, formats=["source"])[1]
    assert row.max_rel_difference <= 1e-6


def folder_of_images(root: Path) -> Path:
    generator = np.random.default_rng(0)
    for split, count in (("train", 12), ("val", 4)):
        for name in ("cats", "dogs"):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = generator.integers(0, 256, (40, 40, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{i}.png")
    return root


@pytest.fixture(params=registry.names("datasets"))
def options(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, dict[str, Any]]:
    """A data set's name and the least options it can do with."""
    if request.param == "cifar10":
        return request.param, {"root": str(request.getfixturevalue("data_root") / "cifar10")}
    if request.param == "nips2017":
        return request.param, {"root": str(request.getfixturevalue("data_root") / "nips2017")}
    if request.param == "image_folder":
        return request.param, {"root": str(folder_of_images(tmp_path)), "size": 32, "workers": 0}
    if request.param in ("mnist", "fashion_mnist"):
        return request.param, {"root": str(request.getfixturevalue("idx_folder")), "validation": 20}
    if request.param == "fruits360":
        return request.param, {"root": str(request.getfixturevalue("fruits_folder")), "validation": 9}
    if request.param == "torchvision":
        fake = {"size": 60, "image_size": [3, 16, 16], "num_classes": 3}
        return request.param, {"dataset": "FakeData", "arguments": fake, "augment": True}
    return request.param, {}


def test_data_sets_have_three_fixed_splits(options: tuple[str, dict[str, Any]]) -> None:
    data, again = (checkpoint.load_data(*options) for _ in range(2))
    assert isinstance(data, Data)
    assert data.fingerprint == again.fingerprint
    for split in ("train", "validation", "test"):
        assert len(getattr(data, split)) == len(getattr(again, split)) > 0
        images, labels = next(iter(data.batches(split, batch_size=8)))
        assert images.dim() == 4
        assert images.dtype == torch.float32
        assert images.isfinite().all()
        assert labels.dtype == torch.int64
        assert 0 <= labels.min() <= labels.max() < data.classes
        torch.testing.assert_close(images, next(iter(again.batches(split, batch_size=8)))[0])


def test_training_batches_follow_from_the_seed(options: tuple[str, dict[str, Any]]) -> None:
    def first(seed: int) -> torch.Tensor:
        torch.manual_seed(0)  # transforms of torchvision draw from the global generator
        return next(iter(checkpoint.load_data(*options).batches("train", batch_size=8, seed=seed, augment=True)))[0]

    torch.testing.assert_close(first(0), first(0))
    assert not torch.equal(first(0), first(1))

"""Data sets of torchvision: their own splits under whatever name, parts set aside where they lack one."""

import gzip
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from infoprune.datasets import torchvision as datasets
from infoprune.errors import UserError

FAKE = {"size": 100, "image_size": [3, 12, 10], "num_classes": 4}


def folders(root: Path, sizes: dict[str, int], side: int = 12) -> Path:
    """One grey per split and class."""
    for number, (split, count) in enumerate(sizes.items()):
        for label, kind in enumerate(("a", "b")):
            (root / split / kind).mkdir(parents=True)
            for i in range(count):
                Image.new("L", (side + i % 2, side), 100 * label + 10 * number).save(root / split / kind / f"{i}.png")
    return root


def greys(data: Any, split: str) -> set[int]:
    pixels = getattr(data, split)
    return {int(pixels[i][0].min()) for i in range(len(pixels))}


def test_without_splits_two_parts_are_set_aside() -> None:
    data, again = (datasets.load(dataset="FakeData", arguments=FAKE) for _ in range(2))
    assert [len(part) for part in (data.train, data.validation, data.test)] == [72, 8, 20]
    assert len({*data.train.dataset.indices}) == 80
    assert data.classes == 4
    assert data.fingerprint == again.fingerprint
    assert data.fingerprint != datasets.load(dataset="FakeData", arguments=FAKE, seed=1).fingerprint
    images, _ = next(iter(data.batches("test", batch_size=5)))
    assert images.shape == (5, 3, 12, 10)
    own = torch.stack([data.test[i][0] for i in range(5)]).float() / 255
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in (datasets.IMAGENET_MEAN, datasets.IMAGENET_STD))
    torch.testing.assert_close(images, (own - mean) / std)


def test_splits_by_train_true_and_false(idx_folder: Path) -> None:
    raw = idx_folder / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for packed in idx_folder.glob("*.gz"):
        (raw / packed.stem).write_bytes(gzip.decompress(packed.read_bytes()))
    data = datasets.load(dataset="MNIST", root=str(idx_folder), mode="L", size=14, validation_share=0.2, augment=True)
    assert [len(part) for part in (data.train, data.validation, data.test)] == [48, 12, 20]
    assert data.classes == 10
    labels = torch.cat([labels for _, labels in data.batches("validation")])
    assert sorted(set(labels.tolist())) == list(range(10))  # of every class alike
    images, _ = next(iter(data.batches("train", batch_size=8, seed=0, augment=True)))
    assert images.shape == (8, 1, 14, 14)
    assert images.min() >= -1


def test_splits_by_name_keep_their_images(tmp_path: Path) -> None:
    folders(tmp_path / "country211", {"train": 3, "valid": 2, "test": 2})
    data = datasets.load(dataset="Country211", root=str(tmp_path), size=8, mode="L")
    assert (greys(data, "train"), greys(data, "validation"), greys(data, "test")) == ({0, 100}, {10, 110}, {20, 120})
    assert data.classes == 2


def test_splits_may_be_spelt_out(tmp_path: Path) -> None:
    folders(tmp_path, {"learn": 10, "judge": 2})
    splits = {"train": {"root": str(tmp_path / "learn")}, "test": {"root": str(tmp_path / "judge")}}
    data = datasets.load(dataset="ImageFolder", splits=splits, size=8, mode="L", validation_share=0.2)
    assert greys(data, "test") == {10, 110}
    assert (len(data.train), len(data.validation)) == (16, 4)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"dataset": "FakeDate"}, "no data set 'FakeDate'; did you mean 'FakeData'"),
        ({"dataset": "wrap_dataset_for_transforms_v2"}, "no data set"),
        ({"dataset": "MNIST", "root": "nowhere"}, r"cannot read MNIST: .*data.download=true"),
        ({"dataset": "Country211", "root": "nowhere"}, r"cannot read Country211: .*data.download=true"),
        ({"dataset": "FakeData", "arguments": {"colours": 3}}, "FakeData does not take .*colours"),
        ({"dataset": "Country211", "root": ".", "arguments": {"split": "dev"}}, "Country211 does not take"),
        ({"dataset": "FakeData", "arguments": FAKE, "splits": {"test": {}}}, "splits has test; expected train"),
        ({"dataset": "FakeData", "arguments": FAKE, "mean": [0.5]}, "as many numbers as the images have channels, 3"),
        ({"dataset": "FakeData", "arguments": FAKE, "size": 0}, "size = 0: expected a whole number from 1"),
        (
            {"dataset": "FakeData", "arguments": FAKE, "test_share": 1.0},
            "test_share = 1.0: expected a number above 0 and below 1",
        ),
        ({"dataset": "FakeData", "arguments": {**FAKE, "size": 1}}, "cannot set 0.2 of the 1 samples"),
    ],
)
def test_what_cannot_be_is_told(options: dict[str, Any], words: str, tmp_path: Path) -> None:
    if options.get("root") == "nowhere":
        options = {**options, "root": str(tmp_path)}
    with pytest.raises(UserError, match=words):
        datasets.load(**options)


def test_images_of_many_sizes_need_one(tmp_path: Path) -> None:
    folders(tmp_path, {"all": 6})
    with pytest.raises(UserError, match="cannot be put into a batch"):
        datasets.load(dataset="ImageFolder", root=str(tmp_path / "all"))
    assert datasets.load(dataset="ImageFolder", root=str(tmp_path / "all"), size=6, validation_share=0.3).classes == 2

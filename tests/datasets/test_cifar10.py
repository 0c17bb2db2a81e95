"""CIFAR-10: both of its layouts, splits that share no image, crops, and messages for what is missing or damaged."""

import os
import pickle
from hashlib import md5
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from infoprune.data.dataset import Data
from infoprune.datasets import cifar10
from infoprune.errors import UserError

FOLDER = os.environ.get("INFOPRUNE_DATA", "")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def stored(data: Data, split: str) -> tuple[Tensor, Tensor]:
    images, labels = getattr(data, split).tensors
    return images, labels


def cells(seed: int, count: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Coarse random images, which compress well, and labels."""
    coarse = np.random.default_rng(seed).integers(0, 256, (count, 4, 4, 3), dtype=np.uint8)
    return coarse.repeat(8, axis=1).repeat(8, axis=2), np.arange(count, dtype=np.uint8) % 10


def write_sheets(folder: Path) -> Path:
    """2,000 training and 1,000 test images in the layout of sheets."""
    folder.mkdir(parents=True)
    for part, sheets in (("train", 2), ("test", 1)):
        images, labels = cells(sheets, 1000 * sheets)
        for number in range(sheets):
            sheet = (
                images[1000 * number :][:1000].reshape(25, 40, 32, 32, 3).transpose(0, 2, 1, 3, 4).reshape(800, 1280, 3)
            )
            Image.fromarray(sheet).save(folder / f"{part}-{number:02d}.webp", lossless=True, method=0)
        (folder / f"{part}-labels.u8").write_bytes(labels.tobytes())
    return folder


@pytest.fixture(scope="module")
def sheets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sheets(tmp_path_factory.mktemp("data") / "cifar10")


@pytest.fixture
def own_sheets(tmp_path: Path) -> Path:
    """For tests that damage them."""
    return write_sheets(tmp_path / "cifar10")


def write_batches(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same images in torchvision's layout, with the checksums that torchvision looks for."""
    from torchvision.datasets import CIFAR10

    base = folder / "cifar-10-batches-py"
    base.mkdir()

    def write(name: str, content: dict[str, Any]) -> list[str]:
        (base / name).write_bytes(pickle.dumps(content))
        return [name, md5((base / name).read_bytes()).hexdigest()]

    for attribute, name, count in (("train_list", "data_batch_1", 2000), ("test_list", "test_batch", 1000)):
        images, labels = cells(count // 1000, count)
        content = {"data": images.transpose(0, 3, 1, 2).reshape(count, -1), "labels": labels.tolist()}
        monkeypatch.setattr(CIFAR10, attribute, [write(name, content)])
    names = write("batches.meta", {"label_names": list("abcdefghij")})
    monkeypatch.setattr(CIFAR10, "meta", {"filename": names[0], "key": "label_names", "md5": names[1]})


def test_sheets_hold_the_images_in_order_and_validation_comes_out_of_training(sheets: Path) -> None:
    data = cifar10.load(root=str(sheets), validation=200)
    test, labels = stored(data, "test")
    images, expected = cells(1, 1000)
    assert test.dtype == torch.uint8
    assert np.array_equal(test.numpy(), images.transpose(0, 3, 1, 2))
    assert np.array_equal(labels.numpy(), expected)
    both = torch.cat([stored(data, "train")[0], stored(data, "validation")[0]]).flatten(1)
    everything = torch.tensor(cells(2, 2000)[0].transpose(0, 3, 1, 2).reshape(2000, -1))
    assert torch.equal(both.unique(dim=0), everything.unique(dim=0))
    assert len(both) == 2000
    assert stored(data, "validation")[1].bincount().tolist() == [20] * 10


def test_both_layouts_give_the_same_data(sheets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_batches(tmp_path, monkeypatch)
    theirs = cifar10.load(root=str(tmp_path), validation=200)
    ours = cifar10.load(root=str(sheets), validation=200)
    assert theirs.fingerprint == ours.fingerprint
    assert all(
        torch.equal(a, b)
        for split in ("train", "test")
        for a, b in zip(stored(theirs, split), stored(ours, split), strict=True)
    )


def test_the_fingerprint_is_of_content_and_splits(sheets: Path) -> None:
    load = lambda **options: cifar10.load(root=str(sheets), validation=200, **options).fingerprint  # noqa: E731
    assert load() == load(augment=False)
    assert load() != load(seed=1)


def test_the_variable_names_the_folder_above(sheets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INFOPRUNE_DATA", str(sheets.parent))
    assert len(cifar10.load(validation=10).train) == 1990  # type: ignore[arg-type]


def test_bytes_become_standardised_floats(sheets: Path) -> None:
    data = cifar10.load(root=str(sheets), validation=200, mean=[0.5, 0.25, 0], std=[0.5, 1, 2])
    image = torch.tensor([0, 255, 255], dtype=torch.uint8).view(1, 3, 1, 1)
    torch.testing.assert_close(data.prepare(image).flatten(), torch.tensor([-1, 0.75, 0.5]))


def test_crops_are_windows_of_the_bordered_image_or_of_its_mirror_image() -> None:
    images = torch.randint(1, 256, (40, 3, 32, 32), dtype=torch.uint8)
    changed = cifar10.crop_and_mirror(images, generator())
    windows = torch.nn.functional.pad(images, (4, 4, 4, 4)).unfold(2, 32, 1).unfold(3, 32, 1)
    plain = (windows == changed.view(40, 3, 1, 1, 32, 32)).all(-1).all(-1).all(1)
    mirrored = (windows == changed.flip(3).view(40, 3, 1, 1, 32, 32)).all(-1).all(-1).all(1)
    assert (plain | mirrored).flatten(1).sum(1).tolist() == [1] * 40
    assert 10 < int(mirrored.sum()) < 30
    assert len((plain | mirrored).flatten(1).nonzero()[:, 1].unique()) > 20
    assert torch.equal(changed, cifar10.crop_and_mirror(images, generator()))
    assert not torch.equal(changed, cifar10.crop_and_mirror(images, generator(1)))


def damage(folder: Path, what: str) -> None:
    labels = folder / "test-labels.u8"
    if what == "a missing sheet":
        (folder / "train-01.webp").unlink()
    elif what == "a wrong size":
        Image.new("RGB", (1280, 768)).save(folder / "test-00.webp", lossless=True)
    elif what == "no image":
        (folder / "test-00.webp").write_bytes(b"nothing")
    elif what == "too few labels":
        labels.write_bytes(labels.read_bytes()[:999])
    elif what == "labels for fewer sheets":
        (folder / "train-labels.u8").write_bytes(bytes(1000))
    elif what == "labels out of range":
        labels.write_bytes(bytes([10]) + labels.read_bytes()[1:])


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("a missing sheet", "no '.*train-01.webp'"),
        ("a wrong size", "1280x768 pixels; expected 1280x800"),
        ("no image", "cannot be read as an image"),
        ("too few labels", "999 labels"),
        ("labels for fewer sheets", "1000 labels"),
        ("labels out of range", "a label is 10; expected 0..9"),
    ],
)
def test_damaged_sheets_are_named(own_sheets: Path, what: str, words: str) -> None:
    damage(own_sheets, what)
    with pytest.raises(UserError, match=words):
        cifar10.load(root=str(own_sheets), validation=200)


def test_missing_data_says_what_was_looked_for_and_how_to_set_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("INFOPRUNE_DATA", raising=False)
    with pytest.raises(UserError, match=r"INFOPRUNE_DATA.*--set data\.root=FOLDER"):
        cifar10.load()
    with pytest.raises(UserError, match=r"looked for .*train-labels.u8.*cifar-10-batches-py.*data\.root"):
        cifar10.load(root=str(tmp_path))
    with pytest.raises(UserError, match=r"looked for .*train-labels.u8, [^,]*train-labels.u8; "):
        cifar10.load(root=str(tmp_path), layout="sheets")
    (tmp_path / "cifar-10-batches-py").mkdir()
    with pytest.raises(UserError, match="corrupted"):
        cifar10.load(root=str(tmp_path))


@pytest.mark.parametrize("option", [{"validation": 5}, {"validation": 1995}, {"std": [1.0, 1.0, 0.0]}, {"mean": [0.5]}])
def test_cifar10_refuses_options_that_do_not_fit(sheets: Path, option: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="expected"):
        cifar10.load(root=str(sheets), **{"validation": 200, **option})


@pytest.mark.skipif(not FOLDER, reason="set INFOPRUNE_DATA to the folder with cifar10/")
def test_the_whole_of_cifar10() -> None:
    data = cifar10.load()
    assert [len(stored(data, split)[1]) for split in ("train", "validation", "test")] == [45000, 5000, 10000]
    assert stored(data, "test")[1][:10].tolist() == [3, 8, 8, 0, 6, 6, 1, 6, 3, 1]  # cat, ship, ship, airplane, frog, …

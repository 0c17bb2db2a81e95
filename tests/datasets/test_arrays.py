"""Data sets of arrays (MNIST, Fashion-MNIST, Fruits-360): the right image beside its label, and damage is named."""

import gzip
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest
import torch
from torch import Tensor

from infoprune.data.dataset import Data
from infoprune.datasets import fashion_mnist, fruits360, mnist
from infoprune.errors import UserError

FOLDER = os.environ.get("INFOPRUNE_DATA", "")
needs_data = pytest.mark.skipif(not FOLDER, reason="set INFOPRUNE_DATA to the folder with mnist/ and fruits360/")


def stored(data: Data, split: str) -> tuple[Tensor, Tensor]:
    images, labels = getattr(data, split).tensors
    return images, labels


def test_every_training_image_is_in_one_split_with_its_label(idx_folder: Path) -> None:
    data = mnist.load(root=str(idx_folder), validation=20)
    (train, train_labels), (aside, aside_labels) = stored(data, "train"), stored(data, "validation")
    assert train.shape == (40, 1, 28, 28)
    assert train.dtype == torch.uint8
    numbers = torch.cat([train, aside])[:, 0, 0, 0].long()
    assert sorted(numbers.tolist()) == list(range(60))
    assert torch.equal(numbers % 10, torch.cat([train_labels, aside_labels]))
    assert aside_labels.bincount().tolist() == [2] * 10
    test, labels = stored(data, "test")
    assert test[:, 0, 0, 0].tolist() == list(range(20))
    assert labels.tolist() == [number % 10 for number in range(20)]


@pytest.mark.parametrize(("load", "mean", "std"), [(mnist.load, 0.1307, 0.3081), (fashion_mnist.load, 0.2860, 0.3530)])
def test_bytes_become_standardised_floats(load: Callable[..., Data], mean: float, std: float, idx_folder: Path) -> None:
    data = load(root=str(idx_folder), validation=20)
    image = torch.tensor([[[[0, 255]]]], dtype=torch.uint8)
    expected = torch.tensor([-mean / std, (1 - mean) / std])
    torch.testing.assert_close(data.prepare(image).flatten(), expected)


def test_files_are_found_where_torchvision_leaves_them_and_unpacked(idx_folder: Path) -> None:
    expected = mnist.load(root=str(idx_folder), validation=20).fingerprint
    raw = idx_folder / "above" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for path in idx_folder.glob("*.gz"):
        (raw / path.stem).write_bytes(gzip.decompress(path.read_bytes()))
    assert mnist.load(root=str(idx_folder / "above"), validation=20).fingerprint == expected
    assert mnist.load(root=str(idx_folder), validation=20, seed=1).fingerprint != expected


def rewrite(path: Path, change: Callable[[bytes], bytes]) -> None:
    path.write_bytes(gzip.compress(change(gzip.decompress(path.read_bytes()))))


@pytest.mark.parametrize(
    ("file", "change", "words"),
    [
        ("train-labels-idx1", None, "is incomplete: no '.*train-labels-idx1-ubyte.gz'"),
        ("train-images-idx3", lambda path: path.write_bytes(path.read_bytes()[:900]), "cannot be read"),
        ("t10k-images-idx3", lambda path: path.write_bytes(b"no gzip"), "cannot be read"),
        ("t10k-images-idx3", lambda path: rewrite(path, lambda c: c[:-5]), r"holds 15675 bytes.*\(20, 28, 28\)"),
        ("t10k-labels-idx1", lambda path: rewrite(path, lambda c: b"\1" + c[1:]), "starts with 01 00 08 01, expected"),
        ("t10k-labels-idx1", lambda path: rewrite(path, lambda _: b""), "expected the header of an IDX file"),
        ("train-labels-idx1", lambda path: rewrite(path, lambda c: c[:-1] + b"\x0a"), "training set: a label is 10"),
        (
            "train-labels-idx1",
            lambda path: rewrite(path, lambda c: c[:7] + b"\x3b" + c[8:-1]),
            "60 training images, but 59 labels",
        ),
        (
            "t10k-images-idx3",
            lambda path: rewrite(path, lambda c: c[:11] + b"\x0e" + c[12:15] + b"\x38" + c[16:]),
            r"shape \(14, 56\).*expected 28x28",
        ),
    ],
)
def test_damaged_idx_files_are_named(idx_folder: Path, file: str, change: Any, words: str) -> None:
    path = idx_folder / f"{file}-ubyte.gz"
    change(path) if change else path.unlink()
    with pytest.raises(UserError, match=words):
        mnist.load(root=str(idx_folder), validation=20)


@pytest.mark.parametrize(
    ("load", "file"),
    [(mnist.load, "train-images-idx3"), (fashion_mnist.load, "train-images-idx3"), (fruits360.load, "zip")],
)
def test_missing_data_says_what_was_looked_for_and_how_to_set_it(
    load: Callable[..., Data], file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("INFOPRUNE_DATA", raising=False)
    with pytest.raises(UserError, match=r"INFOPRUNE_DATA.*--set data\.root=FOLDER"):
        load()
    with pytest.raises(UserError, match=rf"looked for .*{file}.*data\.root=FOLDER"):
        load(root=str(tmp_path))


def test_a_failed_download_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*_: object, **__: object) -> None:
        raise RuntimeError("no network")

    monkeypatch.setattr("torchvision.datasets.mnist.download_and_extract_archive", no_network)
    with pytest.raises(UserError, match=r"(?s)torchvision cannot fetch MNIST into .*no network"):
        mnist.load(root=str(tmp_path), download=True)


def test_validation_must_leave_every_class_in_both_parts(idx_folder: Path) -> None:
    for validation in (9, 51):
        with pytest.raises(UserError, match=f"validation = {validation}; expected 10 to 50"):
            mnist.load(root=str(idx_folder), validation=validation)


def test_the_folders_of_the_archive_are_the_classes(fruits_folder: Path) -> None:
    data = fruits360.load(root=str(fruits_folder), validation=9)
    assert data.classes == 3
    images, labels = stored(data, "train")
    assert images.shape == (27, 3, 64, 64)
    assert torch.equal(images[:, 0, 0, 0].long() // 80, labels)
    assert stored(data, "validation")[1].bincount().tolist() == [3, 3, 3]
    assert stored(data, "test")[1].tolist() == [0] * 4 + [1] * 4 + [2] * 4


def replace(path: Path, name: str, content: bytes) -> None:
    with ZipFile(path) as archive:
        entries = {entry: archive.read(entry) for entry in archive.namelist()}
    with ZipFile(path, "w") as archive:
        for entry, old in entries.items():
            archive.writestr(entry, content if entry == name else old)
        if name not in entries:
            archive.writestr(name, content)


SMALL = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de0000000c49444154789c63606060000000040001f61738"
    "550000000049454e44ae426082"
)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda folder: (folder / "test64.zip").unlink(), "test64.zip' cannot be read"),
        (lambda folder: (folder / "test64.zip").write_bytes(b"no zip"), "test64.zip' cannot be read"),
        (
            lambda folder: replace(folder / "train64.zip", "01/3.png", b"nothing"),
            "01/3.png' cannot be read as an image",
        ),
        (lambda folder: replace(folder / "train64.zip", "01/3.png", SMALL), "1x1 pixels; expected 64x64"),
        (lambda folder: replace(folder / "train64.zip", "loose.png", SMALL), "expected one per class"),
        (
            lambda folder: replace(folder / "test64.zip", "07/0.png", (folder / "x.png").read_bytes()),
            "differ in the classes 07",
        ),
    ],
)
def test_damaged_archives_are_named(fruits_folder: Path, change: Any, words: str) -> None:
    with ZipFile(fruits_folder / "train64.zip") as archive:
        (fruits_folder / "x.png").write_bytes(archive.read("00/0.png"))
    change(fruits_folder)
    with pytest.raises(UserError, match=words):
        fruits360.load(root=str(fruits_folder), validation=9)


@needs_data
@pytest.mark.parametrize("load", [mnist.load, fashion_mnist.load])
def test_the_whole_of_mnist_and_its_relative(load: Callable[..., Data]) -> None:
    data = load()
    assert [len(stored(data, split)[1]) for split in ("train", "validation", "test")] == [55000, 5000, 10000]
    images = data.prepare(stored(data, "train")[0])
    assert abs(images.mean()) < 0.01
    assert abs(images.std() - 1) < 0.01


@needs_data
def test_the_whole_of_fruits360() -> None:
    data = fruits360.load()
    assert [len(stored(data, split)[1]) for split in ("train", "validation", "test")] == [4260, 710, 2130]
    images = data.prepare(stored(data, "train")[0])
    torch.testing.assert_close(images.mean((0, 2, 3)), torch.zeros(3), atol=0.01, rtol=0)
    torch.testing.assert_close(images.std((0, 2, 3)), torch.ones(3), atol=0.01, rtol=0)

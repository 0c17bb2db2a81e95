"""The 1,000 images in two halves: none is in both, and what is malformed is named."""

import io
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from infoprune.datasets import nips2017
from infoprune.errors import UserError

FOLDER = os.environ.get("INFOPRUNE_DATA", "")


def write(folder: Path, count: int = 12, size: int = 224, label: str | None = None) -> Path:
    """Image i is of grey i and has label i."""
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(folder / "images224.zip", "w") as archive:
        for i in range(count):
            content = io.BytesIO()
            Image.fromarray(np.full((size, size, 3), i, np.uint8)).save(content, "png")
            archive.writestr(f"{i:02d}.png", content.getvalue())
    rows = [f"{i:02d}.png,{i if label is None else label},someone" for i in range(count)]
    (folder / "labels.csv").write_text("\n".join(["file,label,author", *rows]) + "\n", encoding="utf-8")
    return folder


def test_every_image_is_in_one_split_with_its_own_label(tmp_path: Path) -> None:
    data = nips2017.load(root=str(write(tmp_path)), validation=2)
    assert [len(getattr(data, split)) for split in ("train", "validation", "test")] == [4, 2, 6]
    seen = []
    for split in ("train", "validation", "test"):
        images, labels = getattr(data, split).tensors
        assert torch.equal(images[:, 0, 0, 0].long(), labels)
        seen += labels.tolist()
    assert sorted(seen) == list(range(12))


def test_the_test_half_stays_whatever_the_validation_and_moves_with_the_seed(tmp_path: Path) -> None:
    root = str(write(tmp_path))
    halves = [
        nips2017.load(root=root, validation=validation, seed=seed).test.tensors[1].tolist()  # type: ignore[attr-defined]
        for validation, seed in ((1, 0), (3, 0), (1, 1))
    ]
    assert halves[0] == halves[1] != halves[2]
    prints = {nips2017.load(root=root, validation=v, seed=s).fingerprint for v, s in ((1, 0), (3, 0), (1, 1))}
    assert len(prints) == 3


def test_both_normalisations_are_what_they_say(tmp_path: Path) -> None:
    root = str(write(tmp_path))
    symmetric = nips2017.load(root=root, validation=1, normalisation="symmetric")
    images, labels = next(iter(symmetric.batches("test", batch_size=1)))
    torch.testing.assert_close(images[0, :, 0, 0], (labels / 127.5 - 1).expand(3))
    images, labels = next(iter(nips2017.load(root=root, validation=1).batches("test", batch_size=1)))
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    torch.testing.assert_close(images[0, :, 0, 0], (labels / 255 - mean) / std)


def test_what_is_missing_or_malformed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("INFOPRUNE_DATA", raising=False)
    with pytest.raises(UserError, match="INFOPRUNE_DATA is not set"):
        nips2017.load(root=str(tmp_path / "nowhere"))
    root = write(tmp_path / "a")
    with pytest.raises(UserError, match="validation = 6; expected 1 to 5"):
        nips2017.load(root=str(root), validation=6)
    with pytest.raises(UserError, match="smallest_crop"):
        nips2017.load(root=str(root), smallest_crop=0)
    monkeypatch.setenv("INFOPRUNE_DATA", str(tmp_path))
    assert len(nips2017.load(root="a", validation=1).test) == 6  # type: ignore[arg-type]
    with pytest.raises(UserError, match="200x200 pixels; expected 224x224"):
        nips2017.load(root=str(write(tmp_path / "b", size=200)), validation=1)
    with pytest.raises(UserError, match="label 1000"):
        nips2017.load(root=str(write(tmp_path / "c", label="1000")), validation=1)
    with pytest.raises(UserError, match="columns file and label"):
        nips2017.load(root=str(write(tmp_path / "d", label="cat")), validation=1)


def test_a_broken_archive_is_named(tmp_path: Path) -> None:
    root = write(tmp_path)
    with zipfile.ZipFile(root / "images224.zip", "w") as archive:
        for i in range(12):
            archive.writestr(f"{i:02d}.png", b"nothing")
    with pytest.raises(UserError, match=r"00\.png' cannot be read"):
        nips2017.load(root=str(root), validation=1)
    with zipfile.ZipFile(root / "images224.zip", "w") as archive:
        archive.writestr("other.png", b"")
    with pytest.raises(UserError, match="no complete archive"):
        nips2017.load(root=str(root), validation=1)
    (root / "images224.zip").write_bytes(b"torn")
    with pytest.raises(UserError, match="no complete archive"):
        nips2017.load(root=str(root), validation=1)


@pytest.mark.skipif(not FOLDER, reason="set INFOPRUNE_DATA to the folder with nips2017/")
def test_the_whole_set() -> None:
    data = nips2017.load()
    assert [len(getattr(data, split)) for split in ("train", "validation", "test")] == [400, 100, 500]
    images, labels = next(iter(data.batches("train", batch_size=8, seed=0, augment=True)))
    assert images.shape == (8, 3, 224, 224)
    assert labels.max() < data.classes == 1000

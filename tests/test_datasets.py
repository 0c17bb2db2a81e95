"""Data sets: fixed splits that share no image, augmentation that a seed repeats, and messages for what is missing."""

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

from infoprune.datasets import cifar10, digits, image_folder
from infoprune.errors import UserError
from infoprune.splits import Data

FOLDER = os.environ.get("INFOPRUNE_DATA", "")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def stored(data: Data, split: str) -> tuple[Tensor, Tensor]:
    images, labels = getattr(data, split).tensors
    return images, labels


# --- digits ---


def test_digits_splits_have_all_images_once_and_equal_class_shares() -> None:
    data = digits.load()
    images = torch.cat([stored(data, split)[0] for split in ("train", "validation", "test")])
    labels = [stored(data, split)[1] for split in ("train", "validation", "test")]
    assert [len(part) for part in labels] == [1078, 270, 449]
    assert len(images.flatten(1).unique(dim=0)) == 1797  # no two images are equal, so none is in two splits
    shares = torch.stack([part.bincount(minlength=10) / len(part) for part in labels])
    assert (shares.amax(0) - shares.amin(0)).max() < 0.01


def test_digits_are_the_same_every_time_and_others_with_another_seed() -> None:
    once, again, other = digits.load(), digits.load(), digits.load(seed=1)
    assert torch.equal(stored(once, "test")[0], stored(again, "test")[0])
    assert once.fingerprint == again.fingerprint
    assert other.fingerprint != once.fingerprint
    assert digits.load(size=20).fingerprint != once.fingerprint


def test_digits_reach_the_network_standardised() -> None:
    images, labels = next(iter(digits.load().batches("train", batch_size=2000)))
    assert images.shape == (1078, 1, 16, 16)
    assert labels.dtype == torch.int64
    assert abs(images.mean()) < 0.01
    assert abs(images.std() - 1) < 0.01


def test_jitter_without_range_changes_nothing() -> None:
    images = torch.rand(4, 1, 8, 8)
    same = digits.jitter(images, generator(), shift=0, rotation=0, scaling=0)
    torch.testing.assert_close(same, images)


def test_jitter_moves_every_image_by_its_own_amount_within_the_range() -> None:
    images = torch.zeros(64, 1, 16, 16)
    images[:, :, 7:9, 7:9] = 1
    moved = digits.jitter(images, generator(), shift=0.125, rotation=0, scaling=0)
    place = torch.arange(16) + 0.5
    centres = torch.stack([(moved.sum(2) * place).sum(-1), (moved.sum(3) * place).sum(-1)]) / moved.sum((1, 2, 3)).view(
        -1, 1
    )
    assert 1.5 < (centres - 8).abs().max() <= 2 + 1e-4  # an eighth of 16 pixels
    assert len(centres[0].unique()) == 64


def test_augmentation_repeats_with_its_seed() -> None:
    data = digits.load()
    first, again, other = (
        next(iter(data.batches("train", batch_size=8, seed=seed, augment=True)))[0] for seed in (3, 3, 4)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert digits.load(augment=False).augment is None


@pytest.mark.parametrize("option", [{"size": 4}, {"shift": 1.0}, {"rotation": -1.0}, {"scaling": 2.0}])
def test_digits_refuse_options_out_of_range(option: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="expected size >= 8"):
        digits.load(**option)


# --- CIFAR-10 ---


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


# --- folders of images ---


def write_folders(root: Path, splits: dict[str, int], classes: tuple[str, ...] = ("a", "b")) -> Path:
    """Images of one grey per class, 20x30 pixels."""
    for split, count in splits.items():
        for label, name in enumerate(classes):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                Image.new("RGB", (30, 20), (100 * label + number,) * 3).save(root / split / name / f"{number}.png")
    return root


def load_small(root: Path, **options: Any) -> Data:
    return image_folder.load(root=str(root), size=14, workers=0, **options)


def greys(data: Data, split: str) -> set[int]:
    return {int(image[0, 0, 0]) for image, _ in getattr(data, split)}


def test_three_folders_are_the_three_splits(tmp_path: Path) -> None:
    data = load_small(write_folders(tmp_path, {"train": 6, "val": 2, "test": 3}))
    assert (len(greys(data, "train")), len(greys(data, "validation")), len(greys(data, "test"))) == (12, 4, 6)
    assert data.classes == 2
    images, labels = next(iter(data.batches("test", batch_size=6)))
    assert images.shape == (6, 3, 14, 14)
    assert labels.tolist() == [0, 0, 0, 1, 1, 1]
    grey = 102 / 255  # the last image of class b
    torch.testing.assert_close(
        images[-1, :, 0, 0], (grey - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    )


@pytest.mark.parametrize("second", ["val", "test"])
def test_of_two_folders_the_second_is_the_test_split_and_says_so(tmp_path: Path, second: str) -> None:
    data = load_small(write_folders(tmp_path, {"train": 10, second: 3}), validation_share=0.2)
    assert (len(greys(data, "train")), len(greys(data, "validation")), len(greys(data, "test"))) == (16, 4, 6)
    assert not greys(data, "train") & greys(data, "validation")
    assert f"test split: {second}/" in data.name


def test_the_central_square_is_what_torchvisions_own_transform_cuts(tmp_path: Path) -> None:
    from torchvision.transforms._presets import ImageClassification

    write_folders(tmp_path, {"train": 4, "test": 1})
    noise = np.random.default_rng(0).integers(0, 256, (307, 411, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "test" / "a" / "0.png")
    data = image_folder.load(root=str(tmp_path), workers=0, validation_share=0.5)
    ours = next(iter(data.batches("test")))[0][0]
    torch.testing.assert_close(ours, ImageClassification(crop_size=224)(Image.fromarray(noise)))


def test_random_crops_stay_inside_and_repeat_with_their_seed() -> None:
    ramp = torch.arange(64, dtype=torch.uint8).expand(32, 3, 64, 64)
    cut = image_folder.crop_and_mirror(ramp, generator(), size=32, smallest=0.25)
    assert cut.shape == (32, 3, 32, 32)
    assert cut.dtype == torch.uint8
    spans = (cut[:, 0, 0, -1].int() - cut[:, 0, 0, 0].int()).abs()
    # sides of 43 % (a quarter of the area, 3:4) to all of the square
    assert 0.43 * 64 - 3 < spans.min() < 40 < spans.max() <= 63
    rising = (cut[:, 0, 0, -1] > cut[:, 0, 0, 0]).sum()
    assert 8 < int(rising) < 24
    assert torch.equal(cut, image_folder.crop_and_mirror(ramp, generator(), size=32, smallest=0.25))
    whole = image_folder.crop_and_mirror(ramp, generator(), size=64, smallest=1.0)
    assert whole.shape == (32, 3, 64, 64)


def test_random_crops_have_the_area_and_the_proportions_asked_for() -> None:
    ramp = torch.arange(256).expand(256, 256)
    images = torch.stack([ramp, ramp.T, ramp]).float().expand(400, 3, 256, 256)
    cut = image_folder.crop_and_mirror(images, generator(), size=32, smallest=0.25)
    # The outer pixels of a cut are 31/32 of its side apart.
    width = (cut[:, 0, 0, -1] - cut[:, 0, 0, 0]).abs() / 256 * 32 / 31
    height = (cut[:, 1, -1, 0] - cut[:, 1, 0, 0]).abs() / 256 * 32 / 31
    area, ratio = width * height, (width / height)[width * height < 0.5]
    assert 0.24 < area.min() < 0.3
    assert 0.73 < ratio.min() < 0.8
    assert 1.25 < ratio.max() < 1.36


def test_the_fingerprint_of_folders_changes_with_their_files(tmp_path: Path) -> None:
    write_folders(tmp_path, {"train": 6, "val": 2, "test": 3})
    before = load_small(tmp_path).fingerprint
    assert load_small(tmp_path).fingerprint == before
    Image.new("RGB", (31, 20)).save(tmp_path / "test" / "a" / "0.png")
    assert load_small(tmp_path).fingerprint != before


def test_folders_that_do_not_fit_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no folder of a split; expected train/"):
        load_small(tmp_path)
    write_folders(tmp_path / "one", {"train": 2})
    with pytest.raises(UserError, match=r"has train/; expected"):
        load_small(tmp_path / "one")
    write_folders(tmp_path / "odd", {"train": 4})
    write_folders(tmp_path / "odd", {"val": 4}, classes=("a", "c"))
    with pytest.raises(UserError, match=r"same classes; they differ in b, c"):
        load_small(tmp_path / "odd")
    write_folders(tmp_path / "few", {"train": 1, "val": 1})
    with pytest.raises(UserError, match="validation_share"):
        load_small(tmp_path / "few")
    with pytest.raises(UserError, match="size <= resize"):
        load_small(tmp_path / "one", resize=10)
    with pytest.raises(UserError, match="three numbers"):
        load_small(tmp_path / "odd", std=[1.0])


def test_a_broken_image_is_named(tmp_path: Path) -> None:
    write_folders(tmp_path, {"train": 2, "val": 1, "test": 1})
    (tmp_path / "test" / "b" / "0.png").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"0\.png' cannot be read"):
        list(load_small(tmp_path).batches("test"))

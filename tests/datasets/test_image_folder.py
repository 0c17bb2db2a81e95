"""Images in folders: splits, crops as torchvision makes them, and messages for what is missing or broken."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from infoprune.data.dataset import Data
from infoprune.datasets import image_folder
from infoprune.errors import UserError
from infoprune.pipeline.context import open_run


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


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
    with pytest.raises(UserError, match="size = 14 is larger than resize = 10"):
        load_small(tmp_path / "one", resize=10)
    with pytest.raises(UserError, match="three numbers"):
        load_small(tmp_path / "odd", std=[1.0])


def test_a_broken_image_is_named(tmp_path: Path) -> None:
    write_folders(tmp_path, {"train": 2, "val": 1, "test": 1})
    (tmp_path / "test" / "b" / "0.png").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"0\.png' cannot be read"):
        list(load_small(tmp_path).batches("test"))


def test_no_run_directory_lies_among_the_images(tmp_path: Path) -> None:
    from infoprune.config import recipe

    (tmp_path / "train" / "cat").mkdir(parents=True)
    sets = ["data.name=image_folder", f"data.root='{tmp_path}'", "data.workers=0"]
    read = recipe.read("digits", [*sets, "data.size=16"])
    for inside in (tmp_path / "train" / "run", tmp_path / "train" / "cat"):
        with pytest.raises(UserError, match="lies among the data"):
            open_run(read, inside, force=True)
    assert list((tmp_path / "train").rglob("*")) == [tmp_path / "train" / "cat"]

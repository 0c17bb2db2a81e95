"""Any image classification data in folders, one folder per class: `root/train/CLASS/*.jpg`, likewise val and test."""

import os
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
from msgspec import Meta
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset, Subset

from infoprune.config.ranges import Deviation, Pixels, PositiveShare, ProperShare, Seed, Share, Workers, in_range
from infoprune.data.dataset import Data
from infoprune.data.fingerprints import Depth, fingerprints_of
from infoprune.datasets._images import read_rgb
from infoprune.datasets._policies import Policy, with_policy
from infoprune.errors import UserError

NAMES = {"train": ("train", "training"), "validation": ("val", "validation", "valid"), "test": ("test", "testing")}
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
RATIOS = (3 / 4, 4 / 3)  # of width to height of a training crop (Szegedy et al., CVPR 2015)


@in_range("[data]")
def load(
    *,
    root: str,
    size: Pixels = 224,
    resize: Annotated[int, Meta(ge=1, le=16_384)] | None = None,
    validation_share: ProperShare = 0.1,
    augment: bool = True,
    policy: Policy = "none",
    smallest_crop: PositiveShare = 0.25,
    mean: list[Share] | None = None,
    std: list[Deviation] | None = None,
    expected_by: str | None = None,
    workers: Workers = 4,
    seed: Seed = 0,
    fingerprint: Depth = "files",
) -> Data:
    """Images in folders, in the layout of torchvision's `ImageFolder`; classes are numbered in the folders' order.

    With `train`, `val` and `test`, each is what it says. With two of them, the second is the test split, whatever its
    name, and validation comes out of `train`: nothing is ever chosen by the images of the final figure. The report
    names the folder. Every image is resized, cut to its central square and stored as bytes, `3 x resize x resize`;
    training crops come out of that square, all else is its central `size x size`.

    Args:
        root: folder that holds `train/` and at least one of `val/` and `test/`.
        size: height and width that the network sees, in pixels.
        resize: length of the shorter side beforehand; 8/7 of `size` (256 for 224) if not given.
        validation_share: share of the training images set aside, 0..1, where one of `val/` and `test/` is missing.
        augment: whether training images are randomly cropped (area and proportions) and mirrored.
        policy: what they go through before: "trivial", "rand" or "auto" (as torchvision has them), or "none".
        smallest_crop: share of the square that a random crop covers at least, 0..1.
        mean: of red, green and blue, 0..1; ImageNet's if not given.
        std: of red, green and blue, likewise.
        expected_by: weights of torchvision, such as "ResNet50_Weights.IMAGENET1K_V2", that say size, resize,
            interpolation, mean and std in place of the options above.
        workers: processes that read images.
        seed: which training images are set aside.
        fingerprint: how it is noticed that images changed: "files" by their names, sizes and times of the last
            change, "content" by every byte, which takes as long as reading all files.

    Raises:
        UserError: for missing folders, classes that differ between them, options out of range, or anything but a
            regular file under the name of an image.
    """
    side, interpolation = round(size * 8 / 7) if resize is None else resize, "bilinear"
    if expected_by is not None:
        size, side, interpolation, mean, std = _expected(expected_by)
    if size > side:
        raise UserError(f"[data] size = {size} is larger than resize = {side}; raise resize, or leave it out")
    mean, std = list(mean or IMAGENET_MEAN), list(std or IMAGENET_STD)
    if len(mean) != 3 or len(std) != 3:
        raise UserError(f"got mean {mean} and std {std}; expected three numbers each")
    folders = _folders(Path(root))
    splits: dict[str, Any] = {name: _read(folder, side, interpolation) for name, folder in folders.items()}
    _check_classes(splits, folders)
    classes, note = len(splits["train"].classes), ""
    if "validation" not in splits or "test" not in splits:
        splits["test"] = splits.get("test", splits.get("validation"))
        splits["train"], splits["validation"] = _set_aside(splits["train"], validation_share, seed)
        note = f" (test split: {(folders.get('test') or folders['validation']).name}/, validation: out of train/)"
    splits = {name: splits[name] for name in ("train", "validation", "test")}
    return Data(
        name=f"{Path(root).resolve().name}{note}",
        **splits,
        classes=classes,
        prepare=partial(_normal, size=size, mean=mean, std=std),
        fingerprint=fingerprints_of(splits, root, fingerprint, probe=False),
        augment=with_policy(partial(crop_and_mirror, size=size, smallest=smallest_crop), policy) if augment else None,
        workers=workers,
    )


def _folders(root: Path) -> dict[str, Path]:
    found = {
        split: next(root / name for name in names if (root / name).is_dir())
        for split, names in NAMES.items()
        if any((root / name).is_dir() for name in names)
    }
    if "train" not in found or len(found) < 2:
        raise UserError(
            f"'{root}' has {', '.join(f'{folder.name}/' for folder in found.values()) or 'no folder of a split'}; "
            "expected train/ and val/ or test/ or both, each with one folder per class; set --set data.root=FOLDER"
        )
    return found


def _expected(weights: str) -> tuple[int, int, str, list[float], list[float]]:
    """Size, resize, interpolation, mean and std that published weights were measured with."""
    from torchvision import models

    try:
        preset = models.get_weight(weights).transforms()
        return preset.crop_size[0], preset.resize_size[0], preset.interpolation.value, preset.mean, preset.std
    except (ValueError, AttributeError) as failure:
        raise UserError(
            f"expected_by = '{weights}': no classification weights of torchvision ({failure}); give them as in "
            "ResNet50_Weights.IMAGENET1K_V2"
        ) from failure


def _read(folder: Path, side: int, interpolation: str) -> Dataset[Any]:
    # Imported where used: torchvision's transforms take a second to import.
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import v2

    # Resized as a PIL image, as torchvision's published accuracies are.
    stored = v2.Compose([v2.Resize(side, v2.InterpolationMode(interpolation)), v2.CenterCrop(side), v2.PILToTensor()])
    _check_links(folder)
    try:
        images: Dataset[Any] = ImageFolder(folder, transform=stored, loader=_open)
    except OSError as failure:
        raise UserError(f"'{folder}' holds no complete set of classes: {failure}") from failure
    return images


def _check_links(folder: Path) -> None:
    """Refuses links that lead up to a folder that holds them: following them would take forever."""
    for parent, names, _ in os.walk(folder):
        for name in names:
            link = Path(parent, name)
            if link.is_symlink() and Path(parent).resolve().is_relative_to(link.resolve()):
                raise UserError(f"'{link}' is a link to a folder that holds it; remove the link")


def _open(path: str) -> Image.Image:
    return read_rgb(path, path, "replace or remove it")


def _check_classes(splits: dict[str, Any], folders: dict[str, Path]) -> None:
    expected = set(splits["train"].classes)
    for name, split in splits.items():
        if odd := sorted(expected.symmetric_difference(split.classes)):
            raise UserError(
                f"'{folders[name]}' and '{folders['train']}' must have the same classes; they differ in "
                f"{', '.join(odd[:5])}{' …' if len(odd) > 5 else ''}"
            )


def _set_aside(images: Any, share: float, seed: int) -> tuple[Subset[Any], Subset[Any]]:
    from sklearn.model_selection import train_test_split

    try:
        rest, aside = train_test_split(range(len(images)), test_size=share, stratify=images.targets, random_state=seed)
    except ValueError as failure:
        raise UserError(
            f"cannot set {share:g} of {len(images)} training images aside with all classes in both parts: {failure}; "
            "set validation_share, or give both val/ and test/"
        ) from failure
    return Subset(images, rest), Subset(images, aside)


def _normal(images: Tensor, *, size: int, mean: list[float], std: list[float]) -> Tensor:
    from torchvision.transforms.v2 import functional as V

    pixels = V.to_dtype(V.center_crop(images, [size, size]), torch.float32, scale=True)
    normal: Tensor = V.normalize(pixels, mean, std)
    return normal


def crop_and_mirror(images: Tensor, generator: torch.Generator, *, size: int, smallest: float) -> Tensor:
    """Cuts a random part out of every image, `samples x channels x height x width`, resizes it and may mirror it.

    Area and proportions are drawn as in torchvision's `RandomResizedCrop`, limited to what fits.
    """
    count = len(images)

    def uniform(low: float, high: float) -> Tensor:
        # Drawn on the CPU wherever the images are: the same seed then means the same changes on every device.
        return low + (high - low) * torch.rand(count, generator=generator)

    area = uniform(smallest, 1)
    ratio = torch.exp(uniform(torch.tensor(RATIOS[0]).log().item(), torch.tensor(RATIOS[1]).log().item()))
    width, height = (area * ratio).sqrt().clamp(max=1), (area / ratio).sqrt().clamp(max=1)  # shares of the square
    across, down = uniform(-1, 1) * (1 - width), uniform(-1, 1) * (1 - height)  # the centre, -1..1 over the square
    mirror = torch.where(torch.rand(count, generator=generator) < 0.5, -1.0, 1.0)
    zero = torch.zeros(count)
    rows = [torch.stack([width * mirror, zero, across], 1), torch.stack([zero, height, down], 1)]
    grid = F.affine_grid(torch.stack(rows, 1).to(images.device), [count, 3, size, size], align_corners=False)
    cut = F.grid_sample(images.float(), grid, mode="bilinear", padding_mode="border", align_corners=False)
    return cut.round().to(images.dtype)

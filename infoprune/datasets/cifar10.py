"""CIFAR-10: 60,000 colour images of 32x32 in ten classes (Krizhevsky, "Learning multiple layers of features", 2009)."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from infoprune.config.ranges import Deviation, Seed, SetAside, Share, in_range
from infoprune.data.dataset import Data
from infoprune.datasets._arrays import Arrays, base_folder, three_splits
from infoprune.datasets._images import read_rgb
from infoprune.datasets._policies import Policy, with_policy
from infoprune.errors import UserError

Layout = Literal["auto", "sheets", "torchvision"]
Part = Literal["train", "test"]
CLASSES, SIDE, ROWS, COLUMNS = 10, 32, 25, 40
PER_SHEET = ROWS * COLUMNS
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PADDING = 4  # pixels on every side, of which the random crop leaves as many as it takes (He et al., CVPR 2016)


@in_range("[data]")
def load(
    *,
    root: str | None = None,
    layout: Layout = "auto",
    download: bool = False,
    validation: SetAside = 5000,
    augment: bool = True,
    policy: Policy = "none",
    mean: list[Share] | None = None,
    std: list[Deviation] | None = None,
    seed: Seed = 0,
) -> Data:
    """CIFAR-10 in three fixed splits: validation comes out of the training set in equal class shares.

    Images are stored as bytes, `3 x 32 x 32`, and reach the network as floats, (pixel / 255 - mean) / std.

    Args:
        root: folder of the data, or the one above its `cifar10/`; if not given, the variable INFOPRUNE_DATA names it.
        layout: "sheets" of 1,000 images (train-00.webp, train-labels.u8, …), "torchvision", or whichever is there.
        download: whether torchvision may fetch its layout into `root` where it is missing.
        validation: number of training images set aside.
        augment: whether training images are randomly cropped out of a black border of 4 pixels and mirrored.
        policy: what they go through before: "trivial", "rand" or "auto" (as torchvision has them), or "none".
        mean: of red, green and blue, 0..1; ImageNet's if not given, as the published CIFAR ResNets expect.
        std: of red, green and blue, likewise.
        seed: which training images are set aside.

    Raises:
        UserError: where the data is missing or malformed, or an option does not fit it.
    """
    mean, std = list(mean or IMAGENET_MEAN), list(std or IMAGENET_STD)
    if len(mean) != 3 or len(std) != 3:
        raise UserError(f"got mean {mean} and std {std}; expected three numbers each")
    read = _reader(root, layout, download)
    return three_splits(
        "cifar10",
        read("train"),
        read("test"),
        classes=CLASSES,
        validation=validation,
        mean=mean,
        std=std,
        seed=seed,
        augment=with_policy(crop_and_mirror, policy) if augment else None,
    )


def crop_and_mirror(images: Tensor, generator: torch.Generator) -> Tensor:
    """Crops every image of `samples x channels x height x width` at its own place, and mirrors about half of them."""
    count, _, height, width = images.shape
    # Drawn on the CPU wherever the images are: the same seed then means the same changes on every device.
    moves = torch.randint(0, 2 * PADDING + 1, (2, count, 1), generator=generator).to(images.device)
    mirrored = (torch.rand(count, 1, generator=generator) < 0.5).to(images.device)
    across = torch.arange(width, device=images.device)
    rows = moves[0] + torch.arange(height, device=images.device)
    columns = moves[1] + torch.where(mirrored, across.flip(0), across)
    padded = F.pad(images, (PADDING, PADDING, PADDING, PADDING))
    # One gather over flattened maps: on a CPU eight times as fast as indexing rows and columns.
    places = rows.unsqueeze(2) * padded.shape[3] + columns.unsqueeze(1)
    picked = padded.flatten(2).gather(2, places.view(count, 1, height * width).expand(-1, images.shape[1], -1))
    return picked.view_as(images)


def _reader(root: str | None, layout: Layout, download: bool) -> Callable[[Part], Arrays]:
    """Finds the layout, and with it the function that reads a part of the data."""
    base = base_folder(root, "CIFAR-10", "cifar10")
    folders = [base / "cifar10", base]
    for folder in folders:
        if layout != "torchvision" and (folder / "train-labels.u8").is_file():
            return partial(_from_sheets, folder)
        if layout != "sheets" and (folder / "cifar-10-batches-py").is_dir():
            return partial(_from_torchvision, folder, False)
    if download and layout != "sheets":
        return partial(_from_torchvision, base if root else folders[0], True)
    wanted = [
        name
        for name, of in (("train-labels.u8", "sheets"), ("cifar-10-batches-py", "torchvision"))
        if layout in (of, "auto")
    ]
    looked = ", ".join(str(folder / name) for folder in folders for name in wanted)
    raise UserError(
        f"no CIFAR-10 in '{base}': looked for {looked}; name the folder by --set data.root=FOLDER or INFOPRUNE_DATA, "
        "or let torchvision fetch it: --set data.download=true"
    )


def _from_sheets(folder: Path, part: Part) -> Arrays:
    labels = np.frombuffer(_existing(folder / f"{part}-labels.u8").read_bytes(), dtype=np.uint8)
    paths = [folder / f"{part}-{number:02d}.webp" for number in range(-(-len(labels) // PER_SHEET))]
    beyond = folder / f"{part}-{len(paths):02d}.webp"
    if not paths or len(labels) % PER_SHEET or beyond.exists():
        raise UserError(
            f"'{folder}/{part}-labels.u8' holds {len(labels)} labels, one byte each; expected {PER_SHEET} for each of "
            f"the sheets {part}-*.webp; fetch it again"
        )
    with ThreadPoolExecutor() as pool:  # Pillow decodes without holding the interpreter's lock
        return np.concatenate(list(pool.map(_decode, map(_existing, paths)))), labels


def _decode(path: Path) -> NDArray[np.uint8]:
    pixels = np.asarray(read_rgb(path, str(path), "fetch it again"))
    if pixels.shape != (ROWS * SIDE, COLUMNS * SIDE, 3):
        raise UserError(
            f"'{path}' is {pixels.shape[1]}x{pixels.shape[0]} pixels; expected {COLUMNS * SIDE}x{ROWS * SIDE}, "
            f"{ROWS} rows of {COLUMNS} images of {SIDE}x{SIDE}"
        )
    cells = pixels.reshape(ROWS, SIDE, COLUMNS, SIDE, 3).transpose(0, 2, 1, 3, 4)
    return cells.reshape(PER_SHEET, SIDE, SIDE, 3)


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise UserError(f"CIFAR-10 is incomplete: no '{path}'; fetch it again or set --set data.root=FOLDER")
    return path


def _from_torchvision(folder: Path, download: bool, part: Part) -> Arrays:
    from torchvision.datasets import CIFAR10

    try:
        # Its files are pickles, which torchvision reads only if they have the checksums of the published ones.
        found = CIFAR10(folder, train=part == "train", download=download)
    except (RuntimeError, OSError) as failure:
        raise UserError(
            f"torchvision cannot read or fetch CIFAR-10 in '{folder}': {failure}; delete what is incomplete there and "
            "set --set data.download=true where there is a network"
        ) from failure
    return np.ascontiguousarray(found.data), np.array(found.targets, dtype=np.uint8)

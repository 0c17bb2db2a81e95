"""The 1,000 ImageNet-like images of the NIPS 2017 attack competition (Kurakin et al., 1804.00097), at 224x224."""

import csv
import io
import os
import zipfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from torch.utils.data import TensorDataset
from torchvision.transforms.v2 import functional as V

from infoprune.config.ranges import PositiveShare, Seed, SetAside, in_range
from infoprune.data.dataset import Data
from infoprune.datasets._images import read_entry, read_rgb
from infoprune.datasets.cifar10 import IMAGENET_MEAN, IMAGENET_STD
from infoprune.datasets.image_folder import crop_and_mirror
from infoprune.errors import UserError

Normalisation = Literal["imagenet", "symmetric"]
CLASSES, SIDE = 1000, 224
LIMIT = 10_000  # images, 1.5 GB of pixels: more than that is no set of this kind


@in_range("[data]")
def load(
    *,
    root: str = "nips2017",
    validation: SetAside = 100,
    normalisation: Normalisation = "imagenet",
    augment: bool = True,
    smallest_crop: PositiveShare = 0.35,
    seed: Seed = 0,
) -> Data:
    """One half for calibration and selection (train, validation), the other (test) for the final figure alone.

    Images are stored as bytes, `3 x 224 x 224` (150 MB in all). Labels are those of ImageNet, 0..999, about one image
    per class, so that there is too little to train on.

    Args:
        root: folder with `images224.zip` and `labels.csv` (columns file, label), as given or under INFOPRUNE_DATA.
        validation: number of images set aside out of the first half.
        normalisation: what the network expects: "imagenet" subtracts ImageNet's mean and divides by its standard
            deviation, "symmetric" maps bytes to -1..1 (pixel / 127.5 - 1).
        augment: whether training images are randomly cropped, resized and mirrored.
        smallest_crop: least share of the area that a random crop keeps.
        seed: which images go into which split.

    Raises:
        UserError: where the data is missing or malformed, or an option does not fit it.
    """
    folder = _folder(root)
    files, labels = _labels(folder / "labels.csv")
    half = len(files) // 2
    if not 1 <= validation < half:
        raise UserError(f"validation = {validation}; expected 1 to {half - 1}, out of the first {half} images")
    images = _images(folder / "images224.zip", files)
    order = torch.randperm(len(files), generator=torch.Generator().manual_seed(seed))
    parts = order[: half - validation], order[half - validation : half], order[half:]
    digest = sha256(repr([files[i] for i in order]).encode())
    for values in (images, labels, torch.tensor([validation])):
        digest.update(values.numpy().data)
    train, held_out, test = (TensorDataset(images[part], labels[part]) for part in parts)
    return Data(
        name="nips2017",
        train=train,
        validation=held_out,
        test=test,
        classes=CLASSES,
        prepare=partial(_normal, symmetric=normalisation == "symmetric"),
        fingerprint=digest.hexdigest(),
        augment=partial(crop_and_mirror, size=SIDE, smallest=smallest_crop) if augment else None,
    )


def _normal(images: Tensor, *, symmetric: bool) -> Tensor:
    if symmetric:
        return images.float() / 127.5 - 1
    normal: Tensor = V.normalize(images.float() / 255, list(IMAGENET_MEAN), list(IMAGENET_STD))
    return normal


def _folder(root: str) -> Path:
    data = os.environ.get("INFOPRUNE_DATA")
    places = [Path(root), *([Path(data) / root] if data else [])]
    for place in places:
        if (place / "labels.csv").is_file() and (place / "images224.zip").is_file():
            return place
    looked = ", ".join(str(place.absolute()) for place in places)
    hint = "" if data else "; INFOPRUNE_DATA is not set"
    raise UserError(
        f"no labels.csv and images224.zip in {looked}{hint}; name the folder that holds them: --set data.root=FOLDER"
    )


def _labels(path: Path) -> tuple[list[str], Tensor]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        files, labels = [row["file"] for row in rows], [int(row["label"]) for row in rows]
    except (KeyError, TypeError, ValueError, csv.Error, OSError) as error:
        raise UserError(
            f"'{path}' cannot be read ({type(error).__name__}: {error}); expected columns file and label, a number"
        ) from error
    if not 4 <= len(set(files)) == len(files) <= LIMIT:
        raise UserError(
            f"'{path}' names {len(set(files))} files in {len(files)} rows; expected 4 to {LIMIT}, each once"
        )
    odd = [label for label in labels if not 0 <= label < CLASSES]
    if odd:
        raise UserError(f"'{path}' has a label {odd[0]}; expected ImageNet's, 0..{CLASSES - 1}")
    return files, torch.tensor(labels)


def _images(path: Path, files: Sequence[str]) -> Tensor:
    try:
        with zipfile.ZipFile(path) as archive, ThreadPoolExecutor() as pool:
            # Reads one at a time, since an archive is one file; decoding is what takes long.
            return torch.stack(list(pool.map(partial(_decode, path), files, map(partial(read_entry, archive), files))))
    except (zipfile.BadZipFile, OSError, KeyError) as broken:
        raise UserError(f"'{path}' is no complete archive of the images in labels.csv: {broken}; fetch it") from broken


def _decode(path: Path, file: str, content: bytes) -> Tensor:
    image = read_rgb(io.BytesIO(content), f"{path}/{file}", "fetch the archive again")
    if image.size != (SIDE, SIDE):
        raise UserError(f"'{path}/{file}' is {image.width}x{image.height} pixels; expected {SIDE}x{SIDE}")
    pixels: Tensor = V.pil_to_tensor(image)
    return pixels

"""Fruits-360: photographs of single fruits on white, 64x64, in two zip files (Oltean and Mureşan, MIT licence)."""

import io
from pathlib import Path
from zipfile import BadZipFile, ZipFile

import numpy as np
from numpy.typing import NDArray

from infoprune.config.ranges import Seed, SetAside, in_range
from infoprune.data.dataset import Data
from infoprune.datasets._arrays import Arrays, base_folder, three_splits
from infoprune.datasets._images import read_entry, read_rgb
from infoprune.errors import UserError

SIDE = 64
# Of the training images, whose background is white.
MEAN, STD = (0.713, 0.610, 0.514), (0.282, 0.334, 0.372)


@in_range("[data]")
def load(*, root: str | None = None, validation: SetAside = 710, seed: Seed = 0) -> Data:
    """Fruits-360 in three fixed splits: validation comes out of the training images in equal class shares.

    `train64.zip` and `test64.zip` hold one folder per class, numbered in the order of the folders' names, with
    images of 64x64 in any format that Pillow reads. They are stored as bytes, `3 x 64 x 64`, and reach the network as
    floats, standardised by the training images. For other sizes, unpack them and use `image_folder`.

    Args:
        root: folder of the two zip files, or the one above its `fruits360/`; if not given, the variable
            INFOPRUNE_DATA names it.
        validation: number of training images set aside.
        seed: which training images are set aside.

    Raises:
        UserError: where the data is missing or malformed, or an option does not fit it.
    """
    base = base_folder(root, "Fruits-360", "fruits360")
    folder = next((each for each in (base / "fruits360", base) if (each / "train64.zip").is_file()), None)
    if folder is None:
        raise UserError(
            f"no Fruits-360 in '{base}': looked for {base / 'fruits360' / 'train64.zip'} and {base / 'train64.zip'}; "
            "name the folder by --set data.root=FOLDER or INFOPRUNE_DATA"
        )
    (train, names), (test, others) = (_read(folder / f"{part}64.zip") for part in ("train", "test"))
    if odd := sorted(set(names).symmetric_difference(others)):
        raise UserError(f"train64.zip and test64.zip in '{folder}' differ in the classes {', '.join(odd[:5])}")
    classes = len(names)
    return three_splits("fruits360", train, test, classes=classes, validation=validation, mean=MEAN, std=STD, seed=seed)


def _read(path: Path) -> tuple[Arrays, list[str]]:
    """Images and labels in the order of their names, and the names of the classes."""
    try:
        with ZipFile(path) as archive:
            files = sorted(name for name in archive.namelist() if not name.endswith("/"))
            classes = sorted({name.split("/")[0] for name in files if "/" in name})
            if not classes or len(classes) > 255 or any("/" not in name for name in files):
                raise UserError(f"'{path}' holds {len(files)} files in {len(classes)} folders; expected one per class")
            images = np.stack([_decode(read_entry(archive, name), f"{path}/{name}") for name in files])
    except (OSError, BadZipFile) as broken:
        raise UserError(f"'{path}' cannot be read ({broken}); fetch it again") from broken
    labels = np.array([classes.index(name.split("/")[0]) for name in files], dtype=np.uint8)
    return (images, labels), classes


def _decode(content: bytes, name: str) -> NDArray[np.uint8]:
    pixels = np.asarray(read_rgb(io.BytesIO(content), name, "fetch the archive again"))
    if pixels.shape != (SIDE, SIDE, 3):
        raise UserError(f"'{name}' is {pixels.shape[1]}x{pixels.shape[0]} pixels; expected {SIDE}x{SIDE}")
    return pixels

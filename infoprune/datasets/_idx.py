"""The four .gz files in which MNIST and its relatives are published (the IDX format)."""

import gzip
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from infoprune.datasets._arrays import Arrays
from infoprune.errors import UserError

BYTES = 8
"""The IDX code of unsigned bytes, the only type in these files."""
MOST_BYTES = 1 << 29  # ten times MNIST's training images
PARTS = {"train": "train", "test": "t10k"}


def read_idx(path: Path) -> NDArray[np.uint8]:
    """An array of bytes: two zeros, type, number of dimensions, sizes as big-endian 32-bit numbers, then the entries.

    Raises:
        UserError: where the file is damaged or something else.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
        if len(content) > MOST_BYTES:
            raise OSError(f"more than {MOST_BYTES:,} bytes")
    except (OSError, EOFError, zlib.error) as broken:
        raise UserError(f"'{path}' cannot be read ({broken}); fetch it again") from broken
    dimensions = content[3] if len(content) > 3 else 0
    sizes = tuple(int(size) for size in np.frombuffer(content[4 : 4 + 4 * dimensions], dtype=">u4"))
    if content[:3] != bytes([0, 0, BYTES]) or len(sizes) != dimensions:
        raise UserError(f"'{path}' starts with {content[:4].hex(' ')}, expected the header of an IDX file of bytes")
    entries = np.frombuffer(content, dtype=np.uint8, offset=4 + 4 * dimensions)
    if len(entries) != np.prod(sizes):
        raise UserError(f"'{path}' holds {len(entries)} bytes, its header announces {sizes}; fetch it again")
    return entries.reshape(sizes)


def read_parts(base: Path, name: str, subfolder: str, library_name: str, download: bool) -> tuple[Arrays, Arrays]:
    """Training and test images of 28x28 with their labels, from `base`, its `subfolder` or torchvision's folder.

    Args:
        base: where to look.
        name: for messages.
        subfolder: folder in `base` that may hold the files.
        library_name: torchvision's name of the data set, and of its folder.
        download: whether torchvision may fetch the files into `base` where they are missing.

    Raises:
        UserError: where a file is missing or damaged, or cannot be fetched.
    """
    folders = [base / subfolder, base, base / library_name / "raw"]
    first = f"{PARTS['train']}-images-idx3-ubyte"
    found = next((folder for folder in folders if _either(folder / first)), None)
    if found is None and download:
        _download(base, name, library_name)
        found = folders[-1]
    if found is None:
        raise UserError(
            f"no {name} in '{base}': looked for {', '.join(str(folder / first) for folder in folders)}, with and "
            "without .gz; name the folder by --set data.root=FOLDER or INFOPRUNE_DATA, or let torchvision fetch it: "
            "--set data.download=true"
        )
    train, test = (_part(found, prefix, name) for prefix in PARTS.values())
    return train, test


def _part(folder: Path, prefix: str, name: str) -> Arrays:
    wanted = [folder / f"{prefix}-{kind}-ubyte" for kind in ("images-idx3", "labels-idx1")]
    paths = [_either(path) for path in wanted]
    for path, at in zip(paths, wanted, strict=True):
        if path is None:
            raise UserError(f"{name} is incomplete: no '{at}.gz'; fetch it again or set --set data.root=FOLDER")
    images, labels = (read_idx(path) for path in paths if path is not None)
    if images.shape[1:] != (28, 28) or labels.ndim != 1:
        raise UserError(
            f"{name} in '{folder}': images of shape {images.shape[1:]} and labels of shape {labels.shape[1:]}; "
            "expected 28x28 and one number each; fetch it again"
        )
    return images[..., None], labels


def _either(path: Path) -> Path | None:
    """The file as published, or unpacked as torchvision leaves it."""
    return next((each for each in (path.with_name(f"{path.name}.gz"), path) if each.is_file()), None)


def _download(base: Path, name: str, library_name: str) -> None:
    from torchvision import datasets

    try:
        getattr(datasets, library_name)(base, download=True)
    except (RuntimeError, OSError) as failure:
        raise UserError(
            f"torchvision cannot fetch {name} into '{base}': {failure}; try again where there is a network"
        ) from failure

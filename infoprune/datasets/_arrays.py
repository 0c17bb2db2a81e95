"""Data sets that fit into memory: from two arrays of bytes to three fixed splits."""

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import TensorDataset

from infoprune.data.dataset import Augment, Data
from infoprune.data.fingerprints import fingerprints_of
from infoprune.errors import UserError

Arrays = tuple[NDArray[np.uint8], NDArray[np.uint8]]
"""Images, `samples x height x width x channels`, and labels, `samples`."""


def three_splits(
    name: str,
    train: Arrays,
    test: Arrays,
    *,
    classes: int,
    validation: int,
    mean: Sequence[float],
    std: Sequence[float],
    seed: int,
    augment: Augment | None = None,
) -> Data:
    """Data whose validation split comes out of the training arrays in equal class shares.

    Args:
        name: for messages and the report.
        train: images and labels.
        test: images and labels.
        classes: number of classes.
        validation: number of training images set aside.
        mean: of each channel, 0..1.
        std: of each channel, likewise.
        seed: which training images are set aside.
        augment: random changes to a batch of stored images.

    Raises:
        UserError: for labels out of range, or a number of images that leaves a part without a class.
    """
    for part, (images, labels) in (("training", train), ("test", test)):
        if len(images) != len(labels):
            raise UserError(f"{name}: {len(images)} {part} images, but {len(labels)} labels; fetch it again")
        if not len(labels) or labels.max() >= classes:
            found = f"a label is {labels.max()}" if len(labels) else "there is no image"
            raise UserError(f"{name} {part} set: {found}; expected 0..{classes - 1}; fetch it again")
    rest, aside = _set_aside(train[1], validation, classes, seed)
    splits = {"train": (train[0][rest], train[1][rest]), "validation": (train[0][aside], train[1][aside]), "test": test}
    stored = {
        split: TensorDataset(
            torch.from_numpy(np.array(pixels.transpose(0, 3, 1, 2), order="C")),
            torch.from_numpy(labels.astype(np.int64)),
        )
        for split, (pixels, labels) in splits.items()
    }
    return Data(
        name=name,
        train=stored["train"],
        validation=stored["validation"],
        test=stored["test"],
        classes=classes,
        prepare=partial(_standardise, mean=torch.tensor(mean), std=torch.tensor(std)),
        fingerprint=fingerprints_of(stored, name),
        augment=augment,
    )


def base_folder(root: str | None, name: str, subfolder: str) -> Path:
    """The folder that the user named, or the one in INFOPRUNE_DATA.

    Raises:
        UserError: where neither is given.
    """
    base = root or os.environ.get("INFOPRUNE_DATA")
    if not base:
        raise UserError(
            f"where is {name}? set the variable INFOPRUNE_DATA to the folder that holds {subfolder}/, "
            "or give the folder: --set data.root=FOLDER"
        )
    return Path(base)


def _standardise(images: Tensor, *, mean: Tensor, std: Tensor) -> Tensor:
    mean, std = mean.to(images.device).view(-1, 1, 1), std.to(images.device).view(-1, 1, 1)
    return (images.float() / 255 - mean) / std


def _set_aside(labels: NDArray[np.uint8], validation: int, classes: int, seed: int) -> tuple[list[int], list[int]]:
    if not classes <= validation <= len(labels) - classes:
        raise UserError(
            f"validation = {validation}; expected {classes} to {len(labels) - classes}, "
            "so that both parts of the training set have every class"
        )
    # Imported where used: scikit-learn takes a second to import.
    from sklearn.model_selection import train_test_split

    rest, aside = train_test_split(range(len(labels)), test_size=validation, stratify=labels, random_state=seed)
    return rest, aside

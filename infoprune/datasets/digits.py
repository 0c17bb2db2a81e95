"""scikit-learn's handwritten digits: 1,797 real images that come with the package's dependencies, no download."""

from functools import partial
from hashlib import sha256
from typing import Annotated

import numpy as np
import torch
from msgspec import Meta
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from infoprune.config.ranges import Seed, ShareBelowOne, in_range
from infoprune.data.dataset import Data

# The training split's pixels at 16x16, as constants: normalisation must not move with the split or the size.
MEAN, STD = 0.306, 0.32
VALIDATION, TEST = 270, 449  # 15 and 25 %; the test split is the larger, so that one point is more than four images


@in_range("[data]")
def load(
    *,
    size: Annotated[int, Meta(ge=8, le=1_024)] = 16,
    augment: bool = True,
    shift: ShareBelowOne = 0.1,
    rotation: Annotated[float, Meta(ge=0, le=180)] = 10.0,
    scaling: ShareBelowOne = 0.1,
    seed: Seed = 0,
) -> Data:
    """The digits, enlarged by bilinear interpolation, in three fixed splits of equal class shares.

    Images are `1 x size x size`, 0..1 as stored and standardised as the network sees them: 1,078 for training, 270
    for validation, 449 for testing. The writers are not told apart, so training and test split share them. Source:
    Alpaydin and Kaynak, "Optical recognition of handwritten digits", UCI repository, 1998, its 8x8 test part.

    >>> images, labels = next(iter(load().batches("test", batch_size=32)))
    >>> images.shape, labels.shape
    (torch.Size([32, 1, 16, 16]), torch.Size([32]))

    Args:
        size: height and width in pixels, 8 or more; the originals have 8.
        augment: whether training images are randomly moved, turned and scaled (never mirrored).
        shift: largest move in each direction, as a share of the image.
        rotation: largest turn either way, in degrees.
        scaling: largest change of scale, as a share.
        seed: which images go into which split.

    Raises:
        UserError: for a number out of range.
    """
    # Imported where used: scikit-learn takes a second to import.
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    pixels, classes = load_digits(return_X_y=True)
    images = torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 8, 8) / 16
    images = F.interpolate(images, size=(size, size), mode="bilinear", align_corners=False)
    labels = torch.tensor(classes, dtype=torch.int64)
    rest, test = train_test_split(range(len(labels)), test_size=TEST, stratify=labels, random_state=seed)
    train, validation = train_test_split(rest, test_size=VALIDATION, stratify=labels[rest], random_state=seed)
    # Of the originals: the enlarged pixels may differ in the last bit between versions of torch.
    digest = sha256(np.concatenate([pixels[train + validation + test].ravel(), [size]]).tobytes())
    return Data(
        name="digits",
        train=TensorDataset(images[train], labels[train]),
        validation=TensorDataset(images[validation], labels[validation]),
        test=TensorDataset(images[test], labels[test]),
        classes=10,
        prepare=_standardise,
        fingerprint=digest.hexdigest(),
        augment=partial(jitter, shift=shift, rotation=rotation, scaling=scaling) if augment else None,
    )


def _standardise(images: Tensor) -> Tensor:
    return (images - MEAN) / STD


def jitter(images: Tensor, generator: torch.Generator, *, shift: float, rotation: float, scaling: float) -> Tensor:
    """Moves, turns and scales every image of `samples x channels x height x width` by its own random amounts."""

    def uniform(largest: float) -> Tensor:
        # Drawn on the CPU wherever the images are: the same seed then means the same changes on every device.
        return (torch.rand(len(images), generator=generator) * 2 - 1) * largest

    angle, scale = torch.deg2rad(uniform(rotation)), 1 + uniform(scaling)
    cos, sin = angle.cos() / scale, angle.sin() / scale
    # The grid's unit is half an image, hence twice the share.
    rows = [torch.stack([cos, -sin, uniform(2 * shift)], dim=1), torch.stack([sin, cos, uniform(2 * shift)], dim=1)]
    maps = torch.stack(rows, dim=1).to(images.device)
    grid = F.affine_grid(maps, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)

"""MNIST: 70,000 handwritten digits of 28x28 (LeCun et al., "Gradient-based learning applied to document…", 1998)."""

from infoprune.config.ranges import Seed, SetAside, in_range
from infoprune.data.dataset import Data
from infoprune.datasets._arrays import base_folder, three_splits
from infoprune.datasets._idx import read_parts

MEAN, STD = (0.1307,), (0.3081,)


@in_range("[data]")
def load(*, root: str | None = None, download: bool = False, validation: SetAside = 5000, seed: Seed = 0) -> Data:
    """MNIST in three fixed splits: validation comes out of the 60,000 training images in equal class shares.

    Images are stored as bytes, `1 x 28 x 28`, and reach the network as floats, (pixel / 255 - 0.1307) / 0.3081.

    Args:
        root: folder of the four IDX files, as published (.gz) or unpacked, or the one above its `mnist/` or
            torchvision's `MNIST/raw/`; if not given, the variable INFOPRUNE_DATA names it.
        download: whether torchvision may fetch them into `root` where they are missing.
        validation: number of training images set aside.
        seed: which training images are set aside.

    Raises:
        UserError: where the data is missing or malformed, or an option does not fit it.
    """
    train, test = read_parts(base_folder(root, "MNIST", "mnist"), "MNIST", "mnist", "MNIST", download)
    return three_splits("mnist", train, test, classes=10, validation=validation, mean=MEAN, std=STD, seed=seed)

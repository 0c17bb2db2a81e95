"""Every data set of torchvision that pairs an image with the number of its class."""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any, Literal
from urllib.error import URLError

import torch
from torch import Tensor

from infoprune.config.ranges import Deviation, Pixels, PositiveShare, ProperShare, Seed, Share, Workers, in_range
from infoprune.data.dataset import Data
from infoprune.data.fingerprints import Depth, fingerprints_of
from infoprune.data.samples import check_samples, classes_of, set_aside
from infoprune.datasets.image_folder import IMAGENET_MEAN, IMAGENET_STD, crop_and_mirror
from infoprune.errors import RunError, UserError, did_you_mean

# What torchvision calls its splits; the first name that a data set takes.
SPLITS = {"train": ("train", "trainval"), "test": ("test", "val", "valid"), "validation": ("val", "valid")}


@in_range("[data]")
def load(
    *,
    dataset: str,
    root: str = "data",
    download: bool = False,
    arguments: dict[str, Any] | None = None,
    splits: dict[str, dict[str, Any]] | None = None,
    size: Pixels | None = None,
    mode: Literal["RGB", "L"] = "RGB",
    mean: list[Share] | None = None,
    std: list[Deviation] | None = None,
    augment: bool = False,
    smallest_crop: PositiveShare = 0.25,
    validation_share: ProperShare = 0.1,
    test_share: ProperShare = 0.2,
    workers: Workers = 0,
    seed: Seed = 0,
    fingerprint: Depth = "files",
) -> Data:
    """Any classification data set of `torchvision.datasets`, by its name there.

    Its own splits are used: the arguments `train` (true, false) or `split` ("train", "test" or "val"). What it lacks is
    drawn out of the training images, the validation split always where there are two.

    >>> len(load(dataset="FakeData", arguments={"size": 50, "image_size": [3, 8, 8], "num_classes": 2}).test)
    10

    Args:
        dataset: the class's name, such as "SVHN" or "OxfordIIITPet".
        root: folder with its files.
        download: whether torchvision may download them.
        arguments: others that the class takes, such as {split = "letters"} for EMNIST.
        splits: arguments for each of "train", "test" and, if there is one, "validation", where theirs have other names.
        size: height and width that the network sees, in pixels: the shorter side becomes as long, the rest is cut off
            equally; every image as it is if not given, which takes images of one size.
        mode: what images are converted to: "RGB", or "L" for one channel of grey.
        mean: of each channel, 0..1; ImageNet's if not given, 0.5 for grey.
        std: of each channel, likewise.
        augment: whether training images are randomly cropped (area and proportions) and mirrored.
        smallest_crop: share of the image that a random crop covers at least, 0..1.
        validation_share: share of the training images set aside where there is no validation split, 0..1.
        test_share: share of all images set aside where there is no test split either, 0..1.
        workers: processes that read images.
        seed: which images are set aside.
        fingerprint: how it is noticed that the data changed: "files" by names, sizes and times of files, or by some
            of the samples where no files are named, "content" by every byte.

    Raises:
        UserError: for an unknown data set, arguments that it does not take, missing files, options out of range, or one
            that is not for classification.
        RunError: where the files cannot be downloaded.
    """
    channels = {"RGB": 3, "L": 1}[mode]
    mean = list(mean or (IMAGENET_MEAN if mode == "RGB" else (0.5,)))
    std = list(std or (IMAGENET_STD if mode == "RGB" else (0.5,)))
    if len(mean) != channels or len(std) != channels:
        raise UserError(f"got mean {mean}, std {std}; expected as many numbers as the images have channels, {channels}")
    kind = _class(dataset)
    given = {"root": root, "download": download, "transform": _stored(mode, size)}
    taken = _parameters(kind)
    given = {name: value for name, value in given.items() if name in taken} | (arguments or {})
    make = partial(_made, dataset, kind, given)
    parts = {name: make(each) for name, each in splits.items()} if splits else _own_splits(make, taken, given)
    if "train" not in parts or not set(parts) <= {"train", "test", "validation"}:
        raise UserError(f"[data] splits has {', '.join(parts)}; expected train, test and, if there is one, validation")
    shape = check_samples(parts["train"], None, dataset).shape
    if "test" not in parts:
        parts["train"], parts["test"] = set_aside(parts["train"], test_share, seed, dataset)
    if "validation" not in parts:
        parts["train"], parts["validation"] = set_aside(parts["train"], validation_share, seed, dataset)
    crop = partial(crop_and_mirror, size=shape[-1], smallest=smallest_crop)
    return Data(
        name=dataset,
        train=parts["train"],
        validation=parts["validation"],
        test=parts["test"],
        classes=classes_of(parts["train"], dataset),
        prepare=partial(_normal, mean=mean, std=std),
        fingerprint=fingerprints_of(parts, dataset, fingerprint),
        augment=crop if augment else None,
        workers=workers,
    )


def _class(name: str) -> Callable[..., Any]:
    from torchvision import datasets

    found = getattr(datasets, name, None)
    if not inspect.isclass(found):
        known = [each for each in datasets.__all__ if inspect.isclass(getattr(datasets, each))]
        raise UserError(f"torchvision has no data set '{name}'{did_you_mean(name, known)}")
    return found


def _parameters(kind: Any) -> set[str]:
    """Names that a class takes, those that it passes on to its parents too."""
    names: set[str] = set()
    for each in kind.__mro__:
        if "__init__" not in vars(each):
            continue
        parameters = inspect.signature(each.__init__).parameters.values()
        names |= {parameter.name for parameter in parameters}
        if all(parameter.kind is not parameter.VAR_KEYWORD for parameter in parameters):
            break
    return names


def _own_splits(make: Callable[..., Any], taken: set[str], given: dict[str, Any]) -> dict[str, Any]:
    """The splits that a class has by itself; all in "train" where it has none."""
    if "train" in taken and "train" not in given:
        return {"train": make({"train": True}), "test": make({"train": False})}
    if "split" not in taken or "split" in given:
        return {"train": make({})}
    found: dict[str, Any] = {}
    used: set[str] = set()
    for part, names in SPLITS.items():
        for name in names:
            if name in used:
                continue
            try:
                found[part] = make({"split": name})
            except UserError as failure:
                if isinstance(failure.__cause__, ValueError):
                    continue  # no split of that name
                raise
            used.add(name)
            break
    return found


def _made(name: str, kind: Callable[..., Any], given: dict[str, Any], own: dict[str, Any]) -> Any:
    try:
        return kind(**given | own)
    except URLError as failure:
        raise RunError(f"cannot download {name}: {failure}; fetch it where there is a network") from failure
    except (TypeError, ValueError) as failure:
        said = {key: value for key, value in (given | own).items() if key != "transform"}
        raise UserError(f"torchvision's {name} does not take {said}: {failure}; see [data] arguments") from failure
    except (RuntimeError, OSError) as failure:
        raise UserError(
            f"cannot read {name}: {failure}; set data.root to the folder with its files, or data.download=true"
        ) from failure


def _stored(mode: str, size: int | None) -> Any:
    """To one kind of image of one size, as bytes."""
    from torchvision.transforms import v2

    resized = [] if size is None else [v2.Resize(size), v2.CenterCrop(size)]
    return v2.Compose([partial(_converted, mode=mode), *resized, v2.PILToTensor()])


def _converted(image: Any, mode: str) -> Any:
    return image.convert(mode)


def _normal(images: Tensor, *, mean: list[float], std: list[float]) -> Tensor:
    from torchvision.transforms.v2 import functional as V

    normal: Tensor = V.normalize(V.to_dtype(images, torch.float32, scale=True), mean, std)
    return normal

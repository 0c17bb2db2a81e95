"""A user's own DataLoaders as a data set with three fixed splits."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    default_collate,
)

from infoprune.data.dataset import Data
from infoprune.data.fingerprints import Depth, fingerprints_of
from infoprune.data.samples import Collate, check_samples, classes_of, length_of, set_aside
from infoprune.errors import UserError

# Of one loader for everything, and of the training samples where no validation loader is given.
TEST_SHARE, VALIDATION_SHARE = 0.2, 0.1
NAMES = {"train": "train", "test": "test", "validation": "validation", "val": "validation", "valid": "validation"}


def from_loaders(given: Any, name: str, depth: Depth = "files") -> Data:
    """Data from one `DataLoader`, or from a dictionary of them: "train", "test" and, if there is one, "validation".

    Their data sets, collate function and workers are used; batch sizes, order and device are the recipe's. Without a
    validation loader a tenth of the training samples is set aside, always the same; of a single loader, a fifth for
    the test split before.

    Args:
        given: what a user's function returned.
        name: the function's, for messages and the report.
        depth: how much of the data its fingerprint is of; `infoprune.data.fingerprints` says what.

    Raises:
        UserError: for anything but such loaders, with what to change.
    """
    loaders = _named(given, name)
    collates = {loader.collate_fn for loader in loaders.values()}
    if len(collates) > 1:
        raise UserError(f"'{name}': the loaders have different collate_fn; give all of them the same")
    collate: Collate | None = None if collates == {default_collate} else collates.pop()
    splits = {split: _samples(loader, f"{name} ({split})") for split, loader in loaders.items()}
    for split, samples in splits.items():
        images = check_samples(samples, collate, f"{name} ({split})")
        if not images.is_floating_point():
            raise UserError(
                f"images of '{name}' are {images.dtype}; give floating-point ones, normalised as the network expects"
            )
    classes = classes_of(splits["train"], name)
    if "test" not in splits:
        splits["train"], splits["test"] = set_aside(splits["train"], TEST_SHARE, 0, name)
    if "validation" not in splits:
        splits["train"], splits["validation"] = set_aside(splits["train"], VALIDATION_SHARE, 0, name)
    return Data(
        name=name,
        train=splits["train"],
        validation=splits["validation"],
        test=splits["test"],
        classes=classes,
        prepare=Tensor.float,
        fingerprint=fingerprints_of(splits, name, depth),
        workers=next(iter(loaders.values())).num_workers,
        collate=collate,
    )


def _named(given: Any, name: str) -> dict[str, DataLoader[Any]]:
    """The loaders by split."""
    if isinstance(given, DataLoader):
        return {"train": given}
    expected = (
        "infoprune.data.dataset.Data, a DataLoader, or a dictionary of them with 'train', 'test' and, if there is one,"
    )
    if not isinstance(given, Mapping):
        raise UserError(f"data set '{name}' gave a {type(given).__name__}, expected {expected} 'validation'")
    found: dict[str, DataLoader[Any]] = {}
    for key, loader in given.items():
        if key not in NAMES or NAMES[key] in found or not isinstance(loader, DataLoader):
            raise UserError(
                f"data set '{name}' gave {key!r}: {type(loader).__name__} in its dictionary, expected DataLoaders "
                "under 'train', 'test' and, if there is one, 'validation'"
            )
        found[NAMES[key]] = loader
    if not {"train", "test"} <= set(found):
        raise UserError(
            f"data set '{name}' gave loaders for {', '.join(found) or 'nothing'}; expected 'train' and 'test', or one "
            "DataLoader that is split at random"
        )
    return found


def _samples(loader: DataLoader[Any], name: str) -> Any:
    """What a loader draws from, all of which it has to draw."""
    sampler, batches = loader.sampler, loader.batch_sampler
    if isinstance(loader.dataset, IterableDataset):
        raise UserError(
            f"'{name}' streams (an IterableDataset), so it has no fixed samples; give a data set with __getitem__ "
            "and __len__"
        )
    if length_of(loader.dataset) is None:
        raise UserError(f"'{name}' does not say how many samples it has; give its data set a method __len__")
    if isinstance(sampler, SubsetRandomSampler):
        return Subset(loader.dataset, sorted(sampler.indices))
    plain = type(sampler) is SequentialSampler or (type(sampler) is RandomSampler and not sampler.replacement)
    if type(batches) is not BatchSampler or not plain or len(sampler) != len(loader.dataset):  # type: ignore[arg-type]
        odd = type(sampler if type(batches) is BatchSampler or batches is None else batches).__name__
        raise UserError(
            f"'{name}' draws by a {odd} of its own, which would be lost: batches are drawn by the recipe; give a plain "
            "DataLoader, with a Subset of the samples where not all are meant"
        )
    return loader.dataset

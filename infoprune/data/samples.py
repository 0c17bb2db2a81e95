"""What can be told of somebody's data set: its classes, its content, its labels, and a part of it set aside."""

import operator
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset, TensorDataset, default_collate

from infoprune.errors import UserError

Collate = Callable[[list[Any]], Any]
LABELS = ("targets", "labels", "_labels")  # where data sets have all labels at hand, as torchvision's do
MOST_CLASSES = 1_000_000


def labels_of(dataset: Any) -> Tensor | None:
    """All labels, `samples`, where a data set has them at hand, under a name in `LABELS`.

    >>> labels_of(Subset(TensorDataset(torch.zeros(3, 1), torch.tensor([4, 5, 6])), [2, 0]))
    tensor([6, 4])
    """
    if isinstance(dataset, Subset):
        labels = labels_of(dataset.dataset)
        return None if labels is None else labels[torch.as_tensor(list(dataset.indices), dtype=torch.long)]
    if isinstance(dataset, TensorDataset):
        return dataset.tensors[1] if len(dataset.tensors) == 2 else None
    for name in LABELS:
        labels = getattr(dataset, name, None)
        if labels is not None and length_of(labels) == length_of(dataset) is not None:
            try:
                known = torch.as_tensor(np.asarray(labels))
            except (TypeError, ValueError):  # words, or several per sample
                continue
            if known.dim() == 1 and not known.is_floating_point():
                return known
    return None


def length_of(value: Any) -> int | None:
    """The number of entries; `None` of what has none, such as a number or a stream.

    >>> length_of([1, 2]), length_of(3)
    (2, None)
    """
    try:
        return len(value)
    except (TypeError, NotImplementedError):
        return None


def check_classes(count: Any, where: str) -> int:
    """A number of classes as an `int`.

    Raises:
        UserError: for anything but a whole number from 1 to `MOST_CLASSES`.
    """
    try:
        number = operator.index(count)
    except TypeError:
        number = 0
    if isinstance(count, bool) or not 1 <= number <= MOST_CLASSES:
        raise UserError(
            f"{where} is {count!r}; expected the number of classes, a whole number from 1 to {MOST_CLASSES:,}"
        )
    return number


def classes_of(dataset: Any, name: str) -> int:
    """Number of classes, by the data set's list `classes`, its number `num_classes`, or its labels.

    Raises:
        UserError: where it has none of them, or one that is no number of classes.
    """
    inner = dataset
    while isinstance(inner, Subset):
        inner = inner.dataset
    for attribute in ("classes", "num_classes"):
        known = getattr(inner, attribute, None)
        if known is not None:
            count = None if isinstance(known, str) else length_of(known)
            return check_classes(known if count is None else count, f"'{name}': {attribute} of its data set")
    labels = labels_of(dataset)
    if labels is None or not len(labels):
        raise UserError(
            f"cannot tell how many classes '{name}' has; give the data set an attribute `classes`, a list of their "
            "names or their number"
        )
    return check_classes(int(labels.max()) + 1, f"'{name}': the largest of its labels plus 1")


def set_aside(dataset: Any, share: float, seed: int, name: str) -> tuple[Subset[Any], Subset[Any]]:
    """What is left, and a share of the samples drawn at random, of every class alike where labels are known.

    Raises:
        UserError: where there are too few samples for both parts.
    """
    from sklearn.model_selection import train_test_split

    labels = labels_of(dataset)
    try:
        rest, aside = train_test_split(
            range(len(dataset)),
            test_size=share,
            random_state=seed,
            stratify=None if labels is None else labels.cpu().numpy(),
        )
    except ValueError as failure:
        raise UserError(
            f"cannot set {share:g} of the {len(dataset)} samples of '{name}' aside: {failure}; give more samples, or "
            "the splits one by one"
        ) from failure
    return Subset(dataset, rest), Subset(dataset, aside)


def check_samples(dataset: Dataset[Any], collate: Collate | None, name: str) -> Tensor:
    """The first images as a batch would have them, `samples x channels x height x width`.

    Raises:
        UserError: where samples are no pairs of an image and the number of its class.
    """
    count = len(dataset)  # type: ignore[arg-type]
    if not count:
        raise UserError(f"'{name}' is empty; give at least one sample")
    with still():
        try:
            batch = (collate or default_collate)([dataset[place] for place in range(min(2, count))])
        except Exception as failure:  # a user's data set and collate function raise whatever they like
            raise UserError(
                f"samples of '{name}' cannot be put into a batch: {type(failure).__name__}: {failure}; give images as "
                "tensors of one shape, and labels as numbers"
            ) from failure
    if not isinstance(batch, list | tuple) or len(batch) != 2:
        raise UserError(f"a batch of '{name}' is a {type(batch).__name__}; expected a pair (images, labels)")
    images, labels = batch
    if not isinstance(images, Tensor) or images.dim() < 2:
        came = f"a tensor of shape {tuple(images.shape)}" if isinstance(images, Tensor) else type(images).__name__
        raise UserError(f"images of '{name}' are {came}; expected a tensor, samples x channels x height x width")
    if not isinstance(labels, Tensor) or labels.dim() != 1 or labels.is_floating_point():
        came = f"{labels.dtype} {tuple(labels.shape)}" if isinstance(labels, Tensor) else type(labels).__name__
        raise UserError(f"labels of '{name}' are {came}; expected one class index per sample, 0, 1, 2 …")
    return images


@contextmanager
def still() -> Iterator[None]:
    """Makes what is drawn at random inside the same every time, and leaves the generators as they were."""
    state, numbers = random.getstate(), np.random.get_state()  # noqa: NPY002  what users' transforms draw from
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        random.seed(0)
        np.random.seed(0)  # noqa: NPY002
        try:
            yield
        finally:
            random.setstate(state)
            np.random.set_state(numbers)  # noqa: NPY002

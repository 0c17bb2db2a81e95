"""Data on its way to the model: fixed splits, and batches that are prepared on the device."""

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    RandomSampler,
    Sampler,
    SequentialSampler,
    Subset,
    TensorDataset,
)

from infoprune.data.samples import Collate, check_classes
from infoprune.errors import RunError, UserError, out_of_memory, told
from infoprune.utils import distributed

Transform = Callable[[Tensor], Tensor]
Augment = Callable[[Tensor, torch.Generator], Tensor]
SplitName = Literal["train", "validation", "test"]
# Small sets live on the GPU, where picking a batch costs next to nothing; CIFAR-10 takes 150 MB.
KEPT_ON_DEVICE = 2 << 30


class Batches:
    """Batches `(images, labels)` on a device, again at each iteration; shuffled by a seed that counts the iterations.

    Args:
        dataset: map-style, giving `(image, label)`. A `TensorDataset` is read a whole batch at a time, which for
            small images is what keeps the loader from being the bottleneck.
        batch_size: samples per batch, of all processes together where they share it; the last one may be smaller.
        prepare: applied to every batch of images on the device (cast, normalise).
        augment: random changes drawn from the given generator, applied before `prepare`, for training only.
        seed: shuffles when given; two objects with the same seed give the same order.
        device: where the batches go.
        workers: loader processes; ignored for a `TensorDataset`.
        view: another number, other random changes, in the same order.
        shared: under torchrun, gives every process its part of each batch. Where batches are shuffled, to be learnt
            from, all get equally many samples, for which a few may come twice; otherwise every sample comes once.
        collate: makes `(images, labels)` of a list of samples, where torch's own way will not do.

    Attributes:
        rank, world: number of this process and of all that share the batches.

    Raises:
        UserError: for fewer samples than processes.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        *,
        batch_size: int,
        prepare: Transform | None = None,
        augment: Augment | None = None,
        seed: int | None = None,
        device: torch.device | str = "cpu",
        workers: int = 0,
        view: int = 0,
        shared: bool = False,
        collate: Collate | None = None,
    ) -> None:
        self.collate = collate
        self.dataset, self.prepare, self.augment = dataset, prepare, augment
        self.seed, self.device, self.workers, self.view = seed, torch.device(device), workers, view
        self.rank, self.world = (distributed.rank(), distributed.world()) if shared else (0, 1)
        self.batch_size = -(-batch_size // self.world)
        self.epoch = 0
        if self.world > 1 and len(dataset) < self.world:  # type: ignore[arg-type]
            raise UserError(f"{self.world} processes for fewer samples; start fewer processes")

    def __len__(self) -> int:
        return -(-len(self._sampler(torch.Generator())) // self.batch_size)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(self._seed())
        # Every process shuffles alike, and then takes other samples and changes them otherwise.
        other = self.rank + self.world * self.view
        changes = torch.Generator().manual_seed(self._seed() + other * 1_000_003) if other else generator
        self.epoch += 1
        with _reading(self.dataset):
            for images, labels in _without_advice(self._loader, generator):
                images, labels = (each.to(self.device, non_blocking=True) for each in (images, labels))
                if self.augment is not None:
                    images = self.augment(images, changes)
                images = images if self.prepare is None else self.prepare(images)
                _check(images, labels)
                yield images, labels

    def _seed(self) -> int:
        return (self.seed or 0) * 100_003 + self.epoch

    def _loader(self, generator: torch.Generator) -> DataLoader[Any]:
        sampler = self._sampler(generator)
        if isinstance(self.dataset, TensorDataset) and self.collate is None:
            self._keep_on_device(self.dataset)
            whole = BatchSampler(sampler, self.batch_size, drop_last=False)
            return DataLoader(self.dataset, sampler=whole, batch_size=None, generator=generator)
        return DataLoader(
            _WithoutExit(self.dataset),
            sampler=sampler,
            batch_size=self.batch_size,
            num_workers=self.workers,
            generator=generator,
            collate_fn=None if self.collate is None else partial(_without_exit, self.collate),
            pin_memory=self.device.type == "cuda",  # so that copying to it overlaps with computing
        )

    def _sampler(self, generator: torch.Generator) -> Sampler[int]:
        sampler: Sampler[int] = (
            SequentialSampler(self.dataset)  # type: ignore[arg-type]
            if self.seed is None
            else RandomSampler(self.dataset, generator=generator)  # type: ignore[arg-type]
        )
        return sampler if self.world == 1 else _Part(sampler, self.rank, self.world, even=self.seed is not None)

    def _keep_on_device(self, dataset: TensorDataset) -> None:
        size = sum(tensor.numel() * tensor.element_size() for tensor in dataset.tensors)
        if self.device.type != "cpu" and size <= KEPT_ON_DEVICE:
            self.dataset = TensorDataset(*(tensor.to(self.device) for tensor in dataset.tensors))


class _WithoutExit(Dataset[Any]):
    """A data set whose calls of `exit` are errors like others, which torch passes on from the processes that load."""

    def __init__(self, dataset: Dataset[Any]) -> None:
        self.dataset = dataset

    def __getitems__(self, places: list[int]) -> list[Any]:
        """As torch's loaders fetch samples: by the data set's own `__getitems__`, where it has one."""
        fetch = getattr(self.dataset, "__getitems__", None) or (lambda places: [self.dataset[each] for each in places])
        samples: list[Any] = _without_exit(fetch, places)
        return samples


def _without_exit(function: Callable[[Any], Any], argument: Any) -> Any:
    try:
        return function(argument)
    except SystemExit as error:
        raise UserError(
            f"the data set ended the process by {told(error)}; raise an error instead, or take the call out"
        ) from error


def _without_advice(load: Callable[[torch.Generator], DataLoader[Any]], generator: torch.Generator) -> Iterator[Any]:
    """Starts a loader without torch's warning about more workers than cores, which is the user's own choice."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "This DataLoader will create", UserWarning)
        return iter(load(generator))


def _check(images: Any, labels: Tensor) -> None:
    """Raises UserError for what no step could make sense of."""
    if not isinstance(images, Tensor):
        raise UserError(f"the data's prepare gave a {type(images).__name__}; expected a tensor of images")
    whole = not (labels.is_floating_point() or labels.is_complex())
    if labels.shape != images.shape[:1] or not whole:
        kind = str(labels.dtype).removeprefix("torch.")
        raise UserError(
            f"a batch holds images {list(images.shape)} and labels {list(labels.shape)} of type {kind}; expected one "
            "class index, an integer, per image"
        )


@contextmanager
def _reading(dataset: Dataset[Any]) -> Iterator[None]:
    """Whatever reading a data set raises, in this process or in a worker, in one message."""
    try:
        yield
    except Exception as error:
        if "DataLoader worker" in str(error) and "exited unexpectedly" in str(error):
            raise RunError(
                "a process that loads data was killed, commonly since memory ran out; lower data.workers (0 loads in "
                "this process) and run the same command again"
            ) from error
        if out_of_memory(error):
            raise
        # A worker's error comes with its traceback as text, the last line of which says what it was.
        came = str(error).strip().splitlines()[-1] if "Original Traceback" in str(error) else ""
        if isinstance(error, UserError | RunError):
            if not came:
                raise
            raise type(error)(came.partition(": ")[2]) from error
        raise UserError(
            f"a {type(dataset).__name__} cannot be read: {came or told(error)}; fix the data set: it gives pairs of "
            "an image, all of one shape and type, and a class index"
        ) from error


def first(dataset: Dataset[Any], count: int) -> Dataset[Any]:
    """The first samples of a data set, all for 0 or where there are no more; tensors stay readable by whole batches.

    >>> len(first(TensorDataset(torch.zeros(5, 1)), 3)), len(first([7, 8], 0))
    (3, 2)
    """
    if not 0 < count < len(dataset):  # type: ignore[arg-type]
        return dataset
    return TensorDataset(*dataset[:count]) if isinstance(dataset, TensorDataset) else Subset(dataset, range(count))


class _Part(Sampler[int]):
    """Every n-th sample of an order that is the same on all processes, so that a batch of all is one of the whole."""

    def __init__(self, whole: Sampler[int], rank: int, world: int, even: bool) -> None:
        self.whole, self.rank, self.world, self.even = whole, rank, world, even

    def __len__(self) -> int:
        count = len(self.whole)  # type: ignore[arg-type]
        return -(-count // self.world) if self.even else len(range(self.rank, count, self.world))

    def __iter__(self) -> Iterator[int]:
        order = list(self.whole)
        places: Iterable[int] = range(self.rank, len(order), self.world)
        if self.even:
            # Steps are taken together, so all must take equally many: torch fills up from the front where some lack.
            places = DistributedSampler(order, self.world, self.rank, shuffle=False)  # type: ignore[arg-type]
        return iter([order[place] for place in places])


@dataclass(frozen=True)
class Data:
    """A data set with its three fixed splits.

    Attributes:
        name: for messages and the report.
        train, validation, test: map-style data sets giving `(image, label)`; validation comes out of the training set.
        classes: number of classes; labels are 0..classes-1.
        prepare: turns a batch of stored images into the network's input (cast, normalise).
        augment: random changes to a batch of stored images, drawn from a generator, for training; `None` for none.
        fingerprint: changes when the content changes, a text or several by name, such as those of
            `infoprune.data.fingerprints.fingerprints_of`; resuming compares it, and says which of several changed.
        workers: processes that read samples.
        collate: makes `(images, labels)` of a list of samples, where torch's own way will not do.

    Raises:
        UserError: for a number of classes or a fingerprint that is none.
    """

    name: str
    train: Dataset[Any]
    validation: Dataset[Any]
    test: Dataset[Any]
    classes: int
    prepare: Transform
    fingerprint: str | Mapping[str, str]
    augment: Augment | None = None
    workers: int = 0
    collate: Collate | None = None

    def __post_init__(self) -> None:
        # Frozen, so that only this way another type of number or mapping becomes the plain one.
        object.__setattr__(self, "classes", check_classes(self.classes, f"'{self.name}': classes of its Data"))
        given: Any = self.fingerprint
        if isinstance(given, Mapping):
            object.__setattr__(self, "fingerprint", dict(given))
        texts = [each for pair in given.items() for each in pair] if isinstance(given, Mapping) else [given]
        if not texts or not all(isinstance(text, str) for text in texts):
            raise UserError(
                f"'{self.name}': fingerprint of its Data is {given!r}; expected a text, or a dictionary of texts by "
                "name, that changes when the data does"
            )

    def batches(
        self,
        split: SplitName,
        *,
        batch_size: int = 128,
        seed: int | None = None,
        augment: bool = False,
        device: torch.device | str = "cpu",
        view: int = 0,
        shared: bool = False,
    ) -> Batches:
        """The batches of one split; see `Batches`."""
        return Batches(
            getattr(self, split),
            batch_size=batch_size,
            prepare=self.prepare,
            augment=self.augment if augment else None,
            seed=seed,
            device=device,
            workers=self.workers,
            view=view,
            shared=shared,
            collate=self.collate,
        )

"""Data on its way to the model: fixed splits, and batches that are prepared on the device."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler, Sampler, SequentialSampler, TensorDataset

Transform = Callable[[Tensor], Tensor]
Augment = Callable[[Tensor, torch.Generator], Tensor]
SplitName = Literal["train", "validation", "test"]


class Batches:
    """Batches `(images, labels)` on a device, anew at each iteration; shuffled by a seed that counts the iterations.

    Args:
        dataset: map-style, giving `(image, label)`. A `TensorDataset` is read a whole batch at a time, which for
            small images is what keeps the loader from being the bottleneck.
        batch_size: samples per batch; the last one may be smaller.
        prepare: applied to every batch of images on the device (cast, normalise).
        augment: random changes drawn from the given generator, applied before `prepare`, for training only.
        seed: shuffles when given; two objects with the same seed give the same order.
        device: where the batches go.
        workers: loader processes; ignored for a `TensorDataset`.
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
    ) -> None:
        self.dataset, self.batch_size, self.prepare, self.augment = dataset, batch_size, prepare, augment
        self.seed, self.device, self.workers = seed, torch.device(device), workers
        self.epoch = 0

    def __len__(self) -> int:
        return -(-len(self.dataset) // self.batch_size)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed((self.seed or 0) * 100_003 + self.epoch)
        self.epoch += 1
        for images, labels in self._loader(generator):
            images, labels = images.to(self.device), labels.to(self.device)
            if self.augment is not None:
                images = self.augment(images, generator)
            yield (images if self.prepare is None else self.prepare(images)), labels

    def _loader(self, generator: torch.Generator) -> DataLoader[Any]:
        sampler: Sampler[int] = (
            SequentialSampler(self.dataset)  # type: ignore[arg-type]
            if self.seed is None
            else RandomSampler(self.dataset, generator=generator)  # type: ignore[arg-type]
        )
        if isinstance(self.dataset, TensorDataset):
            whole = BatchSampler(sampler, self.batch_size, drop_last=False)
            return DataLoader(self.dataset, sampler=whole, batch_size=None, generator=generator)
        return DataLoader(
            self.dataset, sampler=sampler, batch_size=self.batch_size, num_workers=self.workers, generator=generator
        )


@dataclass(frozen=True)
class Data:
    """A data set with its three fixed splits.

    Attributes:
        name: for messages and the report.
        train, validation, test: map-style data sets giving `(image, label)`; validation comes out of the training set.
        classes: number of classes; labels are 0..classes-1.
        prepare: turns a batch of stored images into the network's input (cast, normalise).
        augment: random changes to a batch of stored images, drawn from a generator, for training; `None` for none.
        fingerprint: changes when the content changes; resuming compares it.
    """

    name: str
    train: Dataset[Any]
    validation: Dataset[Any]
    test: Dataset[Any]
    classes: int
    prepare: Transform
    fingerprint: str
    augment: Augment | None = None
    workers: int = field(default=0)

    def batches(
        self,
        split: SplitName,
        *,
        batch_size: int = 128,
        seed: int | None = None,
        augment: bool = False,
        device: torch.device | str = "cpu",
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
        )

"""Scores a model on a split: hits and losses summed over samples, over processes too."""

import math
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from infoprune.config import registry
from infoprune.errors import UserError, users_code
from infoprune.evaluation.metrics import Score
from infoprune.utils import distributed
from infoprune.utils.module_mode import evaluating

Loader = Iterable[tuple[Tensor, Tensor]]
Progress = Callable[[int, int], None]
Metric = Callable[[Tensor, Tensor], float]


def layout_for(model: nn.Module, images: Tensor) -> torch.memory_format:
    """Channels last where the model computes with it: most convolutions are faster so, depthwise ones twice on a CPU.

    A network that says `x.view(len(x), -1)` of its maps fails with any but contiguous ones.
    """
    if images.ndim == 4:
        with suppress(RuntimeError), evaluating(model), torch.no_grad():
            model(images[:2].contiguous(memory_format=torch.channels_last))
            return torch.channels_last
    return torch.contiguous_format


def evaluate(model: nn.Module, batches: Loader, on_batch: Progress | None = None) -> Score:
    """Accuracy and loss of a model in evaluation mode; its own mode is put back afterwards.

    >>> round(evaluate(nn.Flatten(), [(torch.eye(3), torch.tensor([0, 1, 0]))]).accuracy, 3)  # images are the logits
    0.667

    Args:
        model: maps images to logits, `samples x classes`.
        batches: images and class indices, `samples`; where processes share them, the score is that of all.
        on_batch: told after each batch the number of batches done and of all (0 where the batches have no length).

    Raises:
        UserError: where there are no samples, labels that the logits do not have, or logits that are not finite.
    """
    return measure(model, batches, None, on_batch)[0]


def measure(
    model: nn.Module, batches: Loader, metric: Metric | None, on_batch: Progress | None = None
) -> tuple[Score, float]:
    """As `evaluate`, and what a metric says of all logits and labels of the split together; NaN without one."""
    tally, total, device, layout = Tally(), length_of(batches), device_of(model), None
    seen: list[tuple[Tensor, Tensor]] = []
    with evaluating(model), torch.no_grad():
        for done, (loaded, given) in enumerate(batches, start=1):
            images, labels = loaded.to(device), given.to(device)
            layout = layout or layout_for(model, images)
            logits = model(images.contiguous(memory_format=layout))
            check_batch(logits, labels, f"batch {done}")
            if not logits.isfinite().all():
                raise UserError(
                    f"batch {done}: the model's logits hold NaN or infinity; check its weights (were they loaded "
                    "completely?) and that the images are normalised as it expects"
                )
            tally.add(F.cross_entropy(logits, labels.long()), logits, labels)
            if metric is not None:
                seen.append((logits.float().cpu(), labels.cpu()))
            if on_batch is not None:
                on_batch(done, total)
    joint = distributed.sharers(batches) > 1
    score = tally.score(joint)
    if not score.samples:
        raise UserError("there is nothing to evaluate on: the batches are empty; check the split and its size")
    return score, math.nan if metric is None else _judged(metric, seen, score.samples, joint)


def _judged(metric: Metric, seen: list[tuple[Tensor, Tensor]], samples: int, joint: bool) -> float:
    logits, labels = torch.cat([pair[0] for pair in seen]), torch.cat([pair[1] for pair in seen])
    if joint:
        # Sample i lies with process i mod n: each puts its own into their places, and the sum is the whole.
        places = slice(distributed.rank(), samples, distributed.world())
        whole = logits.new_zeros(samples, logits.shape[1]), labels.new_zeros(samples)
        whole[0][places], whole[1][places] = logits, labels
        logits, labels = distributed.sum_over_ranks(whole)
    came = metric(logits, labels)
    try:
        value = float(came)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"your metric gave {_shown(came)}; expected one number, the larger the better") from error
    if not math.isfinite(value):
        raise UserError(f"your metric gave {value}; expected a finite number, the larger the better")
    return value


def _shown(value: object) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {list(value.shape)}"
    return "None" if value is None else f"a {type(value).__name__}"


def users_metric(reference: str | None) -> Metric | None:
    """The metric of that name, whose failures are told as the user's mistakes; `None` without one."""
    if reference is None:
        return None
    function = registry.users_own(reference)

    def metric(logits: Tensor, labels: Tensor) -> Any:
        remedy = (
            "it is called with the logits of the whole split, samples x classes, and one class index per sample; fix "
            "the function"
        )
        with users_code(f"metric = '{reference}'", remedy):
            return function(logits, labels)

    return metric


class Tally:
    """Running sums of loss and hits; they stay on the device until somebody asks."""

    def __init__(self) -> None:
        self.samples = 0
        self._loss: Tensor | float = 0.0
        self._hits: Tensor | int = 0

    def add(self, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Adds a batch by its mean loss."""
        self.samples += len(labels)
        self._loss = self._loss + loss.detach().double() * len(labels)
        self._hits = self._hits + (logits.detach().argmax(1) == labels).sum()

    def score(self, joint: bool = False) -> Score:
        """The means so far, of all processes where `joint`."""
        sums = [float(self.samples), float(self._loss), float(self._hits)]
        if joint:
            sums = distributed.sum_over_ranks([torch.tensor(sums, dtype=torch.float64)])[0].tolist()
        samples, loss, hits = sums
        return Score(accuracy=hits / max(samples, 1), loss=loss / max(samples, 1), samples=int(samples))


def device_of(model: nn.Module) -> torch.device:
    """Where a model's weights are."""
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


def length_of(batches: Loader) -> int:
    """Number of batches; 0 where only going through them would tell."""
    try:
        return len(batches)  # type: ignore[arg-type]
    except TypeError:
        return 0


def check_batch(logits: Tensor, labels: Tensor, where: str) -> None:
    """Before the loss: on a GPU a label out of range would end the process without a word about labels."""
    if not isinstance(logits, Tensor) or logits.ndim != 2 or labels.shape != logits.shape[:1]:
        came = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise UserError(
            f"{where}: the model gave {came} for labels {list(labels.shape)}; expected logits, samples x classes, "
            "and one class index per sample"
        )
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= logits.shape[1]:
        raise UserError(
            f"{where}: labels {low}..{high}, but the model has {logits.shape[1]} outputs, for labels "
            f"0..{logits.shape[1] - 1}; check the data's labels and the model's number of classes"
        )

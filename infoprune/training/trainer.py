"""One training as it goes: a step, an epoch, the state between epochs, and what is handed over at the end."""

import dataclasses
import logging
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from infoprune.errors import RunError, UserError
from infoprune.evaluation.accuracy import (
    Loader,
    Progress,
    Tally,
    check_batch,
    device_of,
    layout_for,
    length_of,
    measure,
    users_metric,
)
from infoprune.evaluation.metrics import EpochRecord
from infoprune.training.augment import Mixer
from infoprune.training.losses import Objective
from infoprune.training.optimizer import Options, optimizer_for, rate_factor
from infoprune.training.saved_state import AVERAGE, BEST, MODEL, OPTIMIZER, checked, under
from infoprune.utils import distributed
from infoprune.utils.module_mode import set_mode

CHECK_EVERY = 32  # steps between two looks for NaN: every look makes a GPU wait
Pair = tuple[Tensor, Tensor]
LOGGER = logging.getLogger(__name__)


class Training:
    """What changes while a model is trained.

    Args:
        model: changed in place.
        batches: see `finetune`.
        validation: see `finetune`.
        options: see `finetune`.
    """

    def __init__(self, model: nn.Module, batches: Loader, validation: Loader | None, options: Options) -> None:
        self.model, self.batches, self.validation, self.options = model, batches, validation, options
        self.device, self.joint = device_of(model), distributed.sharers(batches) > 1
        self.layout = torch.channels_last if options.channels_behind(self.device) else torch.contiguous_format
        if self.layout == torch.channels_last:
            model.to(memory_format=torch.channels_last)
        self.optimizer = optimizer_for(model, options)
        self.lower = options.lower_precision(self.device)
        # Only float16 has too small a range for gradients.
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.lower is torch.float16)
        self.average = _average(model, options.ema) if options.ema else None
        self.forward: nn.Module = DistributedDataParallel(model) if self.joint else model
        self.mixer, self.objective = Mixer(model, options), Objective(model, None, options)
        self.metric = users_metric(options.metric)
        groups = -(-(length_of(batches) or sum(1 for _ in batches)) // options.accumulation)
        self.steps, self.step = options.epochs * groups, 0
        self.history: list[EpochRecord] = []
        self.best, self.best_epoch = (-math.inf, -math.inf), 0
        self.best_state: dict[str, Tensor] = {}
        self.checked = False
        # Others may hold -inf on purpose, as masks of attention do.
        self.finite = [name for name, value in model.state_dict().items() if _is_finite(value)]

    @property
    def made_by(self) -> dict[str, Any]:
        """What a saved state must agree with to be gone on from."""
        return {**dataclasses.asdict(self.options), "steps": self.steps}

    @property
    def delivered(self) -> nn.Module:
        """The network whose weights are scored and kept: the running mean where there is one."""
        return self.model if self.average is None else self.average.module

    def towards(self, teacher: nn.Module | None) -> Objective:
        """Sets what is lowered; a context, in which the teacher is in evaluation mode and features are seen."""
        self.objective = Objective(self.model, teacher, self.options)
        return self.objective

    def run(self, epoch: int, on_step: Progress | None) -> None:
        """One epoch and its record."""
        began, tally, rate = time.perf_counter(), Tally(), 0.0
        # By epoch, so that none depends on what came before it; and each process drops out other channels.
        torch.manual_seed(self.options.seed * 100_003 + epoch + distributed.rank() * 1_000_000_007)
        set_mode(self.model, training=True)
        for group in _groups(self.batches, self.options.accumulation):
            rate = self.options.rate * rate_factor(self.options.schedule, self.step, self.steps, self.options.warmup)
            self._descend(group, rate, tally)
            self.step += 1
            if self.step % CHECK_EVERY == 0:
                self._check_loss(tally)
            if on_step is not None:
                on_step(self.step, self.steps)
        self._check_loss(tally)
        self._check_weights(epoch)
        self.checked = True
        fit = tally.score(self.joint)
        scores = self._validate()
        if (better := self._worth(*scores)) > self.best and self.validation is not None:
            self.best, self.best_epoch = better, epoch
            self.best_state = {name: value.detach().clone() for name, value in self.delivered.state_dict().items()}
        seconds = time.perf_counter() - began
        loss, accuracy, metric = scores
        self.history.append(EpochRecord(epoch, rate, fit.loss, fit.accuracy, loss, accuracy, seconds, metric))

    def _descend(self, group: list[Pair], rate: float, tally: Tally) -> None:
        for parameters in self.optimizer.param_groups:
            parameters["lr"] = rate
        self.optimizer.zero_grad()
        samples = sum(len(labels) for _, labels in group)
        for place, (images, labels) in enumerate(group, start=1):
            with self._gradients_stay(place < len(group)):
                logits, loss = self._forward(images, labels)
                # Every sample of the step counts alike, in a smaller last batch too.
                self.scaler.scale(loss * (len(labels) / samples)).backward()  # type: ignore[no-untyped-call]
            tally.add(loss, logits, labels.to(logits.device))
        if self.options.gradient_clip:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), self.options.gradient_clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.average is not None:
            self.average.update_parameters(self.model)

    def _gradients_stay(self, more: bool) -> AbstractContextManager[None]:
        """Processes exchange gradients once per step, at its last batch."""
        joined = isinstance(self.forward, DistributedDataParallel)
        return self.forward.no_sync() if joined and more else nullcontext()  # type: ignore[operator]

    def _forward(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        images, labels = images.to(self.device), labels.to(self.device)
        if not self.checked and self.options.channels_last is None and self.layout == torch.channels_last:
            self.layout = layout_for(self.model, images)
            self.model.to(memory_format=self.layout)
        images, target = self.mixer(images, labels)
        if images.ndim == 4:
            images = images.contiguous(memory_format=self.layout)
        with torch.autocast(self.device.type, dtype=self.lower, enabled=self.lower is not None):
            logits = self.forward(images)
            if not self.checked:
                check_batch(logits, labels, f"training batch {self.step + 1}")
            # In full: a softmax over logits of eight bits would round most classes to nothing.
            logits = logits.float() if self.lower is not None else logits
            return logits, self.objective(images, logits, target)

    def _validate(self) -> tuple[float, float, float]:
        if self.validation is None:
            return math.nan, math.nan, math.nan
        if self.joint:
            # Batch norms saw other images on every process; what is scored is what the first will hand over.
            distributed.copy_from_first(self.delivered.buffers())
        score, metric = measure(self.delivered, self.validation, self.metric)
        loss, accuracy, metric = distributed.from_first([score.loss, score.accuracy, metric])
        return loss, accuracy, metric

    def _worth(self, loss: float, accuracy: float, metric: float) -> tuple[float, float]:
        return (accuracy if self.metric is None else metric), -loss

    def has_settled(self) -> bool:
        """Whether validation has not become better for as many epochs as the options allow."""
        waited = len(self.history) - self.best_epoch
        return self.options.patience > 0 and waited >= self.options.patience

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything that the next epoch depends on: tensors by name, and JSON values."""
        tensors = {MODEL + name: value for name, value in self.model.state_dict().items()}
        if self.average is not None:
            tensors |= {AVERAGE + name: value for name, value in self.average.state_dict().items()}
        tensors |= {BEST + name: value for name, value in self.best_state.items()}
        for index, values in self.optimizer.state_dict()["state"].items():
            tensors |= {f"{OPTIMIZER}{index}.{key}": value for key, value in values.items() if value is not None}
        notes = {
            "history": [dataclasses.asdict(record) for record in self.history],
            "best": [*self.best, self.best_epoch],
            "step": self.step,
            "scaler": self.scaler.state_dict(),
            "iterations": getattr(self.batches, "epoch", None),
        }
        return tensors, notes

    def restore(self, tensors: Mapping[str, Tensor], notes: Mapping[str, Any]) -> None:
        """Puts back what `state` gave; anything else is left alone, with a warning, and the first epoch comes next."""
        try:
            said = checked(self, tensors, notes)
        except UserError as error:
            LOGGER.warning("the saved state of a training is damaged: %s; training starts from the beginning", error)
            return
        self.model.load_state_dict(under(MODEL, tensors))
        if self.average is not None:
            self.average.load_state_dict(under(AVERAGE, tensors))
        self.best_state = {name: value.to(self.device) for name, value in under(BEST, tensors).items()}
        descent: dict[int, dict[str, Tensor]] = {}
        for name, value in under(OPTIMIZER, tensors).items():
            index, _, key = name.partition(".")
            descent.setdefault(int(index), {})[key] = value
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": descent})
        self.scaler.load_state_dict(said.scaler)
        self.history = list(said.history)
        self.best, self.best_epoch = said.best[:2], said.best[2]
        self.step = said.step
        if said.iterations is not None:
            self.batches.epoch = said.iterations  # type: ignore[attr-defined]

    def deliver(self) -> None:
        """Puts the weights that are kept into the model, in the layout that it had."""
        if self.joint:
            distributed.copy_from_first(self.delivered.buffers())
        if self.options.keep == "best" and self.best_state:
            self.model.load_state_dict(self.best_state)
        elif self.average is not None:
            self.model.load_state_dict(self.average.module.state_dict())
        if self.layout == torch.channels_last:
            self.model.to(memory_format=torch.contiguous_format)

    def _check_loss(self, tally: Tally) -> None:
        score = tally.score()
        if not score.samples:
            raise UserError("there is nothing to train on: the batches are empty, or can be gone through only once")
        if not math.isfinite(score.loss):
            raise RunError(
                f"the loss became {score.loss} within the first {self.step} steps; lower learning_rate (now "
                f"{self.options.rate:g}), set gradient_clip = 1, or check the training images for NaN"
            )

    def _check_weights(self, epoch: int) -> None:
        """Statistics of batch norms and weights overflow without a word where the loss stays finite."""
        state = self.model.state_dict()
        bad = [name for name in self.finite if not _is_finite(state[name])]
        if bad:
            more = f" and {len(bad) - 3} more" if len(bad) > 3 else ""
            raise RunError(
                f"training diverged in epoch {epoch}: {', '.join(bad[:3])}{more} hold NaN or infinity; lower "
                f"learning_rate (now {self.options.rate:g}), set gradient_clip = 1, or check the scale of the training "
                "images"
            )


def _is_finite(value: Any) -> bool:
    if not isinstance(value, Tensor):
        return False
    return bool((value.float() if value.dtype.itemsize == 1 else value).isfinite().all())  # unknown for eight bits


def kept_weights(which: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of the "best" or the "last" epoch in a saved state; empty where there was no validation."""
    if which == "best":
        return under(BEST, tensors)
    return under(AVERAGE + "module.", tensors) or under(MODEL, tensors)


def _average(model: nn.Module, decay: float) -> AveragedModel:
    # Batch norms' statistics are averaged like the weights that they belong to.
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)  # type: ignore[no-untyped-call]


def _groups(batches: Loader, size: int) -> Iterator[list[Pair]]:
    iterator = iter(batches)
    while group := list(islice(iterator, size)):
        yield group

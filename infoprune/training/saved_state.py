"""What a training saves between epochs, and whether that is still whole when it is read again."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec
import torch
from torch import Tensor

from infoprune.errors import UserError
from infoprune.evaluation.metrics import EpochRecord

if TYPE_CHECKING:
    from infoprune.training.trainer import Training

OPTIMIZER, MODEL, AVERAGE, BEST = "optimizer.", "model.", "average.", "best."
MOST_ITERATIONS = 10**9


@dataclass(frozen=True)
class Notes:
    """What is saved beside tensors.

    Attributes:
        history: one record per epoch done.
        best: of the best epoch its accuracy or metric, its loss with a minus, and its number; 0 before there is one.
        step: steps done.
        scaler: the state of the scaling of gradients; empty where they are not scaled.
        iterations: how often the batches were gone through; `None` where they do not count.
    """

    history: list[EpochRecord]
    best: tuple[float, float, int]
    step: int
    scaler: dict[str, int | float]
    iterations: int | None


def under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin with a prefix, without it."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def checked(training: "Training", tensors: Mapping[str, Tensor], notes: Mapping[str, Any]) -> Notes:
    """The notes of a saved state that is one of this training: whole, of its shapes, and after whole epochs.

    Raises:
        UserError: for any other.
    """
    try:
        said: Notes = msgspec.convert(notes, Notes)
    except msgspec.ValidationError as error:
        raise UserError(str(error)) from error
    for problem in (*_in_notes(training, said), *_in_tensors(training, tensors, said)):
        raise UserError(problem)
    return said


def _in_notes(training: "Training", notes: Notes) -> Iterator[str]:
    epochs, done = [record.epoch for record in notes.history], len(notes.history)
    if epochs != list(range(1, done + 1)) or done > training.options.epochs:
        yield f"its history has the epochs {epochs[:9]}"
    if notes.step * training.options.epochs != done * training.steps or not 0 <= notes.best[2] <= done:
        yield f"it is at step {notes.step}, with {notes.best[2]} as the best of {done} epochs"
    if (getattr(training.batches, "epoch", None) is None) != (notes.iterations is None):
        yield f"its batches count {notes.iterations} iterations"
    if not 0 <= (notes.iterations or 0) <= MOST_ITERATIONS:
        yield f"its batches were gone through {notes.iterations} times"
    scaler = training.scaler.state_dict()
    alike = {key: type(value) for key, value in scaler.items()} == {k: type(v) for k, v in notes.scaler.items()}
    if not alike or not all(0 <= value < math.inf for value in notes.scaler.values()):
        yield f"its gradients were scaled by {notes.scaler}"


def _in_tensors(training: "Training", tensors: Mapping[str, Tensor], notes: Notes) -> Iterator[str]:
    expected = _expected(training)
    for name, value in tensors.items():
        like = expected.get(name)
        if like is None or (value.shape, value.is_floating_point()) != (like.shape, like.is_floating_point()):
            yield f"it holds '{name}' of type {value.dtype} and shape {tuple(value.shape)}"
    # Weights that never had a gradient have nothing in the optimizer; all others have everything.
    begun = {_owner(name) for name in tensors if name.startswith(OPTIMIZER)}
    for name in expected.keys() - tensors.keys():
        spared = name.startswith(OPTIMIZER) and _owner(name) not in begun
        if not spared and not (name.startswith(BEST) and notes.best[2] == 0):
            yield f"it lacks '{name}'"


def _owner(name: str) -> str:
    return name.rpartition(".")[0]


def _expected(training: "Training") -> dict[str, Tensor]:
    """Tensors of the names, shapes and kinds that a state may hold."""
    expected = {MODEL + name: value for name, value in training.model.state_dict().items()}
    if training.average is not None:
        expected |= {AVERAGE + name: value for name, value in training.average.state_dict().items()}
    expected |= {BEST + name: value for name, value in training.delivered.state_dict().items()}
    adaptive = training.options.optimizer == "adamw"
    kept = ("exp_avg", "exp_avg_sq") if adaptive else ("momentum_buffer",) if training.options.momentum else ()
    parameters = [each for group in training.optimizer.param_groups for each in group["params"]]
    for index, parameter in enumerate(parameters):
        expected |= {f"{OPTIMIZER}{index}.{key}": parameter for key in kept}
        if adaptive:
            expected[f"{OPTIMIZER}{index}.step"] = torch.tensor(0.0)
    return expected

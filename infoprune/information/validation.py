"""Checks on what comes in: every refusal is a ValueError that says what came, what was expected, what to do."""

import difflib
import math
from collections.abc import Iterable

from jaxtyping import Bool
from torch import Tensor


def require_order(alpha: float) -> float:
    """Returns a usable order of Rényi's entropy, or raises ValueError: positive and finite."""
    if not (math.isfinite(alpha) and alpha > 0):
        raise ValueError(
            f"alpha = {alpha} is no order of Rényi's entropy: expected a positive finite number; "
            "use 1.0 for Shannon's limit or 1.01 as the paper does."
        )
    return float(alpha)


def require_choice(name: str, value: str, choices: Iterable[str]) -> str:
    """Returns ``value`` if it is one of ``choices``, or raises ValueError with the nearest name."""
    known = list(choices)
    if value not in known:
        near = difflib.get_close_matches(value, known, n=1)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        raise ValueError(f"no {name} '{value}'{hint} Known: {', '.join(known)}.")
    return value


def require_positive(name: str, value: float | int) -> float:
    """Returns ``value`` if it is positive and finite, or raises ValueError."""
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name} = {value}: expected a positive finite number; give one.")
    return float(value)


def require_samples(n: int, *, least: int = 2) -> int:
    """Returns the sample count ``n``, or raises ValueError if there are too few to compare."""
    if n < least:
        raise ValueError(
            f"{n} sample(s) came, at least {least} are needed: information is estimated from how samples "
            "differ from each other; give a larger mini-batch."
        )
    return n


def require_finite(finite: bool | Bool[Tensor, ""], what: str) -> None:
    """Raises ValueError unless ``finite``: NaN and Inf are refused before they spread."""
    if not bool(finite):
        raise ValueError(
            f"{what} hold NaN or Inf (or are too large to square): expected finite numbers; "
            "check the model's outputs, half-precision overflow above all."
        )


def require_labels(labels: Tensor, n: int) -> Tensor:
    """Returns the labels, or raises ValueError unless there is one integer label for each of ``n`` samples."""
    if labels.ndim != 1 or labels.shape[0] != n:
        raise ValueError(
            f"labels of shape {tuple(labels.shape)} came for {n} samples: expected one integer class per sample; "
            "turn one-hot or soft labels into classes with argmax(dim=1)."
        )
    if labels.is_floating_point() or labels.is_complex():
        raise ValueError(f"labels are {labels.dtype}: expected integers; convert with labels.long().")
    return labels


def require_square(shape: tuple[int, ...], what: str) -> int:
    """Returns n of a ``(..., n, n)`` shape with n >= 1, or raises ValueError."""
    if len(shape) < 2 or shape[-1] != shape[-2] or shape[-1] < 1:
        raise ValueError(
            f"{what} has shape {tuple(shape)}: expected square matrices (..., n, n) with n >= 1; "
            "build one with gram.rbf, gram.delta or gram.linear."
        )
    return shape[-1]

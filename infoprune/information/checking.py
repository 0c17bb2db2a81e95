"""How the matrix-based estimator behaves, at one's own settings, on cases whose truth is known.

What ``infoprune check-estimator`` prints. No number of a pruning report should be trusted blindly: the raw estimate
is a biased one on continuous data, saturates in many dimensions, and is exact only for discrete variables.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Float64, Int
from torch import Tensor

from infoprune.information.entropy import SATURATION_BITS, joint_entropy, label_entropy, saturation_margin
from infoprune.information.estimators import ksg
from infoprune.information.gram import delta, filter_grams
from infoprune.information.resampling import debiased_mutual_information
from infoprune.information.validation import require_order, require_samples

CORRELATION = 0.75
DIMENSIONS = (1, 2, 5, 20)


@dataclass(frozen=True)
class CheckRow:
    """One case; information in bits, averaged over repeats."""

    case: str
    truth: float | None
    """I(A; B), or None where it is infinite (a continuous variable and its copy)."""
    raw: float
    debiased: float
    spread: float
    """Standard deviation of ``raw`` over the repeats."""
    margin: float
    """log2 n − S(A, B)."""
    saturated: bool
    nearest_neighbour: float | None
    """KSG estimate on the same samples; None for discrete cases."""
    remark: str


def check_estimator(
    *,
    alpha: float = 1.0,
    rule: str = "standardized",
    samples: int = 128,
    gamma: float = 1.0,
    h: float = 5.0,
    share: float = 0.15,
    repeats: int = 5,
    permutations: int = 20,
    seed: int = 0,
    on_case: Callable[[int, int], None] | None = None,
) -> list[CheckRow]:
    """Runs the estimator on cases with known truth: discrete, independent, duplicated, Gaussian by dimension.

    Args:
        alpha, rule, gamma, h, share: as in ``scoring.filter_information``; for ``label_alignment`` the continuous
            cases are given two balanced random classes.
        samples: mini-batch size n.
        repeats: independent draws per case.
        permutations: for the debiased value.
        seed: everything follows from it.
        on_case: told after each case the number of cases done and of all.

    Returns:
        One row per case, in a fixed order.

    Raises:
        ValueError: for an unknown rule or an option out of range.

    Example:
        >>> rows = check_estimator(samples=32, repeats=1, permutations=2)
        >>> rows[0].case, rows[0].truth, round(rows[0].raw, 6)
        ('XOR, both inputs together (discrete)', 1.0, 1.0)
    """
    require_order(alpha)
    require_samples(samples, least=8)
    if repeats < 1:
        raise ValueError(f"repeats = {repeats}: expected at least one.")
    setting = _Setting(samples, {"rule": rule, "gamma": gamma, "h": h, "share": share})
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for done, case in enumerate(_CASES, start=1):
        draws = [case.draw(setting, generator) for _ in range(repeats)]
        rows.append(_row(case, draws, alpha, permutations, generator))
        if on_case is not None:
            on_case(done, len(_CASES))
    return rows


class _Setting(NamedTuple):
    samples: int
    options: dict[str, Any]


class _Draw(NamedTuple):
    first: Float64[Tensor, "n n"]
    second: Float64[Tensor, "n n"]
    truth: float | None
    neighbour: float | None


class _Case(NamedTuple):
    name: str
    draw: Callable[[_Setting, torch.Generator], _Draw]
    remark: str


def _row(case: _Case, draws: list[_Draw], alpha: float, permutations: int, generator: torch.Generator) -> CheckRow:
    first, second = torch.stack([draw.first for draw in draws]), torch.stack([draw.second for draw in draws])
    found = debiased_mutual_information(first, second, permutations=permutations, generator=generator, alpha=alpha)
    margin = float(saturation_margin(joint_entropy(first, second, alpha=alpha), first.shape[-1]).mean())
    truths = [draw.truth for draw in draws if draw.truth is not None]
    neighbours = [draw.neighbour for draw in draws if draw.neighbour is not None]
    return CheckRow(
        case=case.name,
        truth=sum(truths) / len(truths) if truths else None,
        raw=float(found.raw.mean()),
        debiased=float(found.debiased.mean()),
        spread=float(found.raw.std(correction=0)),
        margin=margin,
        saturated=margin < SATURATION_BITS,
        nearest_neighbour=sum(neighbours) / len(neighbours) if neighbours else None,
        remark=case.remark,
    )


def _xor(setting: _Setting, generator: torch.Generator, *, both: bool) -> _Draw:
    code = torch.arange(setting.samples) % 4
    a, b = code // 2, code % 2
    inputs = code if both else a
    return _discrete(inputs, a ^ b)


def _copied_classes(setting: _Setting, generator: torch.Generator) -> _Draw:
    classes = torch.randint(10, (setting.samples,), generator=generator)
    return _discrete(classes, classes)


def _discrete(a: Int[Tensor, " n"], b: Int[Tensor, " n"]) -> _Draw:
    """Two discrete variables; their truth is the plug-in Shannon information of the very samples drawn."""
    together = a * (int(b.max()) + 1) + b
    truth = label_entropy(a) + label_entropy(b) - label_entropy(together)
    return _Draw(delta(a), delta(b), float(truth), None)


def _gaussian(setting: _Setting, generator: torch.Generator, *, dimension: int, correlation: float) -> _Draw:
    """Two Gaussian vectors whose entries correlate in pairs; a correlation of 1 is a copy."""
    x, noise = torch.randn(2, setting.samples, dimension, generator=generator, dtype=torch.float64)
    y = correlation * x + math.sqrt(1 - correlation**2) * noise
    labels = torch.arange(setting.samples) % 2 if setting.options["rule"] == "label_alignment" else None
    grams = filter_grams(torch.stack([x, y], 1), labels=labels, **setting.options)
    if correlation == 1:
        return _Draw(grams[0], grams[1], None, None)
    return _Draw(grams[0], grams[1], -dimension / 2 * math.log2(1 - correlation**2), ksg(x, y))


_CASES = [
    _Case("XOR, both inputs together (discrete)", partial(_xor, both=True), "exact at α = 1"),
    _Case("XOR, one input alone (discrete)", partial(_xor, both=False), "exact at α = 1"),
    _Case("ten classes and their copy (discrete)", _copied_classes, "exact at α = 1"),
    *[
        _Case(
            f"independent Gaussians, d = {d}",
            partial(_gaussian, dimension=d, correlation=0.0),
            "the raw value is bias; the debiased one should be near 0",
        )
        for d in DIMENSIONS
    ],
    *[
        _Case(
            f"Gaussians, ρ = {CORRELATION} in each pair, d = {d}",
            partial(_gaussian, dimension=d, correlation=CORRELATION),
            "compare ranks and growth, not values: the kernel smooths what it cannot resolve",
        )
        for d in DIMENSIONS
    ],
    _Case(
        "a Gaussian and its copy, d = 5",
        partial(_gaussian, dimension=5, correlation=1.0),
        "infinite in truth; the estimate cannot pass S(A)",
    ),
]

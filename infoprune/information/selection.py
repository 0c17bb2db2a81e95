"""What CMI-permutation deals with: its variants, one tested candidate, the selection that comes out."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from infoprune.information.resampling import Interval, bootstrap_interval


class Variant(NamedTuple):
    """The choices in which the published algorithm and the corrected one differ."""

    alpha: float
    widen: bool
    """σ·√C for a set of C filters; without it the set's entropy runs into log2 n after a few filters."""
    delta_labels: bool
    """Delta kernel on the labels; the paper's RBF on one-hot labels sees 0.6 of the 3.3 bits of ten classes."""
    ties_against: bool
    """Count a permutation that ties as evidence to stop, as the ≥ of Algorithm 1 does; else leave it out."""
    plus_one: bool
    """p = (1 + b)/(1 + P), which is never 0, in place of b/P."""
    guard: bool
    """Stop, and call it saturated, where S(T_s, t) is within ``SATURATION_BITS`` of log2 n."""
    adjust: bool
    """Also correct for t being the best of all remaining candidates: without it, the luckiest of many pure-noise
    filters passes a test made for one chosen beforehand. Šidák over the candidates, on a normal tail, because P
    permutations alone cannot show a p-value below 1/(P + 1)."""


VARIANTS = {
    "corrected": Variant(1.0, True, True, False, True, True, True),
    "paper": Variant(1.01, False, False, True, False, False, False),
}
"""``paper`` is Algorithm 1 as printed. It underestimates: once S(T_s) ≈ log2 n both sides of its test are equal up
to round-off, and ties count against going on."""


STOPS = ("insignificant", "ties", "saturated", "exhausted", "limit")


class Step(NamedTuple):
    """One tested candidate; information in bits."""

    candidate: int
    information: float
    """I(Y; {T_s, t})."""
    conditional: float
    """I({T_r − t}; Y | {T_s, t}), the statistic."""
    permuted_mean: float
    permuted_low: float
    """5 % quantile of the statistic over permutations of t; up to ``permuted_high`` it is the chance band."""
    permuted_high: float
    p_value: float
    adjusted_p_value: float
    """With the correction for choosing t among all candidates; equals ``p_value`` where not asked for."""
    ties: int
    margin: float
    """log2 n − S(T_s, t)."""


class Selection(NamedTuple):
    """Result of CMI-permutation on one mini-batch."""

    order: tuple[int, ...]
    """Selected filters, in the order in which they joined; their number is the width."""
    steps: tuple[Step, ...]
    """All tested candidates. The last one was refused, unless ``stop`` is "exhausted" or "limit"."""
    stop: str
    """"insignificant", "ties" (every permutation tied: nothing was tested), "saturated", "exhausted" or "limit"."""

    @property
    def width(self) -> int:
        """Number of selected filters."""
        return len(self.order)

    @property
    def conclusive(self) -> bool:
        """Whether the width follows from the test: not after saturation, ties or a limit."""
        return self.stop in ("insignificant", "exhausted")


def packed(selections: Sequence[Selection]) -> dict[str, Tensor]:
    """Selections as tensors, for other processes to take in; `unpacked` is the way back.

    >>> unpacked(packed([Selection((0, 4), (), "insignificant")]))
    [Selection(order=(0, 4), steps=(), stop='insignificant')]
    """
    steps = [step for selection in selections for step in selection.steps]
    return {
        "stop": torch.tensor([STOPS.index(selection.stop) for selection in selections], dtype=torch.long),
        "joined": torch.tensor([len(selection.order) for selection in selections], dtype=torch.long),
        "order": torch.tensor([place for selection in selections for place in selection.order], dtype=torch.long),
        "tested": torch.tensor([len(selection.steps) for selection in selections], dtype=torch.long),
        "steps": torch.tensor(steps, dtype=torch.float64).view(-1, len(Step._fields)),
    }


def unpacked(tensors: Mapping[str, Tensor]) -> list[Selection]:
    """The selections of `packed`."""
    orders = torch.split(tensors["order"], tensors["joined"].tolist())
    tested = torch.split(tensors["steps"], tensors["tested"].tolist())
    return [
        Selection(tuple(order.tolist()), tuple(map(_step, steps.tolist())), STOPS[stop])
        for order, steps, stop in zip(orders, tested, tensors["stop"].tolist(), strict=True)
    ]


def _step(row: Sequence[float]) -> Step:
    found = Step(*row)  # type: ignore[arg-type]
    return found._replace(candidate=int(found.candidate), ties=int(found.ties))


def width_interval(
    selections: list[Selection], *, level: float = 0.95, generator: torch.Generator | None = None
) -> Interval:
    """Bootstrap interval of the selected width over several mini-batches.

    Raises:
        ValueError: if no selection came.

    Example:
        >>> width_interval([Selection((0, 4), (), "insignificant")] * 3).mean.item()
        2.0
    """
    widths = torch.tensor([selection.width for selection in selections], dtype=torch.float64)
    return bootstrap_interval(widths, level=level, generator=generator)

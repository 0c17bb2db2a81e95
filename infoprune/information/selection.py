"""The nouns of CMI-permutation: its variants, one tested candidate, the selection that comes out."""

from typing import NamedTuple

import torch

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

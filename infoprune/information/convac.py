"""Exact entropies of small convolutional arithmetic circuits, and the information scaling law on them.

"Information Scaling Law of Deep Neural Networks", for the CP model, Eqs. (10)–(13), and the HT model, Eq. (20). A
circuit mixes distributions: φ^l | d^l is the product of its two halves, each a mixture over d^{l−1} by one row of a
row-stochastic matrix. For each such mapping

    H(φ | d^l) − H(φ | d^{l−1}) = I(φ; d^{l−1} | d^l)

with every entropy averaged over the prior of its hidden variable, so that a gain lies between 0 and H(d^{l−1} | d^l)
≤ log2 r_{l−1}, and H(X) − Σ H(x_i | d) is the sum of all gains: Theorems 4 and 5 with their C the largest gain.

Wrong in the paper: Eq. (29) per component j, since only the average over j obeys it; "A invertible ⇒ no loss" and
Eq. (32), as A = [[.9, .1], [.1, .9]] on deterministic components gains .469 bit; "A singular ⇒ greatest loss", which
holds only where d^l says nothing about φ. β is undefined where H(v) = 0. Theorem 1 holds for differential entropy
only; no invertible activation changes mutual information.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float64
from torch import Tensor

from infoprune.information.validation import require_finite

STATES = 2**22
"""Most entries of a table that is enumerated."""


class ScalingLaw(NamedTuple):
    """What the paper's theorems speak about, in bits."""

    entropy: float
    """H(X)."""
    leaves: float
    """Σ_i H(x_i | d)."""
    gains: tuple[float, ...]
    """H(u) − H(v) of every mapping, from the leaves to the top."""
    ratios: tuple[float, ...]
    """H(u) / H(v) of every mapping; NaN where H(v) = 0."""
    depth: int
    """Mappings between a leaf and X: L + 1 for an HT model, 2 for a CP model."""
    budget: float
    """A priori bound on H(X) − Σ H(x_i | d): log2 of the width mixed over, summed over mappings."""

    @property
    def largest_gain(self) -> float:
        """C."""
        return max(self.gains)

    @property
    def bound(self) -> float:
        """Number of mappings times C: (2^{L+1} − 1)·C for an HT model (Theorem 4), (N + 1)·C for CP (Theorem 5)."""
        return len(self.gains) * self.largest_gain

    @property
    def largest_ratio(self) -> float:
        """β, over the mappings in which it is defined; NaN where it is in none."""
        return max((ratio for ratio in self.ratios if not math.isnan(ratio)), default=math.nan)


def entropy_bits(p: Float64[Tensor, "*batch s"]) -> Float64[Tensor, "*batch"]:
    """Shannon entropy −Σ p log2 p.

    Example:
        >>> entropy_bits(torch.tensor([0.5, 0.25, 0.25]).double()).item()
        1.5
    """
    return -torch.xlogy(p, p).sum(-1) / math.log(2)


def hierarchical(
    leaves: Float64[Tensor, "r0 s"], mixing: Sequence[Float64[Tensor, "_ _"]], top: Float64[Tensor, " rL"]
) -> ScalingLaw:
    """The scaling law on an HT model, Eq. (20), by enumeration of all s^N states, N = 2^L leaves.

    Args:
        leaves: P(x | d; θ_d) of each of the r_0 components, over s states; all N leaves share them.
        mixing: A^1 … A^L, row-stochastic, A^l of r_l × r_{l−1}; all nodes of a level share them.
        top: P(d^L).

    Raises:
        ValueError: for what is no distribution, widths that do not fit, or too many states.

    Example:
        >>> a = torch.tensor([[0.9, 0.1], [0.1, 0.9]]).double()
        >>> law = hierarchical(torch.eye(2).double(), [a], torch.tensor([0.5, 0.5]).double())
        >>> round(law.entropy, 6), [round(gain, 6) for gain in law.gains], round(law.bound, 3)
        (1.680077, [0.468996, 0.468996, 0.742086], 2.226)
    """
    _check(leaves, [*mixing, top[None]])
    if leaves.shape[1] ** (2 ** len(mixing)) * max(leaves.shape[0], *(len(a) for a in mixing)) > STATES:
        raise ValueError(f"{leaves.shape[1]}^{2 ** len(mixing)} states came: expected a table below {STATES} entries.")
    priors = [top]
    for matrix in reversed(mixing):
        priors.insert(0, priors[0] @ matrix)
    parts, gains, ratios, budget = leaves, list[float](), list[float](), 0.0
    for level, matrix in enumerate(mixing, start=1):
        mixed = matrix @ parts
        before, after = priors[level - 1] @ entropy_bits(parts), priors[level] @ entropy_bits(mixed)
        nodes = 2 ** (len(mixing) - level + 1)
        gains += [float(after - before)] * nodes
        ratios += [_ratio(after, before)] * nodes
        budget += nodes * math.log2(matrix.shape[1])
        parts = (mixed[:, :, None] * mixed[:, None, :]).flatten(1)
    before, after = top @ entropy_bits(parts), entropy_bits(top @ parts)
    return ScalingLaw(
        entropy=float(after),
        leaves=2 ** len(mixing) * float(priors[0] @ entropy_bits(leaves)),
        gains=(*gains, float(after - before)),
        ratios=(*ratios, _ratio(after, before)),
        depth=len(mixing) + 1,
        budget=budget + math.log2(len(top)),
    )


def shallow(
    leaves: Float64[Tensor, "m s"], mixing: Sequence[Float64[Tensor, "z m"]], top: Float64[Tensor, " z"]
) -> ScalingLaw:
    """The scaling law on a CP model, Eqs. (10)–(13), by enumeration of all s^N states.

    Args:
        leaves: P(x | d; θ_d) of each of the M components, over s states.
        mixing: a^{z,i} as a row-stochastic Z × M matrix for each of the N leaves.
        top: P(z).

    Raises:
        ValueError: as ``hierarchical``.

    Example:
        >>> a = torch.tensor([[0.9, 0.1], [0.1, 0.9]]).double()
        >>> law = shallow(torch.eye(2).double(), [a, a], torch.tensor([0.5, 0.5]).double())
        >>> len(law.gains), round(law.entropy, 6)  # N + 1 mappings; with two leaves it is the HT model
        (3, 1.680077)
    """
    _check(leaves, [*mixing, top[None]])
    if leaves.shape[1] ** len(mixing) * len(top) > STATES:
        raise ValueError(f"{leaves.shape[1]}^{len(mixing)} states came: expected a table below {STATES} entries.")
    parts, gains, ratios, below = torch.ones(len(top), 1, dtype=torch.float64), list[float](), list[float](), 0.0
    for matrix in mixing:
        mixed = matrix @ leaves
        before, after = top @ matrix @ entropy_bits(leaves), top @ entropy_bits(mixed)
        below += float(before)
        gains.append(float(after - before))
        ratios.append(_ratio(after, before))
        parts = (parts[:, :, None] * mixed[:, None, :]).flatten(1)
    before, after = top @ entropy_bits(parts), entropy_bits(top @ parts)
    budget = len(mixing) * math.log2(len(leaves)) + math.log2(len(top))
    whole = (float(after - before), _ratio(after, before))
    return ScalingLaw(float(after), below, (*gains, whole[0]), (*ratios, whole[1]), 2, budget)


def _ratio(after: Tensor, before: Tensor) -> float:
    return float(after / before) if float(before) > 1e-12 else math.nan


def _check(leaves: Tensor, matrices: Sequence[Tensor]) -> None:
    for matrix in (leaves, *matrices):
        require_finite(torch.isfinite(matrix).all(), "probabilities")
        if float(matrix.min()) < 0 or not torch.allclose(matrix.sum(1), torch.ones(len(matrix)).to(matrix)):
            raise ValueError("a row of probabilities is negative or does not add up to 1; use softmax over dim 1.")
    if not matrices[:-1]:
        raise ValueError("no mixing matrix came: expected at least one.")

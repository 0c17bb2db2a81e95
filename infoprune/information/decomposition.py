"""Redundancy and synergy of two variables about a third, from three mutual informations.

"Understanding Convolutional Neural Networks with Information Theory", Sec. III.B, Eqs. (11) and (12), and the
minimum-mutual-information partial information decomposition (MMI-PID), which the same three terms give for free.
All are functions of I1 = I(X; T_1), I2 = I(X; T_2), I12 = I(X; {T_1, T_2}) in bits, elementwise on any shapes.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor


class PartialInformation(NamedTuple):
    """The four atoms of the MMI-PID, in bits; they add up to I12."""

    redundancy: Float[Tensor, "*shape"]
    unique_first: Float[Tensor, "*shape"]
    unique_second: Float[Tensor, "*shape"]
    synergy: Float[Tensor, "*shape"]


def tradeoff(
    i1: Float[Tensor, "*shape"], i2: Float[Tensor, "*shape"], i12: Float[Tensor, "*shape"], *, weighted: bool = False
) -> Float[Tensor, "*shape"]:
    """I1 + I2 − I12 = redundancy − synergy, Eq. (11), in bits.

    Args:
        weighted: as a share of I12 (the paper's Fig. 5), undefined (NaN) where I12 = 0.

    Returns:
        Positive where the pair mostly repeats itself, negative where it says more together than apart.

    Example:
        >>> zero, one = torch.tensor(0.0), torch.tensor(1.0)
        >>> tradeoff(zero, zero, one).item()  # XOR
        -1.0
    """
    return _share(i1 + i2 - i12, i12, weighted)


def non_redundant(
    i1: Float[Tensor, "*shape"], i2: Float[Tensor, "*shape"], i12: Float[Tensor, "*shape"], *, weighted: bool = False
) -> Float[Tensor, "*shape"]:
    """2·I12 − I1 − I2 = unique + 2·synergy, Eq. (12), in bits: what a filter adds to another.

    Args:
        weighted: as a share of I12 (the paper's Fig. 5), undefined (NaN) where I12 = 0.

    Example:
        >>> zero, one = torch.tensor(0.0), torch.tensor(1.0)
        >>> non_redundant(zero, zero, one).item()  # XOR
        2.0
    """
    return _share(2 * i12 - i1 - i2, i12, weighted)


def mmi_pid(
    i1: Float[Tensor, "*shape"], i2: Float[Tensor, "*shape"], i12: Float[Tensor, "*shape"]
) -> PartialInformation:
    """MMI-PID: R = min(I1, I2), U_i = I_i − R, Syn = I12 − max(I1, I2), in bits.

    Beyond the paper, which leaves the single atoms open. Non-negative as long as I12 ≥ max(I1, I2), which estimates
    with different kernel widths for single variables and sets need not keep.

    Example:
        >>> atoms = mmi_pid(torch.tensor(0.311278), torch.tensor(0.311278), torch.tensor(0.811278))
        >>> round(atoms.synergy.item(), 6)  # AND
        0.5
    """
    redundancy = torch.minimum(i1, i2)
    return PartialInformation(redundancy, i1 - redundancy, i2 - redundancy, i12 - torch.maximum(i1, i2))


def sample_pairs(
    count: int, *, limit: int | None = None, generator: torch.Generator | None = None
) -> Int[Tensor, "pairs 2"]:
    """Pairs i < j of ``count`` variables: all of them, or a uniform sample of ``limit`` where there are more.

    Raises:
        ValueError: for fewer than two variables or a limit below one.

    Example:
        >>> sample_pairs(3).tolist()
        [[0, 1], [0, 2], [1, 2]]
    """
    if count < 2 or (limit is not None and limit < 1):
        raise ValueError(f"count = {count}, limit = {limit}: expected at least two variables and one pair.")
    pairs = torch.combinations(torch.arange(count))
    if limit is None or len(pairs) <= limit:
        return pairs
    chosen = torch.randperm(len(pairs), generator=generator)[:limit].sort().values
    return pairs[chosen]


def mean_per_variable(
    values: Float[Tensor, " pairs"], pairs: Int[Tensor, "pairs 2"], count: int
) -> Float[Tensor, " count"]:
    """Mean of a pairwise value over the pairs each variable takes part in; NaN for one in no pair.

    With the trade-off as the value this is a filter's redundancy with its layer.

    Example:
        >>> mean_per_variable(torch.tensor([1.0, 3.0]), torch.tensor([[0, 1], [0, 2]]), 3)
        tensor([2., 1., 3.])
    """
    total, members = values.new_zeros(count), values.new_zeros(count)
    for column in pairs.to(values.device).unbind(1):
        total.index_add_(0, column, values)
        members.index_add_(0, column, torch.ones_like(values))
    return total / members


def _share(value: Float[Tensor, "*shape"], whole: Float[Tensor, "*shape"], weighted: bool) -> Float[Tensor, "*shape"]:
    return torch.where(whole == 0, torch.nan, value / whole) if weighted else value

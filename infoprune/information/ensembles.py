"""Information that sets of filters hold about a target: pairs, and growing sets (Eqs. (6), (7), (11), (12)).

A set's kernel is exp(−sum of exponents), so sums are kept and never a product of C matrices. By default a set of C
filters has the kernel width σ·√C (see ``gram.set_exponents``): the paper's plain product runs into log2 n with a
few filters. Under it a filter paired with its own copy gives I12 = I1 exactly, that is full redundancy. The price:
single filters and sets have different widths, so I12 ≥ max(I1, I2) is no longer guaranteed.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float64, Int
from torch import Tensor

from infoprune.information.entropy import renyi_entropy, saturation_margin
from infoprune.information.gram import DEFAULT_MEMORY, set_exponents
from infoprune.information.spectra import kernel_entropy
from infoprune.information.validation import require_finite, require_order, require_positive


class PairInformation(NamedTuple):
    """The three terms of section III.B per pair, in bits, and how far the pair's joint entropy is from saturation."""

    first: Float64[Tensor, " pairs"]
    second: Float64[Tensor, " pairs"]
    both: Float64[Tensor, " pairs"]
    margin: Float64[Tensor, " pairs"]


class SetInformation(NamedTuple):
    """I(X; {T_1..T_k}) for growing k, in bits."""

    sizes: Int[Tensor, " sizes"]
    information: Float64[Tensor, " sizes"]
    margin: Float64[Tensor, " sizes"]
    """log2 n − S(X, T_1..T_k); below ``entropy.SATURATION_BITS`` nothing is concluded from that size."""


def pair_information(
    exponents: Float64[Tensor, "c n n"],
    target: Float64[Tensor, "n n"],
    pairs: Int[Tensor, "pairs 2"],
    *,
    alpha: float = 1.0,
    widen: bool = True,
    memory_limit: int = DEFAULT_MEMORY,
) -> PairInformation:
    """I(X; T_i), I(X; T_j) and I(X; {T_i, T_j}) for pairs of filters.

    Args:
        exponents: D/2σ² of each filter, from ``gram.filter_exponents`` or ``gram.delta_distances``.
        target: unit-diagonal kernel matrix of X (or of any variable).
        pairs: indices, e.g. from ``decomposition.sample_pairs``.
        widen: σ·√2 for pairs; False for the paper's plain product.
        memory_limit: bytes of working memory.

    Raises:
        ValueError: for NaN or Inf, or an order that is not positive.

    Example:
        >>> from infoprune.information.gram import delta, delta_distances
        >>> a, b = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1])
        >>> found = pair_information(delta_distances(torch.stack([a, b])), delta(a ^ b), torch.tensor([[0, 1]]))
        >>> found.both.round(decimals=6)  # XOR
        tensor([1.], dtype=torch.float64)
    """
    of_target = _prepared(exponents, target, alpha)
    own, joint = _single_entropies(exponents, target, alpha, memory_limit)
    alone = own + of_target - joint
    own, joint = _pair_entropies(exponents, pairs, target, alpha, widen, memory_limit)
    margin = saturation_margin(joint, exponents.shape[-1])
    return PairInformation(alone[pairs[:, 0]], alone[pairs[:, 1]], own + of_target - joint, margin)


def set_information(
    exponents: Float64[Tensor, "c n n"],
    target: Float64[Tensor, "n n"],
    *,
    sizes: Sequence[int] | None = None,
    alpha: float = 1.0,
    widen: bool = True,
) -> SetInformation:
    """I(X; {T_1..T_k}) of the first k filters, for each k in ``sizes`` (Eq. (7), the paper's MMI).

    Args:
        exponents: D/2σ² of each filter, in the order in which they join the set.
        target: unit-diagonal kernel matrix of X.
        sizes: increasing set sizes, 1 to c; all of them by default.
        widen: σ·√k for k filters; False for the paper's plain product, which saturates.

    Raises:
        ValueError: for sizes out of range or order, NaN or Inf, or an order that is not positive.

    Example:
        >>> from infoprune.information.gram import delta, delta_distances
        >>> a, b = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1])
        >>> found = set_information(delta_distances(torch.stack([a, b])), delta(a ^ b))
        >>> found.information.abs().round(decimals=6)  # XOR
        tensor([0., 1.], dtype=torch.float64)
    """
    of_target = _prepared(exponents, target, alpha)
    wanted = list(range(1, len(exponents) + 1)) if sizes is None else list(sizes)
    if not wanted or wanted != sorted(set(wanted)) or wanted[0] < 1 or wanted[-1] > len(exponents):
        raise ValueError(f"sizes = {wanted} for {len(exponents)} filters: expected increasing sizes from 1 to all.")
    total, done, found = torch.zeros_like(target), 0, []
    for size in wanted:
        total, done = total + exponents[done:size].sum(0), size
        kernel = set_exponents(total, size, widen=widen).neg().exp()
        found.append(kernel_entropy(torch.stack([kernel, kernel * target]), alpha=alpha))
    own, joint = torch.stack(found, 1)
    margin = saturation_margin(joint, exponents.shape[-1])
    return SetInformation(torch.tensor(wanted), own + of_target - joint, margin)


def width_reaching(
    sizes: Int[Tensor, " sizes"], information: Float64[Tensor, " sizes"], total: float, *, share: float = 0.99
) -> int | None:
    """The first set size whose information reaches a share of ``total``, H(X) for the paper's bound; None if none.

    Where the curve is saturated there (see ``SetInformation.margin``) the size is an artefact of the estimator.

    Example:
        >>> width_reaching(torch.tensor([1, 2, 4]), torch.tensor([1.0, 6.95, 7.0]).double(), 7.0)
        2
    """
    reached = torch.nonzero(information >= require_positive("share", share) * total)
    return int(sizes[reached[0, 0]]) if len(reached) else None


def _prepared(exponents: Float64[Tensor, "c n n"], target: Float64[Tensor, "n n"], alpha: float) -> Float64[Tensor, ""]:
    """Entropy of the target, once the exponents are known to be usable."""
    require_order(alpha)
    require_finite(torch.isfinite(exponents).all(), "exponents")
    return renyi_entropy(target, alpha=alpha)


def _pair_entropies(
    exponents: Float64[Tensor, "c n n"],
    pairs: Int[Tensor, "pairs 2"],
    target: Float64[Tensor, "n n"],
    alpha: float,
    widen: bool,
    memory_limit: int,
) -> tuple[Float64[Tensor, " pairs"], Float64[Tensor, " pairs"]]:
    own, joint = [], []
    for chunk in torch.split(pairs.to(exponents.device), _together(exponents, memory_limit)):
        total = exponents[chunk[:, 0]] + exponents[chunk[:, 1]]
        kernels = set_exponents(total, 2, widen=widen).neg_().exp_()
        own.append(kernel_entropy(kernels, alpha=alpha))
        joint.append(kernel_entropy(kernels.mul_(target), alpha=alpha))
    return torch.cat(own), torch.cat(joint)


def _single_entropies(
    exponents: Float64[Tensor, "c n n"], target: Float64[Tensor, "n n"], alpha: float, memory_limit: int
) -> tuple[Float64[Tensor, " c"], Float64[Tensor, " c"]]:
    """S(T_i) and S(X, T_i) of every filter."""
    own, joint = [], []
    for chunk in torch.split(exponents, _together(exponents, memory_limit)):
        kernels = chunk.neg().exp_()
        own.append(kernel_entropy(kernels, alpha=alpha))
        joint.append(kernel_entropy(kernels.mul_(target), alpha=alpha))
    return torch.cat(own), torch.cat(joint)


def _together(exponents: Float64[Tensor, "c n n"], memory_limit: int) -> int:
    n = exponents.shape[-1]
    return max(1, int(require_positive("memory_limit", memory_limit)) // (6 * 8 * n * n))

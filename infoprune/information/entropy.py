"""Matrix-based Rényi α-entropy and the information made of it, in bits.

"Understanding Convolutional Neural Networks with Information Theory: An Initial Exploration", Eqs. (2)–(7).
Every function takes kernel matrices K (any positive diagonal) with any leading batch dimensions, which broadcast.
At α = 1 (the default) mutual and conditional mutual information are never negative; at any other α the paper's
Eq. (5) can go below zero (α = 2 reaches −0.19 bit on seven samples), so those orders are offered for parity (1.01)
and speed (2), with that warning. Eigenvalues are always found in float64, but a float32 kernel has itself an error
of about 1e-4 bit when it is smooth: small gains need float64 kernels.
"""

import math
from functools import reduce

import numpy as np
import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from infoprune.information.spectra import NEAR_ONE, entropy_of_spectrum, spectrum
from infoprune.information.validation import require_finite, require_labels, require_order, require_square

SATURATION_BITS = 0.05
"""A joint entropy closer to log2 n than this says only that all samples differ: nothing is concluded from it."""


def renyi_entropy(gram: Float[Tensor, "*batch n n"], *, alpha: float = 1.0) -> Float[Tensor, "*batch"]:
    """S_α(A) = log2(Σ λ_k(A)^α) / (1 − α) of A_ij = K_ij / (n √(K_ii K_jj)), Eq. (2).

    Args:
        gram: kernel matrices K, symmetric, positive semi-definite, with a positive diagonal.
        alpha: order. 1 is the exact limit −Σ λ log2 λ; 2 takes no eigenvalues, only the mean of the squared entries.

    Returns:
        Bits, from 0 (all samples alike) to log2 n (all different). Falls as α rises.

    Raises:
        ValueError: for NaN or Inf, a diagonal that is not positive, a kernel that is not positive semi-definite,
            or an order that is not positive.

    Example:
        >>> renyi_entropy(torch.eye(8)).item()
        3.0
    """
    require_order(alpha)
    return _entropy(_normalised(gram), alpha).to(gram.dtype)


def joint_entropy(*grams: Float[Tensor, "*#batch n n"], alpha: float = 1.0) -> Float[Tensor, "..."]:
    """Joint entropy of several variables: the entropy of the Hadamard product of their kernels, Eqs. (3) and (7).

    Returns:
        Bits, from the largest of the single entropies to log2 n.

    Raises:
        ValueError: as ``renyi_entropy``, or if no matrix came.

    Example:
        >>> a = torch.tensor([0, 0, 1, 1]); b = torch.tensor([0, 1, 0, 1])
        >>> same = lambda v: (v[:, None] == v[None]).float()
        >>> joint_entropy(same(a), same(b)).item()
        2.0
    """
    if not grams:
        raise ValueError("no Gram matrix came: joint_entropy needs at least one.")
    require_order(alpha)
    dtype = reduce(torch.promote_types, [gram.dtype for gram in grams])
    return _entropy(reduce(torch.mul, [_normalised(gram) for gram in grams]), alpha).to(dtype)


def mutual_information(
    a: Float[Tensor, "*#batch n n"], b: Float[Tensor, "*#batch n n"], *, alpha: float = 1.0
) -> Float[Tensor, "..."]:
    """I(A; B) = S(A) + S(B) − S(A, B), Eq. (5).

    Returns:
        Bits; at most the smaller of the two entropies, and at α = 1 at least 0 (up to round-off). The raw value is
        biased upwards on continuous data: see ``resampling.debiased_mutual_information``.

    Raises:
        ValueError: as ``renyi_entropy``.

    Example:
        >>> gram = torch.eye(4)
        >>> mutual_information(gram, gram).item()
        2.0
    """
    first, second = renyi_entropy(a, alpha=alpha), renyi_entropy(b, alpha=alpha)
    return first + second - joint_entropy(a, b, alpha=alpha)


def conditional_mutual_information(
    a: Float[Tensor, "*#batch n n"],
    b: Float[Tensor, "*#batch n n"],
    given: Float[Tensor, "*#batch n n"],
    *,
    alpha: float = 1.0,
) -> Float[Tensor, "..."]:
    """I(A; B | Z) = S(A, Z) + S(B, Z) − S(A, B, Z) − S(Z), in bits.

    At α = 1 it is never negative (up to round-off) and obeys the chain rule I(A, Z; B) = I(Z; B) + I(A; B | Z).

    Raises:
        ValueError: as ``renyi_entropy``.

    Example:
        >>> same = lambda v: (v[:, None] == v[None]).double()
        >>> a = torch.tensor([0, 0, 1, 1]); b = torch.tensor([0, 1, 0, 1])
        >>> conditional_mutual_information(same(a), same(b), same(a ^ b)).item()  # XOR: 0 alone, 1 bit given both
        1.0
    """
    return (
        joint_entropy(a, given, alpha=alpha)
        + joint_entropy(b, given, alpha=alpha)
        - joint_entropy(a, b, given, alpha=alpha)
        - renyi_entropy(given, alpha=alpha)
    )


def label_joint_entropy(
    grams: Float[Tensor, "*batch n n"], labels: Int[Tensor, " n"], *, alpha: float = 1.0
) -> Float[Tensor, "*batch"]:
    """S(T, Y) with a delta kernel on the labels, by many small eigenproblems in place of a large one.

    K_T ∘ K_Y is block diagonal once samples are sorted by class. Equals ``joint_entropy(grams, gram.delta(labels))``.

    Raises:
        ValueError: as ``renyi_entropy``, or if there is not one integer label per sample.

    Example:
        >>> label_joint_entropy(torch.ones(4, 4), torch.tensor([0, 0, 1, 1])).item()
        1.0
    """
    require_order(alpha)
    kernels = _normalised(grams)
    require_labels(labels, kernels.shape[-1])
    return joint_with_labels(kernels, class_groups(labels.to(kernels.device)), alpha).to(grams.dtype)


def label_mutual_information(
    grams: Float[Tensor, "*batch n n"], labels: Int[Tensor, " n"], *, alpha: float = 1.0
) -> Float[Tensor, "*batch"]:
    """I(T; Y) = S(T) + H_α(Y) − S(T, Y) with a delta kernel on the labels, in bits.

    Raises:
        ValueError: as ``label_joint_entropy``.

    Example:
        >>> label_mutual_information(torch.eye(4), torch.tensor([0, 0, 1, 1])).item()
        1.0
    """
    joint = label_joint_entropy(grams, labels, alpha=alpha)
    return renyi_entropy(grams, alpha=alpha) + label_entropy(labels, alpha=alpha).to(joint) - joint


def label_entropy(labels: Int[Tensor, " n"], *, alpha: float = 1.0) -> Float[Tensor, ""]:
    """Classical Rényi entropy of the class proportions, in bits, float64: what a delta kernel gives.

    Raises:
        ValueError: if the labels are empty or not integers.

    Example:
        >>> label_entropy(torch.tensor([0, 0, 1, 2])).item()
        1.5
    """
    require_order(alpha)
    require_labels(labels, max(1, labels.numel()))
    counts = np.unique(labels.cpu().numpy(), return_counts=True)[1]
    return entropy_of_spectrum(torch.from_numpy(counts / labels.numel()), alpha)


def saturation_margin(entropy: Float[Tensor, "*batch"], samples: int) -> Float[Tensor, "*batch"]:
    """log2 n − S: how far an entropy is from its ceiling, in bits.

    Below ``SATURATION_BITS`` the estimate has run out of room: mark it, conclude nothing from it, and take a wider
    kernel, more samples, or fewer variables at once.

    Example:
        >>> saturation_margin(torch.tensor([7.0, 4.0]), 128)
        tensor([0., 3.])
    """
    if samples < 1:
        raise ValueError(f"{samples} samples: expected at least one.")
    return math.log2(samples) - entropy


def class_groups(labels: Int[Tensor, " n"]) -> list[Int[Tensor, "_ _"]]:
    """Sample indices of each class, classes of equal size stacked, so that each size is one batched problem."""
    _, classes, counts = np.unique(labels.cpu().numpy(), return_inverse=True, return_counts=True)
    members = np.split(np.argsort(classes, kind="stable"), np.cumsum(counts)[:-1])
    stacks = [np.stack([m for m in members if len(m) == size]) for size in np.unique(counts)]
    return [torch.from_numpy(stack).to(labels.device) for stack in stacks]


def joint_with_labels(
    kernels: Float64[Tensor, "*batch n n"],
    groups: list[Int[Tensor, "_ _"]],
    alpha: float,
    *,
    threads: bool = True,
) -> Float64[Tensor, "*batch"]:
    """S(T, Y) of unit-diagonal kernels, the samples of each class given by ``class_groups``. Nothing is checked."""
    n = kernels.shape[-1]
    blocks = [kernels[..., group[:, :, None], group[:, None, :]] for group in groups]
    if alpha == 2:
        total = torch.stack([block.square().sum((-3, -2, -1)) for block in blocks]).sum(0)
        return 2 * math.log2(n) - torch.log2(total)
    # a sample alone in its class is its own eigenvalue: with many classes that is nearly all of them
    spectra = [b[..., 0, 0] if b.shape[-1] == 1 else spectrum(b, threads=threads).flatten(-2) for b in blocks]
    return entropy_of_spectrum(torch.cat(spectra, -1) / n, alpha)


def _normalised(gram: Float[Tensor, "*batch n n"]) -> Float64[Tensor, "*batch n n"]:
    """K_ij / √(K_ii K_jj), symmetrised, in float64; raises ValueError for what has no entropy."""
    require_square(tuple(gram.shape), "a Gram matrix")
    require_finite(torch.isfinite(gram).all(), "Gram matrices")
    diagonal = gram.diagonal(dim1=-2, dim2=-1)
    if not bool((diagonal > 0).all()):
        raise ValueError(
            "a Gram matrix has a diagonal entry that is not positive: a linear kernel of an all-zero sample does; "
            "use gram.rbf, or add a constant feature."
        )
    scale = diagonal.double().rsqrt()
    return (gram.double() + gram.mT) / 2 * scale[..., :, None] * scale[..., None, :]


def _entropy(kernels: Float64[Tensor, "*batch n n"], alpha: float) -> Float64[Tensor, "*batch"]:
    n = kernels.shape[-1]
    if abs(alpha - 1) >= NEAR_ONE and alpha == 2:
        return -torch.log2(kernels.square().mean((-2, -1)))
    return entropy_of_spectrum(spectrum(kernels / n), alpha)

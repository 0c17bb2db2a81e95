"""From spectra to entropies: eigenvalues of batches of Gram matrices, on the cores of a CPU or on a GPU."""

import math

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from infoprune.information.threads import core_count, over_cores
from infoprune.information.tridiagonal import tridiagonalise, xlogx_of_tridiagonal
from infoprune.information.validation import require_order

NEAR_ONE = 1e-8
"""Orders this close to 1 are computed as Shannon's limit: 1/(1 − α) would blow the round-off up by 1e8."""
_NEGATIVE = -1e-4  # relative to the trace; round-off of float32 kernels stays above −1e-5
_LARGE = 512  # from here on one matrix is worth all cores


def spectrum(matrices: Float[Tensor, "*batch n n"], *, threads: bool = True) -> Float64[Tensor, "*batch n"]:
    """Eigenvalues in ascending order, in float64 whatever came.

    On CPU the matrices are shared out over the cores, since torch solves a CPU batch one after another; ``threads``
    is False where the caller has shared out the work already.
    """
    if not matrices.is_cuda and not threads:
        return torch.from_numpy(np.linalg.eigvalsh(matrices.detach().double().numpy()))
    if matrices.is_cuda or matrices.shape[-1] >= _LARGE:
        found: Tensor = torch.linalg.eigvalsh(matrices.double())
        return found
    flat = matrices.detach().reshape(-1, *matrices.shape[-2:]).double().numpy()
    parts = over_cores(np.linalg.eigvalsh, np.array_split(flat, max(1, min(len(flat), 2 * core_count()))))
    return torch.from_numpy(np.concatenate(parts)).reshape(matrices.shape[:-1])


def entropy_of_spectrum(eigenvalues: Float[Tensor, "*batch n"], alpha: float) -> Float[Tensor, "*batch"]:
    """S_α = log2(Σ λ^α) / (1 − α), and −Σ λ log2 λ at α = 1, in bits.

    Eigenvalues that are negative or below the solver's round-off are set to 0 and the rest rescaled to sum 1.

    Raises:
        ValueError: if an eigenvalue is clearly negative, so that the matrix is no kernel's Gram matrix.
    """
    require_order(alpha)
    if eigenvalues.numel() and float(eigenvalues.min()) < _NEGATIVE:
        raise ValueError(
            f"a Gram matrix has the eigenvalue {float(eigenvalues.min()):.3g} at trace 1: expected none below 0; "
            "use a positive semi-definite kernel (gram.rbf, gram.delta, gram.linear)."
        )
    # what a solver cannot tell from 0 is 0: below α = 1 a hundred such remnants would add up
    remnant = eigenvalues.shape[-1] * torch.finfo(eigenvalues.dtype).eps * eigenvalues.amax(-1, keepdim=True)
    positive = torch.where(eigenvalues > remnant, eigenvalues, 0.0)
    positive = positive / positive.sum(-1, keepdim=True)
    if abs(alpha - 1) < NEAR_ONE:
        return (0 - torch.xlogy(positive, positive).sum(-1)) / math.log(2)  # 0 − 0 has no sign, −0 has
    return torch.log2(positive.pow(alpha).sum(-1)) / (1 - alpha)


def kernel_entropy(
    kernels: Float64[Tensor, "b n n"], *, alpha: float = 1.0, threads: bool = True
) -> Float64[Tensor, " b"]:
    """Entropies, in bits, of many unit-diagonal kernel matrices, by the fastest sound route.

    α = 1 on CPU: tridiagonal form and a rational approximation, off by less than n·1e-10 bit. α = 2: the mean of
    the squared entries, no spectrum. Anything else: eigenvalues. Use ``entropy.renyi_entropy`` for the exact value.

    Example:
        >>> kernel_entropy(torch.eye(4, dtype=torch.float64)[None]).round(decimals=6)
        tensor([2.], dtype=torch.float64)
    """
    require_order(alpha)
    n = kernels.shape[-1]
    if alpha == 2:
        return -torch.log2(kernels.square().mean((-2, -1)))
    if kernels.is_cuda or abs(alpha - 1) >= NEAR_ONE or n >= _LARGE:
        return entropy_of_spectrum(spectrum(kernels / n, threads=threads), alpha)
    if not threads:
        return torch.from_numpy(shannon_entropy(kernels.detach().numpy()))
    # four parts a core even out threads that the system delays
    parts = np.array_split(kernels.detach().numpy(), min(4 * core_count(), max(1, len(kernels))))
    return torch.from_numpy(np.concatenate(over_cores(shannon_entropy, parts)))


def shannon_entropy(kernels: Float64[np.ndarray, "b n n"]) -> Float64[np.ndarray, " b"]:
    """−tr(A log2 A) of A = K/n for unit-diagonal kernel matrices K, in the calling thread."""
    diagonal, below = tridiagonalise(np.array(kernels / kernels.shape[-1], order="C"))
    return np.asarray(np.maximum(-xlogx_of_tridiagonal(diagonal, below), 0))

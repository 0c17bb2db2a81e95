"""Entropy of one large Gram matrix (n ≥ 2000) without its spectrum, by name, each route with its error.

``exact`` costs (4/3) n³ operations, mostly at memory speed. ``stochastic`` costs probes × steps products of the
matrix with a vector (Gong et al., arXiv:2112.13720; Dong et al., arXiv:2205.07426). ``low_rank`` costs n r² for a
kernel whose spectrum falls fast (wide kernels, few dimensions), and its error is a bound, not an estimate.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from infoprune.information.entropy import renyi_entropy
from infoprune.information.spectra import NEAR_ONE, entropy_of_spectrum
from infoprune.information.validation import require_choice, require_finite, require_order, require_square

METHODS = ("exact", "stochastic", "low_rank")
"""Names for ``estimate_entropy``."""


class EntropyEstimate(NamedTuple):
    """An entropy in bits with its stated error."""

    value: float
    error: float
    """``exact``: 0. ``stochastic``: one standard error over the probes. ``low_rank``: an upper bound."""
    method: str


def estimate_entropy(
    gram: Float[Tensor, "n n"],
    *,
    method: str = "exact",
    alpha: float = 1.0,
    probes: int = 30,
    steps: int = 40,
    tolerance: float = 1e-6,
    generator: torch.Generator | None = None,
) -> EntropyEstimate:
    """S_α of one kernel matrix by the route of that name.

    Args:
        gram: symmetric positive semi-definite, positive diagonal.
        method: "exact", "stochastic" or "low_rank".
        probes: random vectors of ``stochastic``, at least 2.
        steps: Lanczos steps of ``stochastic`` per probe; 40 leave its own error far below the probes'.
        tolerance: share of the trace that ``low_rank`` may leave out.
        generator: a seeded CPU generator makes ``stochastic`` reproducible.

    Raises:
        ValueError: for an unknown method, an option out of range, NaN or Inf, or a diagonal that is not positive.

    Example:
        >>> estimate_entropy(torch.ones(64, 64), method="low_rank").value
        0.0
    """
    require_choice("entropy method", method, METHODS)
    require_order(alpha)
    if method == "exact":
        return EntropyEstimate(float(renyi_entropy(gram, alpha=alpha)), 0.0, method)
    n = require_square(tuple(gram.shape), "a Gram matrix")
    diagonal = gram.diagonal().double()
    require_finite(torch.isfinite(gram).all() & (diagonal > 0).all(), "Gram matrices, or reciprocals of a diagonal,")
    scale = diagonal.rsqrt()
    matrix = gram.double() * scale[:, None] * (scale / n)
    if method == "low_rank":
        return _low_rank(matrix, alpha, tolerance)
    return _stochastic(matrix, alpha, probes, min(steps, n), generator)


def pivoted_cholesky(matrix: Float64[Tensor, "n n"], tolerance: float) -> tuple[Float64[Tensor, "n r"], float]:
    """L with A ≈ L Lᵀ to a share ``tolerance`` of the trace, and the share left out; A − L Lᵀ ⪰ 0.

    Raises:
        ValueError: for a tolerance outside (0, 1).
    """
    if not 0 < tolerance < 1:
        raise ValueError(f"tolerance = {tolerance}: expected a share of the trace between 0 and 1, such as 1e-6.")
    n = len(matrix)
    left = matrix.diagonal().clone()
    whole = float(left.sum())
    factor = matrix.new_zeros(n, min(n, 64))
    rank = 0
    while rank < n and float(left.sum()) > tolerance * whole:
        pivot = int(left.argmax())
        if rank == factor.shape[1]:
            factor = torch.cat([factor, matrix.new_zeros(n, min(n - rank, rank))], 1)
        column = matrix[:, pivot] - factor[:, :rank] @ factor[pivot, :rank]
        factor[:, rank] = column / left[pivot].sqrt()
        left = (left - factor[:, rank].square()).clamp_min_(0)
        left[pivot] = 0
        rank += 1
    return factor[:, :rank], float(left.sum()) / whole


def _low_rank(matrix: Float64[Tensor, "n n"], alpha: float, tolerance: float) -> EntropyEstimate:
    """Entropy of the pivoted Cholesky factor, with a bound on what the rest could change.

    With a share τ of the trace left out, the eigenvalues satisfy λ ≥ μ ≥ 0 and Σ (λ − μ) = τ. At α = 1, rescaling
    the rest to trace 1 is a trace distance of at most τ, and the Fannes–Audenaert inequality bounds the entropy.
    """
    factor, tau = pivoted_cholesky(matrix, tolerance)
    n = len(factor)
    spectrum = torch.linalg.eigvalsh(factor.mT @ factor).clamp_min(0)
    if abs(alpha - 1) < NEAR_ONE:
        value = float(entropy_of_spectrum(spectrum / spectrum.sum(), 1.0))
        binary = -tau * math.log2(tau) - (1 - tau) * math.log2(1 - tau) if tau > 0 else 0.0
        return EntropyEstimate(value, tau * math.log2(max(n - 1, 1)) + binary, "low_rank")
    power = float(spectrum.pow(alpha).sum())
    # Σ λ^α − Σ μ^α: at most α τ for α > 1 (slope ≤ α), at most n^(1−α) τ^α below 1 (concavity)
    missing = alpha * tau if alpha > 1 else n ** (1 - alpha) * tau**alpha
    value = math.log2(power) / (1 - alpha)
    return EntropyEstimate(value, abs(math.log2(power + missing) / (1 - alpha) - value), "low_rank")


def _stochastic(
    matrix: Float64[Tensor, "n n"], alpha: float, probes: int, steps: int, generator: torch.Generator | None
) -> EntropyEstimate:
    """Stochastic Lanczos quadrature of tr f(A), with tr A = 1 and tr A² as control variates.

    The probes see f(A), A and A² alike, and the last two traces are known exactly, so what a probe errs on them
    corrects what it errs on f. At α = 1, f = −λ log2 λ directly: (log2 Σ λ^α)/(1 − α) near α = 1 multiplies the
    trace's error a hundredfold.
    """
    if probes < 2 or steps < 2:
        raise ValueError(f"probes = {probes}, steps = {steps}: expected at least 2 of each.")
    n = len(matrix)
    signs = torch.randint(0, 2, (probes, n), generator=generator).double() * 2 - 1
    ritz, weights = _lanczos(matrix, signs.to(matrix.device), steps)
    ritz, weights = ritz.clamp_min(0), n * weights
    shannon = abs(alpha - 1) < NEAR_ONE
    wanted = -torch.xlogy(ritz, ritz) / math.log(2) if shannon else ritz.pow(alpha)
    known = torch.stack([ritz, ritz.square()], -1)
    exact = torch.stack([matrix.trace(), matrix.square().sum()])
    # the best multiples of A and A² to take off: least squares over the probes' own nodes
    root = weights.flatten().sqrt()[:, None]
    control = torch.linalg.lstsq(root * known.flatten(0, 1), root * wanted.flatten()[:, None]).solution[:, 0]
    traces = ((wanted - known @ control) * weights).sum(-1) + exact @ control
    value, error = float(traces.mean()), float(traces.std()) / math.sqrt(probes)
    if shannon:
        return EntropyEstimate(value, error, "stochastic")
    return EntropyEstimate(math.log2(value) / (1 - alpha), error / (value * math.log(2) * abs(1 - alpha)), "stochastic")


def _lanczos(
    matrix: Float64[Tensor, "n n"], start: Float64[Tensor, "p n"], steps: int
) -> tuple[Float64[Tensor, "p k"], Float64[Tensor, "p k"]]:
    """Gauss nodes and weights (summing to 1) of each start vector's spectral measure."""
    count, n = start.shape
    basis = start.new_zeros(count, steps + 1, n)
    basis[:, 0] = start / start.norm(dim=1, keepdim=True)
    diagonal, beside = start.new_zeros(count, steps), start.new_zeros(count, steps)
    for k in range(steps):
        following = basis[:, k] @ matrix  # symmetric
        diagonal[:, k] = (following * basis[:, k]).sum(1)
        known = basis[:, : k + 1]
        for _ in range(2):  # twice is enough: full re-orthogonalisation keeps ghost copies of λ_1 out
            overlap = known @ following[..., None]
            following = following - (overlap.mT @ known)[:, 0]
        beside[:, k] = following.norm(dim=1)
        # an exhausted space leaves round-off: stop it from being blown up to a new direction
        live = beside[:, k, None] > 1e-13
        basis[:, k + 1] = torch.where(live, following / beside[:, k, None].clamp_min(1e-300), 0.0)
        beside[:, k] *= live[:, 0]
    tridiagonal = torch.diag_embed(diagonal)
    off = beside[:, :-1]
    tridiagonal += torch.diag_embed(off, 1) + torch.diag_embed(off, -1)
    nodes, vectors = torch.linalg.eigh(tridiagonal)
    return nodes, vectors[:, 0].square()

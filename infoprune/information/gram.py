"""Pairwise distances and Gram matrices: how alike the samples of a mini-batch look to one variable."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from infoprune.information.validation import require_finite, require_labels, require_positive, require_samples
from infoprune.information.widths import RULES, alignment, best_multiple, kernel_width

__all__ = [
    "RULES",
    "MapDistances",
    "alignment",
    "best_multiple",
    "delta",
    "delta_distances",
    "filter_distances",
    "filter_exponents",
    "filter_grams",
    "kernel_width",
    "linear",
    "rbf",
    "set_exponents",
    "squared_distances",
]

DEFAULT_MEMORY = 512 * 2**20
"""Bytes of working memory that a chunk may take beside its input and output."""
ROUNDING = 2
"""A map whose deviation is below this many units of rounding of its mean does not vary."""
APART = 1e12
"""The exponent D/2σ² that stands for "different" where a variable is discrete: exp(−APART/C) is 0 for any C."""


class MapDistances(NamedTuple):
    """What the kernels of one layer's filters are made of."""

    squared: Float[Tensor, "c n n"]
    variance: Float[Tensor, " c"]
    dimension: int


def squared_distances(
    x: Float[Tensor, "*batch n d"], *, memory_limit: int = DEFAULT_MEMORY
) -> Float[Tensor, "*batch n n"]:
    """Squared Euclidean distances ‖x_i − x_j‖² between the n samples of each variable.

    Args:
        x: samples, any leading batch dimensions; half precision is raised to float32.
        memory_limit: bytes of working memory; batches, and then dimensions, are taken in chunks to stay below.

    Returns:
        Non-negative, symmetric, zero on the diagonal, in the dtype of ``x``.

    Raises:
        ValueError: for fewer than two samples, an empty variable, or NaN or Inf.

    Example:
        >>> squared_distances(torch.tensor([[0.0, 0.0], [3.0, 4.0]]))
        tensor([[ 0., 25.],
                [25.,  0.]])
    """
    n, d = require_samples(x.shape[-2]), x.shape[-1]
    if d == 0 or x.shape[:-2].numel() == 0:
        raise ValueError(f"an empty tensor of shape {tuple(x.shape)} came: expected (..., n, d) with d >= 1.")
    require_positive("memory_limit", memory_limit)
    dtype = torch.promote_types(x.dtype, torch.float32)
    variables = x.reshape(-1, n, d)
    size = torch.finfo(dtype).bits // 8
    found = torch.empty(len(variables), n, n, dtype=dtype, device=x.device)
    together = max(1, memory_limit // (size * (n * d + 3 * n * n)))
    width = d if together > 1 else max(1, min(d, memory_limit // (size * n) - 3 * n))
    for start in range(0, len(variables), together):
        chunk = variables[start : start + together]
        inner = sum(_centred_gram(chunk[..., at : at + width].to(dtype)) for at in range(0, d, width))
        found[start : start + together] = _distances_of_gram(torch.as_tensor(inner))
    return found.reshape(*x.shape[:-2], n, n)


def _centred_gram(x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n n"]:
    # a shift changes no distance, and small norms lose fewer digits in ‖x‖² + ‖y‖² − 2⟨x, y⟩
    x = x - x.mean(-2, keepdim=True)
    return x @ x.mT


def _distances_of_gram(inner: Float[Tensor, "b n n"]) -> Float[Tensor, "b n n"]:
    norms = inner.diagonal(dim1=-2, dim2=-1)
    require_finite(torch.isfinite(norms).all(), "samples")
    found = norms[..., :, None] + norms[..., None, :] - (inner + inner.mT)
    found = found.clamp_min_(0)
    found.diagonal(dim1=-2, dim2=-1).zero_()
    return found


def rbf(distances: Float[Tensor, "*batch n n"], sigma: Float[Tensor, "*batch"] | float) -> Float[Tensor, "*batch n n"]:
    """Radial basis function kernel exp(−‖x − x'‖² / 2σ²) from squared distances ("Understanding CNNs…", Sec. III).

    Raises:
        ValueError: if a width is not positive and finite.

    Example:
        >>> rbf(torch.tensor([[0.0, 2.0], [2.0, 0.0]]), 1.0)[0, 1].item()  # exp(−1)
        0.3678...
    """
    width = torch.as_tensor(sigma, dtype=distances.dtype, device=distances.device)
    if not bool((torch.isfinite(width) & (width > 0)).all()):
        raise ValueError("a kernel width is not positive and finite; take one from gram.kernel_width.")
    return torch.exp(-distances / (2 * width.square())[..., None, None])


def delta(labels: Int[Tensor, "*batch n"], *, dtype: torch.dtype = torch.float64) -> Float[Tensor, "*batch n n"]:
    """Delta kernel: 1 where two samples have the same label, else 0.

    With delta kernels and α = 1 every quantity here equals plug-in Shannon information.

    Example:
        >>> delta(torch.tensor([0, 1, 0]), dtype=torch.float32)
        tensor([[1., 0., 1.],
                [0., 1., 0.],
                [1., 0., 1.]])
    """
    return (labels[..., :, None] == labels[..., None, :]).to(dtype)


def delta_distances(values: Int[Tensor, "*batch n"]) -> Float[Tensor, "*batch n n"]:
    """Exponents D/2σ² of a discrete variable: exp(−exponent) is its delta kernel, alone and in any set."""
    return (1 - delta(values)) * APART


def linear(x: Float[Tensor, "*batch n d"]) -> Float[Tensor, "*batch n n"]:
    """Linear kernel ⟨x, x'⟩. It is not infinitely divisible, so joint entropies of it carry no guarantee.

    Example:
        >>> linear(torch.tensor([[1.0, 0.0], [1.0, 1.0]]))
        tensor([[1., 1.],
                [1., 2.]])
    """
    require_finite(torch.isfinite(x).all(), "samples")
    return x @ x.mT


def filter_distances(
    maps: Float[Tensor, "n c *space"], *, memory_limit: int = DEFAULT_MEMORY, dtype: torch.dtype = torch.float64
) -> MapDistances:
    """Squared distances between the samples' feature maps, for every filter of one layer.

    Each filter is one variable. It is standardised as a whole, by one mean and one deviation over samples and
    pixels, and not pixel by pixel: per-pixel scaling would raise a border pixel that hardly ever fires to the
    weight of all others. The distances here are raw; dividing by ``variance`` standardises them, which makes the
    Gram matrix blind to the per-channel scale and shift of a batch norm.

    Returns:
        ``squared`` (c, n, n); ``variance`` (c), 0 where a map is constant to the rounding of its own dtype, its
        distances then being 0 as well; ``dimension`` d = H·W.

    Raises:
        ValueError: for fewer than two samples, no filter, or NaN or Inf.
    """
    n, c = maps.shape[:2]
    require_samples(n)
    if maps.numel() == 0:
        raise ValueError(f"empty maps of shape {tuple(maps.shape)} came: expected (n, c, ...) without zeros.")
    d = maps[0, 0].numel()
    size = torch.finfo(dtype).bits // 8
    step = max(1, memory_limit // (size * (2 * n * d + 3 * n * n)))
    squared = torch.empty(c, n, n, dtype=dtype, device=maps.device)
    variance = torch.empty(c, dtype=dtype, device=maps.device)
    for start in range(0, c, step):
        chunk = maps[:, start : start + step].reshape(n, -1, d).transpose(0, 1).to(dtype)
        spread, mean = torch.var_mean(chunk, (1, 2), correction=0)
        # a "constant" map still differs by rounding, and standardising would blow that up to a signal
        dead = spread.sqrt() <= ROUNDING * torch.finfo(maps.dtype).eps * mean.abs()
        squared[start : start + step] = squared_distances(chunk, memory_limit=memory_limit) * ~dead[:, None, None]
        variance[start : start + step] = spread * ~dead
    return MapDistances(squared, variance, d)


def filter_exponents(
    maps: Float[Tensor, "n c *space"],
    *,
    rule: str = "standardized",
    gamma: float = 1.0,
    h: float = 5.0,
    share: float = 0.15,
    labels: Int[Tensor, " n"] | None = None,
    memory_limit: int = DEFAULT_MEMORY,
) -> Float[Tensor, "c n n"]:
    """D/2σ² of every filter, so that its kernel is exp(−exponent); sets of filters add these, not matrices.

    Arguments and errors as in ``filter_grams``.
    """
    if labels is not None:
        require_labels(labels, maps.shape[0])
    squared, variance, d = filter_distances(maps, memory_limit=memory_limit)
    options = {"gamma": gamma, "h": h, "share": share}
    sigma = kernel_width(squared, rule=rule, dimension=d, variance=variance, labels=labels, **options)
    return squared.div_((2 * sigma.square())[:, None, None])


def filter_grams(
    maps: Float[Tensor, "n c *space"],
    *,
    rule: str = "standardized",
    gamma: float = 1.0,
    h: float = 5.0,
    share: float = 0.15,
    labels: Int[Tensor, " n"] | None = None,
    memory_limit: int = DEFAULT_MEMORY,
) -> Float[Tensor, "c n n"]:
    """Unit-diagonal RBF kernel matrices of every filter of one layer, in float64.

    Args:
        maps: activations, samples × filters × space (height and width, any shape, or nothing).
        rule: kernel-width rule, see ``kernel_width``; its parameters are ``gamma``, ``h``, ``share``, ``labels``.
        memory_limit: bytes of working memory beside the result.

    Raises:
        ValueError: for fewer than two samples, no filter, NaN or Inf, or a rule that is not known.

    Example:
        >>> filter_grams(torch.zeros(4, 1, 2, 2)).sum().item()  # a dead filter: all samples alike
        16.0
    """
    exponents = filter_exponents(
        maps, rule=rule, gamma=gamma, h=h, share=share, labels=labels, memory_limit=memory_limit
    )
    return exponents.neg_().exp_()


def set_exponents(
    total: Float[Tensor, "*batch n n"], count: int | Float[Tensor, "*batch"], *, widen: bool = True
) -> Float[Tensor, "*batch n n"]:
    """Exponent of a set of ``count`` variables from the sum of theirs.

    A product of RBF kernels is the RBF kernel of the concatenated variables at the same σ: its off-diagonal decays
    as exp(−C·…) and the entropy runs into log2 n. ``widen`` gives the set the width σ·√C instead, which is the
    mean of the exponents; without it this is the paper's plain product, Eq. (7).
    """
    if not widen:
        return total
    return total / torch.as_tensor(count, dtype=total.dtype, device=total.device)[..., None, None]

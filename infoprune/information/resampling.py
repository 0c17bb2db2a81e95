"""What chance alone would give: permutation-debiased information, permutation p-values, intervals."""

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Float64
from scipy import special
from torch import Tensor

from infoprune.information.entropy import joint_entropy, mutual_information
from infoprune.information.gram import DEFAULT_MEMORY
from infoprune.information.validation import require_samples


class DebiasedInformation(NamedTuple):
    """Mutual information beside what independent variables with the same kernels would show, in bits."""

    raw: Float[Tensor, "..."]
    bias: Float[Tensor, "..."]
    """Mean over permutations of the samples of one variable."""
    debiased: Float[Tensor, "..."]
    """raw − bias. Near 0 for independent variables; may be slightly negative."""
    error: Float[Tensor, "..."]
    """Standard deviation over the permutations: differences of this size are chance."""


class Interval(NamedTuple):
    """A mean over mini-batches with its confidence interval; the bounds are NaN for a single mini-batch."""

    mean: Float64[Tensor, "..."]
    low: Float64[Tensor, "..."]
    high: Float64[Tensor, "..."]


def debiased_mutual_information(
    a: Float[Tensor, "*#batch n n"],
    b: Float[Tensor, "*#batch n n"],
    *,
    permutations: int = 20,
    generator: torch.Generator | None = None,
    alpha: float = 1.0,
    memory_limit: int = DEFAULT_MEMORY,
) -> DebiasedInformation:
    """I(A; B) minus its mean when the samples of B are permuted.

    The raw estimate of independent 5-dimensional Gaussians is 4 bits at n = 512; this one is about 0. Only the joint
    entropy changes under a permutation, so each costs one eigenproblem per pair. All pairs of a batch share the
    permutations, which keeps differences between them comparable.

    Args:
        a, b: kernel matrices, batch dimensions broadcast.
        permutations: P ≥ 2.
        generator: a seeded CPU generator makes the result reproducible.

    Raises:
        ValueError: as ``entropy.renyi_entropy``, or for fewer than two permutations.

    Example:
        >>> found = debiased_mutual_information(torch.eye(8), torch.eye(8))
        >>> found.raw.item(), found.debiased.item()  # nothing but saturation: no information
        (3.0, 0.0)
    """
    if permutations < 2:
        raise ValueError(f"permutations = {permutations}: expected at least 2 for a mean and its error.")
    raw = mutual_information(a, b, alpha=alpha)
    joint = joint_entropy(a, b, alpha=alpha)
    n = b.shape[-1]
    orders = torch.stack([torch.randperm(n, generator=generator) for _ in range(permutations)]).to(b.device)
    step = max(1, memory_limit // (3 * 8 * n * n * max(1, raw.numel())))
    shuffled = []
    for chunk in torch.split(orders, step):
        moved = torch.stack([b[..., order[:, None], order[None]] for order in chunk])
        padded = moved.reshape(len(chunk), *(1,) * (raw.ndim - b.ndim + 2), *b.shape)
        shuffled.append(joint_entropy(a, padded, alpha=alpha))
    by_chance = raw + joint - torch.cat(shuffled)
    bias = by_chance.mean(0)
    return DebiasedInformation(raw, bias, raw - bias, by_chance.std(0))


def permutation_p_value(
    evidence: Bool[Tensor, " permutations *batch"], ties: Bool[Tensor, " permutations *batch"] | None = None
) -> Float64[Tensor, "*batch"]:
    """p-value with the +1 correction: (1 + #{permuted at least as extreme}) / (1 + #{permutations that decide}).

    Ties are never evidence, for or against: they leave the numerator and the denominator. If all permutations tie
    nothing has been tested and p = 1. Never 0: the observed arrangement is one of the possible ones.

    Args:
        evidence: where a permuted statistic is at least as extreme as the observed one.
        ties: where the two are equal up to round-off.

    Example:
        >>> permutation_p_value(torch.tensor([True, False, False])).item()
        0.5
    """
    decided = torch.ones_like(evidence) if ties is None else ~ties
    return (1 + (evidence & decided).sum(0).double()) / (1 + decided.sum(0).double())


def batch_interval(values: Float[Tensor, " batches *shape"], *, level: float = 0.95) -> Interval:
    """Student-t interval of the mean over mini-batches.

    Raises:
        ValueError: for no mini-batch or a level outside (0, 1).

    Example:
        >>> batch_interval(torch.tensor([1.0, 2.0, 3.0])).low.item()
        -0.4841...
    """
    values, count = _checked(values, level)
    mean = values.mean(0)
    if count < 2:
        return Interval(mean, torch.full_like(mean, torch.nan), torch.full_like(mean, torch.nan))
    half = float(special.stdtrit(count - 1, (1 + level) / 2)) / math.sqrt(count) * values.std(0)
    return Interval(mean, mean - half, mean + half)


def bootstrap_interval(
    values: Float[Tensor, " batches *shape"],
    *,
    level: float = 0.95,
    resamples: int = 2000,
    generator: torch.Generator | None = None,
) -> Interval:
    """Percentile bootstrap interval of the mean over mini-batches; makes no assumption about their distribution.

    Args:
        values: one row per mini-batch. Resample mini-batches, never samples inside one: repeated samples are
            exact duplicates, which lower a matrix-based entropy.
        generator: a seeded CPU generator makes the result reproducible.

    Raises:
        ValueError: for no mini-batch, a level outside (0, 1) or no resample.

    Example:
        >>> found = bootstrap_interval(torch.ones(5))
        >>> found.low.item(), found.high.item()
        (1.0, 1.0)
    """
    values, count = _checked(values, level)
    if resamples < 1:
        raise ValueError(f"resamples = {resamples}: expected at least one.")
    mean = values.mean(0)
    if count < 2:
        return Interval(mean, torch.full_like(mean, torch.nan), torch.full_like(mean, torch.nan))
    drawn = torch.randint(count, (resamples, count), generator=generator)
    weights = torch.zeros(resamples, count, dtype=torch.float64).scatter_add_(
        1, drawn, torch.full(drawn.shape, 1 / count, dtype=torch.float64)
    )
    means = (weights.to(values.device) @ values.reshape(count, -1)).reshape(resamples, *values.shape[1:])
    bounds = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64, device=values.device)
    low, high = torch.quantile(means, bounds, dim=0)
    return Interval(mean, low, high)


def _checked(values: Float[Tensor, " batches *shape"], level: float) -> tuple[Float64[Tensor, " batches *shape"], int]:
    count = require_samples(len(values), least=1)
    if not 0 < level < 1:
        raise ValueError(f"level = {level}: expected a confidence level between 0 and 1, such as 0.95.")
    return values.double(), count

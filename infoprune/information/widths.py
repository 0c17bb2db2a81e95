"""Rules for the width σ of the RBF kernel κ = exp(−‖x − x'‖² / 2σ²), chosen by name."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from infoprune.information.validation import require_choice, require_labels, require_positive, require_samples

RULES = ("standardized", "silverman", "distance_share", "label_alignment")
"""Names of the kernel-width rules; the first is the default."""
GRID = tuple(10 ** (-1 + 2 * step / 39) for step in range(40))
"""Multiples of the mean distance that ``label_alignment`` tries: 0.1 to 10, evenly in the logarithm."""


def kernel_width(
    distances: Float[Tensor, "*batch n n"],
    *,
    rule: str = "standardized",
    dimension: int = 1,
    variance: Float[Tensor, "*batch"] | None = None,
    gamma: float = 1.0,
    h: float = 5.0,
    share: float = 0.15,
    labels: Int[Tensor, " n"] | None = None,
) -> Float[Tensor, "*batch"]:
    """Width σ of one variable's RBF kernel, in the units of its distances.

    * ``standardized`` (default): σ = s·γ·√d·n^(−1/(4+d)) with s the variable's standard deviation, which is the
      same as standardising the variable first (Tapia & Estévez 2020). It does not saturate as d grows.
    * ``silverman``: σ = h·n^(−1/(4+d)), h = 5 for activations and 0.1 for errors, as in "Understanding CNNs with
      Information Theory", Sec. III. At d = 196 it saturates with a single filter; it is here for parity.
    * ``distance_share``: a share (the paper, Sec. IV: 0.1 to 0.2) of the median pairwise distance.
    * ``label_alignment``: the multiple of the mean distance, 0.1 to 10, that maximises the alignment
      ⟨K, K_Y⟩ / (‖K‖ ‖K_Y‖) with the label kernel (Wickstrøm et al. 2019). One multiple is shared by the whole
      batch of variables, which is how a layer gets one choice.

    Args:
        distances: squared pairwise distances, as ``gram.squared_distances`` gives them.
        rule: one of ``RULES``.
        dimension: d, the length of one sample of the variable.
        variance: s² of each variable over samples and entries; 1 (already standardised) if absent.
        gamma: γ of ``standardized``.
        h: h of ``silverman``.
        share: share of ``distance_share``, in (0, ∞).
        labels: classes, for ``label_alignment``.

    Returns:
        σ > 0. Where a variable does not vary (all distances 0) any σ gives the same Gram matrix, and it is 1.

    Raises:
        ValueError: for an unknown rule, a parameter out of range, or missing labels.

    Example:
        >>> kernel_width(torch.zeros(128, 128), rule="silverman", dimension=1).item()  # 5·128^(−1/5)
        1.8946...
    """
    require_choice("kernel-width rule", rule, RULES)
    n = require_samples(distances.shape[-1])
    batch = distances.shape[:-2]
    if rule == "distance_share":
        median = _median_distance(distances)
        return torch.mul(median, require_positive("share", share))
    if rule == "label_alignment":
        if labels is None:
            raise ValueError("rule 'label_alignment' came without labels: pass labels=…, one class per sample.")
        mean = _one_where_zero(distances.sqrt().sum((-2, -1)) / (n * (n - 1)))
        return mean * torch.tensor(best_multiple(alignment(distances, labels)), dtype=mean.dtype)
    narrowing: float = n ** (-1 / (4 + require_positive("dimension", dimension)))
    if rule == "silverman":
        return distances.new_full(batch, require_positive("h", h) * narrowing)
    spread = distances.new_ones(batch) if variance is None else _one_where_zero(variance.sqrt())
    return torch.mul(spread, require_positive("gamma", gamma) * dimension**0.5 * narrowing)


def alignment(distances: Float[Tensor, "*batch n n"], labels: Int[Tensor, " n"]) -> Float[Tensor, "grid ..."]:
    """Alignment with the label kernel at every multiple of ``GRID`` of the mean distance, in [0, 1]."""
    n = distances.shape[-1]
    classes = require_labels(labels, n).to(distances.device)
    target = (classes[:, None] == classes[None]).to(distances.dtype)
    mean = _one_where_zero(distances.sqrt().sum((-2, -1)) / (n * (n - 1)))
    scaled = distances / (2 * mean.square())[..., None, None]
    found = []
    for multiple in GRID:
        kernel = torch.exp(-scaled / multiple**2)
        norms = kernel.square().sum((-2, -1)).sqrt() * target.square().sum().sqrt()
        found.append((kernel * target).sum((-2, -1)) / norms)
    return torch.stack(found)


def best_multiple(alignments: Float[Tensor, "grid ..."]) -> float:
    """The multiple of ``GRID`` with the best alignment averaged over the variables of the layer."""
    return GRID[int(alignments.reshape(len(alignments), -1).mean(1).argmax())]


def _median_distance(distances: Float[Tensor, "*batch n n"]) -> Float[Tensor, "*batch"]:
    n = distances.shape[-1]
    row, column = torch.triu_indices(n, n, offset=1, device=distances.device)
    pairs = distances[..., row, column].sqrt()
    # duplicates at distance 0 say nothing about scale; were they counted, a mostly dead ReLU map would get σ = 0
    median = torch.where(pairs > 0, pairs, torch.nan).nanmedian(-1).values
    return torch.where(median.isnan(), torch.ones_like(median), median)


def _one_where_zero(values: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
    return torch.where(values > 0, values, torch.ones_like(values))

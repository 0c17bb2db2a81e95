"""I(X; T_i) and I(T_i; Y) of every filter of a layer, in bounded memory, on all cores.

The two terms of the per-filter information bottleneck ("Understanding CNNs…", Sec. IV.4). A filter costs one
distance matrix and two n × n entropies; the input's Gram matrix and the label blocks are shared by all filters.
"""

import math
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from infoprune.information.entropy import (
    class_groups,
    joint_with_labels,
    label_entropy,
    renyi_entropy,
    saturation_margin,
)
from infoprune.information.gram import DEFAULT_MEMORY, ROUNDING, filter_distances
from infoprune.information.spectra import kernel_entropy
from infoprune.information.threads import core_count, over_cores
from infoprune.information.validation import (
    require_choice,
    require_finite,
    require_labels,
    require_order,
    require_positive,
    require_samples,
    require_square,
)
from infoprune.information.widths import RULES, alignment, best_multiple, kernel_width


class FilterInformation(NamedTuple):
    """What one layer's filters know, in bits, float64, one entry per filter."""

    input: Float64[Tensor, " c"]
    """I(X; T_i)."""
    label: Float64[Tensor, " c"]
    """I(T_i; Y)."""
    entropy: Float64[Tensor, " c"]
    """S(T_i)."""
    joint_entropy: Float64[Tensor, " c"]
    """S(X, T_i)."""
    margin: Float64[Tensor, " c"]
    """log2 n − S(X, T_i): below ``entropy.SATURATION_BITS`` the filter's scores are saturated."""


class _Layer(NamedTuple):
    """What all filters of a layer share."""

    input_kernel: Float64[Tensor, "n n"]
    groups: list[Int[Tensor, "_ _"]]
    alpha: float
    rule: str
    options: dict[str, Any]
    multiple: float | None


def filter_information(
    maps: Float[Tensor, "n c *space"],
    input_gram: Float[Tensor, "n n"],
    labels: Int[Tensor, " n"],
    *,
    alpha: float = 1.0,
    rule: str = "standardized",
    gamma: float = 1.0,
    h: float = 5.0,
    share: float = 0.15,
    memory_limit: int = DEFAULT_MEMORY,
) -> FilterInformation:
    """I(X; T_i) and I(T_i; Y) of every filter of one layer on one mini-batch.

    Args:
        maps: activations, samples × filters × space.
        input_gram: kernel matrix of the input X.
        labels: classes; their kernel is the delta kernel.
        alpha: order. 1 is within n·1e-9 bit of the exact spectrum (see ``tridiagonal``), 2 takes no spectrum.
        rule: kernel-width rule, see ``gram.kernel_width``, with ``gamma``, ``h`` and ``share``.
            ``label_alignment`` computes the distances twice: once for the layer's width, once for the scores.
        memory_limit: bytes of working memory, all threads together.

    Returns:
        Entropies and information on the CPU or GPU where ``maps`` lie.

    Raises:
        ValueError: for fewer than two samples, shapes that do not fit, NaN or Inf, or unknown names.

    Example:
        >>> maps = torch.tensor([0.0, 0.0, 9.0, 9.0]).reshape(4, 1, 1, 1)  # one filter that knows the class
        >>> found = filter_information(maps, torch.eye(4), torch.tensor([0, 0, 1, 1]), gamma=0.1)
        >>> found.label.round(decimals=4)
        tensor([1.], dtype=torch.float64)
    """
    layer = _prepared(maps, input_gram, labels, alpha, rule, {"gamma": gamma, "h": h, "share": share})
    require_positive("memory_limit", memory_limit)
    if rule == "label_alignment":
        layer = layer._replace(multiple=_layer_multiple(maps, labels, memory_limit))
    if maps.is_cuda:
        parts = [_score_on_device(part, layer, memory_limit) for part in _chunks(maps, memory_limit, workers=1)]
    else:
        work = partial(_score_on_core, layer=layer)
        parts = over_cores(work, _chunks(maps.detach(), memory_limit, workers=core_count()))
    own, joint, with_label = (torch.cat(column) for column in zip(*parts, strict=True))
    of_input = renyi_entropy(layer.input_kernel, alpha=alpha)
    of_label = label_entropy(labels, alpha=alpha).to(own)
    return FilterInformation(
        input=own + of_input - joint,
        label=own + of_label - with_label,
        entropy=own,
        joint_entropy=joint,
        margin=saturation_margin(joint, len(maps)),
    )


def _prepared(
    maps: Float[Tensor, "n c *space"],
    input_gram: Float[Tensor, "m m"],
    labels: Tensor,
    alpha: float,
    rule: str,
    options: dict[str, Any],
) -> _Layer:
    n = require_samples(maps.shape[0])
    if maps.numel() == 0:
        raise ValueError(f"empty maps of shape {tuple(maps.shape)} came: expected (n, c, ...) without zeros.")
    if require_square(tuple(input_gram.shape), "the input's Gram matrix") != n:
        raise ValueError(f"an input Gram matrix of {len(input_gram)} samples came with maps of {n}; use one batch.")
    require_labels(labels, n)
    require_order(alpha)
    require_choice("kernel-width rule", rule, RULES)
    kernel = input_gram.detach().to(maps.device, torch.float64)
    scale = kernel.diagonal().rsqrt()
    kernel = kernel * scale[:, None] * scale[None]
    require_finite(torch.isfinite(kernel).all(), "the input's Gram matrix after scaling its diagonal to 1")
    return _Layer(kernel, class_groups(labels.to(maps.device)), alpha, rule, options, None)


def _chunks(maps: Float[Tensor, "n c *space"], memory_limit: int, workers: int) -> list[Tensor]:
    """Views of a few filters each, small enough for all workers to hold theirs at once and near their caches."""
    n, c = maps.shape[:2]
    bytes_each = 8 * (2 * n * maps[0, 0].numel() + 6 * n * n)
    most = max(1, memory_limit // (workers * bytes_each))
    if maps.is_cuda:
        return list(torch.split(maps, most, dim=1))
    # at least two chunks a worker, and no more than about 16 MiB a chunk: larger ones only leave the cache
    step = min(most, max(1, math.ceil(c / (2 * workers))), max(4, 2**24 // bytes_each))
    return list(torch.split(maps, step, dim=1))


def _score_on_core(
    maps: Float[Tensor, "n c *space"], layer: _Layer
) -> tuple[Float64[Tensor, " c"], Float64[Tensor, " c"], Float64[Tensor, " c"]]:
    """S(T), S(X, T), S(T, Y) of a chunk of filters, in one thread of NumPy."""
    squared, variance, dimension = _distances_on_core(maps)
    kernels = _exponents(squared, variance, dimension, layer).numpy()
    # NumPy throughout: torch would start its own threads inside each of ours
    own = torch.from_numpy(np.exp(np.negative(kernels, out=kernels), out=kernels))
    with_label = joint_with_labels(own, layer.groups, layer.alpha, threads=False)
    alone = kernel_entropy(own, alpha=layer.alpha, threads=False)
    joint = torch.from_numpy(np.multiply(kernels, layer.input_kernel.numpy(), out=kernels))
    return alone, kernel_entropy(joint, alpha=layer.alpha, threads=False), with_label


def _score_on_device(
    maps: Float[Tensor, "n c *space"], layer: _Layer, memory_limit: int
) -> tuple[Float64[Tensor, " c"], Float64[Tensor, " c"], Float64[Tensor, " c"]]:
    """The same three entropies of a chunk, by torch's batched kernels on the GPU."""
    squared, variance, dimension = filter_distances(maps, memory_limit=memory_limit)
    kernels = _exponents(squared, variance, dimension, layer).neg_().exp_()
    own, joint = (kernel_entropy(k, alpha=layer.alpha) for k in (kernels, kernels * layer.input_kernel))
    return own, joint, joint_with_labels(kernels, layer.groups, layer.alpha)


def _distances_on_core(
    maps: Float[Tensor, "n c *space"],
) -> tuple[Float64[Tensor, "c n n"], Float64[Tensor, " c"], int]:
    """``gram.filter_distances`` in one thread: NumPy sees that x xᵀ is symmetric and does half the work."""
    n, c = maps.shape[:2]
    maps_of_filter = maps.reshape(n, c, -1).transpose(0, 1)
    if maps.dtype not in (torch.float32, torch.float64):
        maps_of_filter = maps_of_filter.float()  # NumPy has no bfloat16
    x = np.ascontiguousarray(maps_of_filter.numpy(), dtype=np.float64)
    d = x.shape[-1]
    per_pixel = x.mean(1, keepdims=True)
    x -= per_pixel
    inner = np.matmul(x, x.swapaxes(1, 2))
    norms = np.diagonal(inner, axis1=1, axis2=2)
    require_finite(bool(np.isfinite(norms).all()), "feature maps")
    # total variance = within-pixel variance over samples + variance of the pixels' means
    variance = norms.sum(1) / (n * d) + per_pixel[:, 0].var(1)
    dead = np.sqrt(variance) <= ROUNDING * torch.finfo(maps.dtype).eps * np.abs(per_pixel[:, 0].mean(1))
    squared = norms[:, :, None] + norms[:, None, :]
    squared -= inner
    squared -= inner
    np.maximum(squared, 0, out=squared)
    squared[dead] = 0
    squared[:, np.arange(n), np.arange(n)] = 0
    return torch.from_numpy(squared), torch.from_numpy(variance * ~dead), d


def _exponents(
    squared: Float64[Tensor, "c n n"], variance: Float64[Tensor, " c"], dimension: int, layer: _Layer
) -> Float64[Tensor, "c n n"]:
    if layer.multiple is not None:
        n = squared.shape[-1]
        mean = squared.sqrt().sum((-2, -1)) / (n * (n - 1))
        sigma = torch.where(mean > 0, mean, torch.ones_like(mean)) * layer.multiple
    else:
        sigma = kernel_width(squared, rule=layer.rule, dimension=dimension, variance=variance, **layer.options)
    return squared.div_((2 * sigma.square())[:, None, None])


def _layer_multiple(maps: Float[Tensor, "n c *space"], labels: Int[Tensor, " n"], memory_limit: int) -> float:
    chunks = _chunks(maps, memory_limit, workers=1)
    parts = [alignment(filter_distances(part, memory_limit=memory_limit).squared, labels) for part in chunks]
    return best_multiple(torch.cat(parts, dim=1))

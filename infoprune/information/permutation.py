"""CMI-permutation: how many filters a layer needs before the rest says nothing new about the labels.

"Understanding Convolutional Neural Networks with Information Theory", Appendix B, Algorithm 1 (after Yu & Príncipe,
arXiv:1811.11971). Filters join greedily; a permutation test on I({T_r − t}; Y | {T_s, t}) decides when to stop.

The statistic asks whether t explains what the remaining filters know. It therefore has no power where filters are
complementary rather than redundant: if T_r knows something else than t does, permuting t changes nothing, and the
selection stops however informative t is. The layers it is meant for are redundant; the width is a lower estimate.
"""

import math
from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Float64, Int
from scipy import special
from torch import Tensor

from infoprune.information.entropy import (
    SATURATION_BITS,
    class_groups,
    joint_with_labels,
    label_entropy,
    saturation_margin,
)
from infoprune.information.gram import DEFAULT_MEMORY, delta, set_exponents
from infoprune.information.resampling import permutation_p_value
from infoprune.information.selection import VARIANTS, Selection, Step, Variant
from infoprune.information.spectra import kernel_entropy
from infoprune.information.threads import core_count, one_thread_each, over_cores
from infoprune.information.validation import (
    require_choice,
    require_finite,
    require_labels,
    require_order,
    require_positive,
    require_samples,
)

TIE_BITS = 1e-7
"""Differences below this are round-off of the entropies, hence ties."""


class _Problem(NamedTuple):
    exponents: Float64[Tensor, "c n n"]
    label_kernel: Float64[Tensor, "n n"] | None
    """The paper's RBF on one-hot labels; None for the delta kernel, whose joints are block diagonal."""
    groups: list[Int[Tensor, "_ _"]]
    variant: Variant
    step: int


@one_thread_each()  # between the entropies only copies and sums are left, which threads would mostly wait for
def cmi_permutation(
    exponents: Float64[Tensor, "c n n"],
    labels: Int[Tensor, " n"],
    *,
    variant: str | Variant = "corrected",
    permutations: int = 100,
    significance: float = 0.05,
    max_filters: int | None = None,
    generator: torch.Generator | None = None,
    memory_limit: int = DEFAULT_MEMORY,
) -> Selection:
    """Greedy selection of filters with a permutation test as the stopping rule, on one mini-batch.

    At each step the candidate with the largest I(Y; {T_s, t}) is tested: permuting its samples must raise what the
    remaining filters still add about Y. If it does not, the candidate is refused and the selection stops.

    Args:
        exponents: D/2σ² of each filter, from ``gram.filter_exponents`` or, for discrete filters, from
            ``gram.delta_distances``.
        labels: classes Y.
        variant: "corrected" (default), "paper" (Algorithm 1 as printed), or a ``Variant`` of one's own.
        permutations: P.
        significance: level of the test.
        max_filters: stop after that many, undecided.
        generator: a seeded CPU generator makes the result reproducible.
        memory_limit: bytes of working memory beside ``exponents``.

    Returns:
        The selection; with sets at their own widths (``widen``) its conditional information may be negative, which
        the test, a comparison with permutations at the same widths, does not mind.

    Raises:
        ValueError: for fewer than two samples, NaN or Inf, labels that do not fit, or an option out of range.

    Example:
        >>> from infoprune.information.gram import delta_distances
        >>> y = torch.arange(64) % 2
        >>> filters = torch.stack([torch.zeros_like(y), y, y])  # a dead filter, and one that knows the class, twice
        >>> cmi_permutation(delta_distances(filters), y, permutations=40).order
        (1,)
    """
    problem = _problem(exponents, labels, variant, memory_limit)
    if permutations < 1 or not 0 < significance < 1 or (max_filters is not None and max_filters < 1):
        raise ValueError(
            f"permutations = {permutations}, significance = {significance}, max_filters = {max_filters}: "
            "expected at least one permutation, a level between 0 and 1, and at least one filter."
        )
    n, of_label = exponents.shape[-1], _label_entropy(problem, labels)
    of_all = _entropies(problem, exponents.sum(0)[None], len(exponents))
    chosen, total = list[int](), torch.zeros_like(exponents[0])
    left, steps = list(range(len(exponents))), list[Step]()
    while left:
        if max_filters is not None and len(chosen) == max_filters:
            return Selection(tuple(chosen), tuple(steps), "limit")
        if len(left) == 1:  # no filter remains to be explained, so there is nothing to test
            return Selection((*chosen, left[0]), tuple(steps), "exhausted")
        best, own, joint = _best_candidate(problem, total, left, len(chosen) + 1)
        information = float(own + of_label - joint)
        observed = float(of_all[0] - of_all[1] + joint - own)
        orders = torch.stack([torch.randperm(n, generator=generator) for _ in range(permutations)])
        permuted = _permuted_statistics(problem, total, best, len(chosen) + 1, orders.to(exponents.device))
        margin = float(saturation_margin(own, n))
        steps.append(_tested(problem.variant, best, information, observed, permuted, margin, len(left)))
        stop = _verdict(problem.variant, steps[-1], permutations, significance)
        if stop:
            return Selection(tuple(chosen), tuple(steps), stop)
        chosen.append(best)
        left.remove(best)
        total = total + exponents[best]
    return Selection(tuple(chosen), tuple(steps), "exhausted")


def _problem(
    exponents: Float64[Tensor, "c n n"], labels: Tensor, variant: str | Variant, memory_limit: int
) -> _Problem:
    if isinstance(variant, str):
        variant = VARIANTS[require_choice("CMI-permutation variant", variant, VARIANTS)]
    n = require_samples(exponents.shape[-1])
    if len(exponents) == 0:
        raise ValueError("no filter came: expected exponents of shape (c, n, n) with c >= 1.")
    require_finite(torch.isfinite(exponents).all(), "exponents")
    require_order(variant.alpha)
    labels = require_labels(labels, n).to(exponents.device)
    groups = class_groups(labels)
    classes = sum(len(group) for group in groups)
    # one-hot vectors of different classes are √2 apart; σ by the paper's rule with h = 5
    sigma = 5 * n ** (-1 / (4 + classes))
    label_kernel = None if variant.delta_labels else torch.exp((delta(labels) - 1) / sigma**2)
    step = max(1, int(require_positive("memory_limit", memory_limit)) // (6 * 8 * n * n))
    return _Problem(exponents, label_kernel, groups, variant, step)


def _label_entropy(problem: _Problem, labels: Int[Tensor, " n"]) -> Float64[Tensor, ""]:
    alpha = problem.variant.alpha
    if problem.label_kernel is None:
        return label_entropy(labels, alpha=alpha).to(problem.exponents.device)
    return kernel_entropy(problem.label_kernel[None], alpha=alpha)[0]


def _entropies(
    problem: _Problem, totals: Float64[Tensor, "b n n"], count: int
) -> tuple[Float64[Tensor, " b"], Float64[Tensor, " b"]]:
    """S(T) and S(T, Y) of sets of ``count`` filters, given the sums of their exponents."""
    if totals.is_cuda:
        return _entropies_of_part(totals, problem, count)
    work = partial(_entropies_of_part, problem=problem, count=count)
    parts = over_cores(work, torch.tensor_split(totals, min(len(totals), 2 * core_count())))
    return torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])


def _entropies_of_part(
    totals: Float64[Tensor, "b n n"], problem: _Problem, count: int
) -> tuple[Float64[Tensor, " b"], Float64[Tensor, " b"]]:
    alpha = problem.variant.alpha
    kernels = set_exponents(totals, count, widen=problem.variant.widen).neg().exp_()
    own = kernel_entropy(kernels, alpha=alpha, threads=False)
    if problem.label_kernel is None:
        return own, joint_with_labels(kernels, problem.groups, alpha, threads=False)
    return own, kernel_entropy(kernels.mul_(problem.label_kernel), alpha=alpha, threads=False)


def _best_candidate(
    problem: _Problem, total: Float64[Tensor, "n n"], left: list[int], count: int
) -> tuple[int, Float64[Tensor, ""], Float64[Tensor, ""]]:
    """argmax over the candidates of I(Y; {T_s, t}), with S(T_s, t) and S(T_s, t, Y); ties go to the first."""
    parts = [
        _entropies(problem, total + problem.exponents[left[at : at + problem.step]], count)
        for at in range(0, len(left), problem.step)
    ]
    own, joint = torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])
    gain = own - joint
    at = int((gain >= gain.max() - TIE_BITS).nonzero()[0])
    return left[at], own[at], joint[at]


def _permuted_statistics(
    problem: _Problem, total: Float64[Tensor, "n n"], best: int, count: int, orders: Int[Tensor, "p n"]
) -> Float64[Tensor, " p"]:
    """I({T_r − t̃}; Y | {T_s, t̃}) for permuted samples t̃ of the candidate: its rows and columns re-indexed."""
    moved = problem.exponents[best]
    # summed again, not all − t: a discrete filter's huge exponents would swallow the digits of the others
    others = problem.exponents[:best].sum(0) + problem.exponents[best + 1 :].sum(0)
    found = []
    for chunk in torch.split(orders, problem.step):
        shuffled = moved[chunk[:, :, None], chunk[:, None, :]]
        all_own, all_joint = _entropies(problem, others + shuffled, len(problem.exponents))
        own, joint = _entropies(problem, total + shuffled, count)
        found.append(all_own - all_joint + joint - own)
    return torch.cat(found)


def _tested(
    variant: Variant,
    candidate: int,
    information: float,
    observed: float,
    permuted: Float64[Tensor, " p"],
    margin: float,
    candidates: int,
) -> Step:
    above, ties = observed > permuted + TIE_BITS, (observed - permuted).abs() <= TIE_BITS
    if variant.ties_against:
        above, ignored = above | ties, torch.zeros_like(ties)
    else:
        ignored = ties
    p_value = float(permutation_p_value(above, ignored) if variant.plus_one else above.double().mean())
    adjusted, spread = p_value, float(permuted.std(correction=0))
    if variant.adjust:
        tail = float(special.ndtr((observed - float(permuted.mean())) / spread)) if spread > TIE_BITS else 1.0
        adjusted = max(p_value, -math.expm1(candidates * math.log1p(-min(tail, 1 - 1e-12))))
    low, high = permuted.quantile(0.05), permuted.quantile(0.95)
    band = (float(permuted.mean()), float(low), float(high))
    return Step(candidate, information, observed, *band, p_value, adjusted, int(ties.sum()), margin)


def _verdict(variant: Variant, step: Step, permutations: int, significance: float) -> str | None:
    """Why to stop before taking the candidate, or None to take it and go on."""
    if variant.guard and step.margin < SATURATION_BITS:
        return "saturated"
    if step.ties == permutations and not variant.ties_against:
        return "ties"
    return "insignificant" if step.adjusted_p_value > significance else None

"""From findings to kept channels under a budget."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal

import torch
from msgspec import Meta
from torch import Tensor

from infoprune.analyses.base import Finding
from infoprune.config.ranges import PositiveShare, Share, Width, in_range
from infoprune.errors import UserError, did_you_mean
from infoprune.graph.channels import ChannelGraph, ChannelGroup
from infoprune.planning.allocation import above_one_threshold, in_proportion, meet, uniform
from infoprune.planning.budget import Widths, budget_of
from infoprune.planning.constraints import Constraints, touched
from infoprune.planning.greedy import cheapest, reaches
from infoprune.planning.masks import kept_by, read_masks
from infoprune.planning.plan import GroupPlan, Plan
from infoprune.planning.ranking import Ranking, Reduce, Scale, SignalWeight, best
from infoprune.planning.recommend import WidthAs, advise, advising
from infoprune.planning.spans import decided_by, spans_of

# A share of what the unpruned network has up to 1, above that a number.
Budget = Annotated[float, Meta(gt=0, le=10**12)]
Allocation = Literal["uniform", "global", "sensitivity"]
# Budgets that follow from the widths alone, without measuring.
LIMITS = ("macs", "parameters", "bytes")


@in_range("[plan]")
def plan(
    findings: Sequence[Finding],
    graph: ChannelGraph,
    sensitivity: Mapping[str, Mapping[int, float]] | None = None,
    predict: Callable[[Widths], float] | None = None,
    *,
    macs: Budget | None = None,
    parameters: Budget | None = None,
    bytes: Budget | None = None,
    latency: PositiveShare | None = None,
    latency_ms: Annotated[float, Meta(gt=0, le=1_000_000)] | None = None,
    rank_by: str | list[str] = "response_information",
    redundancy_by: Sequence[str] = (),
    redundancy_weight: SignalWeight = 0.5,
    reduce: Reduce = "mean",
    scale: Scale = "standardized",
    allocation: Allocation | None = None,
    width_by: list[str] | None = None,
    width_as: WidthAs = "floor",
    round_to: Width = 1,
    min_width: Width = 1,
    min_share: Share = 0.05,
    protect: Sequence[str] = (),
    only: Sequence[str] = (),
    masks: dict[str, list[Annotated[int, Meta(ge=0, le=65_535)]]] | str | None = None,
) -> Plan:
    """Chooses the channels to keep.

    The rule joins what has run: filters are ranked by `rank_by`, to which signals of redundancy can be added; no width
    goes below what `cmi_permutation` recommends as long as the budget allows it; and blocks that `data_processing`
    names have been taken out of the graph before, where validation confirmed it. Each group's reason says which signal
    decided.

    Args:
        findings: what the analyses found; those in `rank_by` must be among them.
        graph: channel groups and costs, from `channel_graph`.
        sensitivity: for that allocation: per group, width -> loss, from `infoprune.measure_sensitivity`.
        predict: for a latency budget: milliseconds at given widths, from `infoprune.planning.latency.Timings`.
        macs: the budget in multiply-accumulates per sample: a share of the unpruned network's up to 1, above that a
            number. Several budgets hold at once; without any it is half the MACs.
        parameters: the budget in parameters, a share or a number.
        bytes: the budget in bytes of weights and buffers, a share or a number.
        latency: the budget in measured time of a forward pass on this device, a share of the unpruned network's.
        latency_ms: the same in milliseconds.
        rank_by: the analysis whose importance ranks the channels, or several, which count alike; in a recipe, "best":
            the one of those in `[choose]` whose plan keeps most accuracy on validation data after repair.
        redundancy_by: analyses whose importance is added as a signal of redundancy, such as `redundancy` and
            `spectral_rolloff`.
        redundancy_weight: of these signals against the ranking's.
        reduce: how the scores of several layers in one group become one score per channel.
        scale: what the scores of several layers or analyses are brought to before they are joined.
        allocation: how groups share the loss: "uniform" gives each the same share of its width, "global" ranks the
            channels of all groups together by score relative to their group's mean, "sensitivity" cuts where measured
            loss per unit of the budget is least; if not given, "sensitivity" where it was measured (a run measures it
            wherever the model can be traced), else "uniform".
        width_by: analyses whose recommended widths are heeded (their median); if not given, `cmi_permutation` where
            it ran.
        width_as: what they are: a "floor" as far as the budget allows, a "ceiling", or the "prior" that all widths
            are in proportion to (in place of "uniform").
        round_to: widths are multiples of this.
        min_width: least number of channels in a group.
        min_share: least share of a group's channels, 0..1.
        protect: patterns (`layer1.*`) of groups or layers that stay whole.
        only: patterns of the groups or layers that may be cut; empty for all.
        masks: kept filters per layer, chosen by hand, or a JSON file of them; then nothing else is cut, and budgets
            do not count.

    Returns:
        A plan that meets the budget from below as closely as the widths allow.

    Raises:
        UserError: where there is nothing to prune, the budget cannot be met, a pattern matches nothing, a mask does not
            fit, or `rank_by` gives no usable score.
    """
    constraints = Constraints(round_to, min_width, min_share, protect, only)
    free, refused = _free(graph, constraints)
    if masks is not None:
        return _by_hand(read_masks(masks) if isinstance(masks, str) else masks, graph, free, refused)
    _not_nothing(free, refused)
    ranking = Ranking(findings, rank_by, redundancy_by, redundancy_weight, reduce, scale)
    scores = ranking.of(free)
    limits = {"macs": macs, "parameters": parameters, "bytes": bytes, "latency": latency, "latency_ms": latency_ms}
    budget = budget_of(graph, **limits, predict=predict)
    budget.check({group.name: constraints.floor(group) for group in free})
    asked = allocation is not None
    if allocation is None:
        allocation = "sensitivity" if sensitivity and width_as != "prior" else "uniform"
    advisers = advising(findings, width_by)
    if advisers and width_as == "prior" and allocation != "uniform":
        raise UserError(
            f"[plan] width_as = 'prior' takes the place of allocation = 'uniform', not of '{allocation}'; use floor or "
            "ceiling"
        )
    advice = {group.name: given for group in free if (given := advise(advisers, group)) is not None}
    spans, notes = spans_of(free, constraints, advice, width_as, budget)
    if allocation == "sensitivity" and not asked and not reaches(sensitivity or {}, budget, spans):
        allocation = "uniform"
        notes = (*notes, "the budget lies below the least widths that sensitivity measured, so widths are uniform")
    if allocation == "sensitivity":
        widths = cheapest(sensitivity or {}, budget, spans)
    elif allocation == "global":
        widths = meet(budget, spans, above_one_threshold(scores))
    elif advice and width_as == "prior":
        widths = meet(budget, spans, in_proportion({name: own.width for name, own in advice.items()}))
    else:
        widths = meet(budget, spans, uniform)
    groups = []
    for span in spans:
        name, width = span.group.name, widths[span.group.name]
        kept = best(scores[name], width, span.group.partitions)
        reason = decided_by(span, width, advice.get(name), width_as, allocation) + _cut(scores[name], kept, ranking)
        groups.append(_group_plan(span.group, kept, graph, widths, reason))
    return _made(graph, groups, refused, widths, (*budget.notes(widths), *notes), ranking.key)


def check_fit(graph: ChannelGraph, **options: Any) -> None:
    """Refuses what no finding could fix, before any is made.

    Args:
        graph: channel groups and costs.
        options: those of `plan`, all of them.

    Raises:
        UserError: for patterns and masks that do not fit the graph, a budget in MACs, parameters or bytes that is out
            of reach, or where there is nothing to prune.
    """
    if options["masks"] is not None:
        plan([], graph, **options)
        return
    constraints = Constraints(*(options[name] for name in ("round_to", "min_width", "min_share", "protect", "only")))
    free, refused = _free(graph, constraints)
    _not_nothing(free, refused)
    limits = {name: options[name] for name in LIMITS}
    if any(limits.values()):
        budget_of(graph, **limits).check({group.name: constraints.floor(group) for group in free})


def _free(graph: ChannelGraph, constraints: Constraints) -> tuple[list[ChannelGroup], dict[str, str]]:
    """The groups that may be cut, and why the others stay whole."""
    refused = constraints.refused(graph)
    return [group for group in graph.groups if group.name not in refused], refused


def _not_nothing(free: Sequence[ChannelGroup], refused: Mapping[str, str]) -> None:
    if not free:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in refused.items())
        raise UserError(f"there is nothing to prune: {reasons}")


def _cut(scores: Tensor, kept: Sequence[int], ranking: Ranking) -> str:
    removed = sorted(set(range(len(scores))) - set(kept))
    if not removed:
        return ""
    return (
        f"; the {len(kept)} channels ranked highest by {ranking.name} "
        f"(kept {scores[list(kept)].min():.4g} and above, removed {scores[removed].max():.4g} and below)"
    )


def _by_hand(
    masks: Mapping[str, Sequence[int]], graph: ChannelGraph, free: Sequence[ChannelGroup], refused: Mapping[str, str]
) -> Plan:
    kept = kept_by(masks, graph)
    stuck = [name for name in kept if name in refused]
    if stuck:
        raise UserError(f"the mask cuts '{stuck[0]}', which stays whole: {refused[stuck[0]]}; leave it out of the mask")
    widths = {group.name: len(kept.get(group.name, range(group.width))) for group in free}
    groups = [
        _group_plan(group, kept.get(group.name, tuple(range(group.width))), graph, widths, "chosen by hand")
        for group in free
    ]
    after, before = graph.macs(widths), graph.unpruned.macs
    return _made(graph, groups, refused, widths, (f"{after:,} of {before:,} MACs ({after / before:.1%}), by hand",))


def _group_plan(
    group: ChannelGroup, kept: tuple[int, ...], graph: ChannelGraph, widths: Widths, reason: str
) -> GroupPlan:
    own = touched(graph, group)
    return GroupPlan(group.name, kept, group.width, len(kept), own.macs({}), own.macs(widths), reason)


def recount(edited: Plan, graph: ChannelGraph, source: str) -> Plan:
    """A plan that was edited by hand, with widths and MACs counted again from the channels that it keeps.

    Args:
        edited: the plan as its file says.
        graph: channel groups and costs of the model without the blocks that the plan removes.
        source: the file's name, for messages.

    Returns:
        The plan, which still has to be checked against the model, with notes that say what became of it.

    Raises:
        UserError: for a group that the model lacks, or that stands there twice.
    """
    known = {group.name: group for group in graph.groups}
    names = [entry.group for entry in edited.groups]
    for name in names:
        if name not in known or names.count(name) > 1:
            problem = "twice" if name in known else f", which the model lacks{did_you_mean(name, known)}"
            raise UserError(f"'{source}' names the group '{name}' {problem}; correct the file or remove it")
    widths = {entry.group: len(entry.kept) for entry in edited.groups}
    groups = [_group_plan(known[entry.group], entry.kept, graph, widths, entry.reason) for entry in edited.groups]
    before, after = graph.unpruned.macs, graph.macs(widths)
    stay = {group.name: group.refusal or edited.refused.get(group.name, "") for group in graph.groups}
    notes = [
        "edited by hand after it was made; widths and MACs are counted from what it keeps",
        f"{after:,} of {before:,} MACs ({after / max(1, before):.1%})",
        *([f"removed as a whole: {', '.join(graph.removed)}"] if graph.removed else []),
    ]
    return replace(
        edited,
        groups=tuple(groups),
        refused={name: reason or "not in the edited plan" for name, reason in stay.items() if name not in names},
        macs_before=before,
        macs_after=after,
        input_shape=graph.input_shape,
        notes=tuple(notes),
    )


def _made(
    graph: ChannelGraph,
    groups: Sequence[GroupPlan],
    refused: Mapping[str, str],
    widths: Widths,
    notes: tuple[str, ...],
    ranked_by: str = "",
) -> Plan:
    if graph.removed:
        notes = (*notes, f"removed as a whole: {', '.join(graph.removed)}")
    return Plan(
        tuple(groups),
        refused,
        graph.unpruned.macs,
        graph.macs(widths),
        graph.input_shape,
        notes,
        tuple(graph.removed),
        ranked_by,
    )


def first_channels(graph: ChannelGraph, share: float) -> Plan:
    """A plan that keeps the first channels of every group, whatever they are: for timing a network of some width.

    Args:
        graph: channel groups and costs.
        share: of every group's width, 0..1.
    """
    groups = [group for group in graph.groups if not group.refusal]
    part = {group.name: group.width // group.partitions for group in groups}
    widths = {group.name: max(1, round(share * part[group.name])) * group.partitions for group in groups}
    rising = {group.name: torch.arange(group.width - 1, -1, -1) % part[group.name] for group in groups}
    made = [
        _group_plan(group, best(rising[group.name].float(), widths[group.name], group.partitions), graph, widths, "")
        for group in groups
    ]
    return _made(graph, made, {}, widths, ())

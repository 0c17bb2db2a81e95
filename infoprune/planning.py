"""From findings to kept channels under a budget."""

import math
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Literal

import torch
from torch import Tensor

from infoprune.artifacts import ChannelGraph, ChannelGroup, Finding, GroupPlan, Plan
from infoprune.errors import UserError, did_you_mean
from infoprune.sensitivity import allocate

Widths = dict[str, int]
Reduce = Literal["mean", "max", "sum"]


def plan(
    findings: Sequence[Finding],
    graph: ChannelGraph,
    sensitivity: Mapping[str, Mapping[int, float]] | None = None,
    *,
    rank_by: str = "information_bottleneck",
    macs: float = 0.5,
    allocation: Literal["uniform", "global", "sensitivity"] = "uniform",
    reduce: Reduce = "mean",
    round_to: int = 1,
    min_width: int = 1,
    min_share: float = 0.05,
    protect: Sequence[str] = (),
    only: Sequence[str] = (),
) -> Plan:
    """Chooses the channels to keep.

    Args:
        findings: what the analyses found; one of them must be `rank_by`.
        graph: channel groups and costs, from `channel_graph`.
        sensitivity: for that allocation: per group, width -> loss, from `infoprune.repairing.measure_sensitivity`.
        rank_by: the analysis whose importance ranks the channels.
        macs: the budget in multiply-accumulates per sample: a share of the unpruned network's up to 1, above that a
            number.
        allocation: how groups share the loss: "uniform" gives each the same share of its width, "global" ranks the
            channels of all groups together by score relative to their group's mean, "sensitivity" cuts where measured
            loss per multiply-accumulate is least.
        reduce: how the scores of several layers in one group become one score per channel.
        round_to: widths are multiples of this.
        min_width: least number of channels in a group.
        min_share: least share of a group's channels, 0..1.
        protect: patterns (`layer1.*`) of groups or layers that stay whole.
        only: patterns of the groups or layers that may be cut; empty for all.

    Returns:
        A plan that meets the budget from below as closely as the widths allow.

    Raises:
        UserError: where there is nothing to prune, the budget cannot be met, a pattern matches nothing, or `rank_by`
            gives no usable score.
    """
    refused = _refused(graph, protect, only)
    free = [group for group in graph.groups if group.name not in refused]
    if not free:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in refused.items())
        raise UserError(f"there is nothing to prune: {reasons}")
    finding = _finding(findings, rank_by)
    scores = {group.name: group_scores(finding, group, reduce) for group in free}
    floors = {group.name: _floor(group, round_to, min_width, min_share) for group in free}
    total = graph.macs({})
    target = _target(macs, total, graph.macs(floors))
    if allocation == "sensitivity":
        widths = _by_sensitivity(target, graph, free, floors, sensitivity, round_to)
    else:
        share_of = _uniform(free) if allocation == "uniform" else _global(free, scores)
        widths = _meet(target, graph.macs, free, floors, share_of, round_to)
    after = graph.macs(widths)
    groups = tuple(_group_plan(group, widths, scores[group.name], graph, finding, allocation) for group in free)
    notes = (f"{after:,} of {total:,} MACs ({after / total:.1%}); asked for at most {target:,}",)
    return Plan(groups, refused, total, after, graph.input_shape, notes)


def group_scores(finding: Finding, group: ChannelGroup, reduce: Reduce = "mean") -> Tensor:
    """One score per channel of a group (`width`), from the scores of the layers whose filters the channels are.

    Masks belong to channel groups and scores to layers; this is the only place where the one becomes the other. Where
    several layers put out the same channels (a residual stream), each layer's scores are first standardised, so that
    no layer decides by the size of its numbers alone.

    Args:
        finding: with `importance` of at least one layer of the group.
        group: the channel group.
        reduce: how to join several layers.

    Raises:
        UserError: where the finding scores no layer of the group, or a score is NaN.
    """
    rows = []
    for member in group.members:
        if member.side == "out" and member.layer in finding.importance:
            scores = finding.importance[member.layer].double()
            rows.append(torch.stack([scores[list(own)].mean() for own in member.channels]))
    if not rows:
        raise UserError(
            f"'{finding.analysis}' gives no importance for '{group.name}'; rank by an analysis that does, or protect it"
        )
    if any(not row.isfinite().all() for row in rows):
        raise UserError(
            f"'{finding.analysis}' gives NaN or infinite importance in '{group.name}'; check weights and data"
        )
    if len(rows) > 1:
        rows = [(row - row.mean()) / row.std(correction=0).clamp_min(torch.finfo(row.dtype).tiny) for row in rows]
    stacked = torch.stack(rows)
    return {"mean": stacked.mean(0), "max": stacked.amax(0), "sum": stacked.sum(0)}[reduce]


def _finding(findings: Sequence[Finding], name: str) -> Finding:
    known = {finding.analysis: finding for finding in findings}
    if name not in known:
        raise UserError(f"[plan] rank_by = '{name}', but no such analysis ran{did_you_mean(name, known)}")
    if not known[name].importance:
        able = [finding.analysis for finding in findings if finding.importance]
        raise UserError(f"'{name}' gives no importance to rank by; analyses that do: {', '.join(able) or 'none ran'}")
    return known[name]


def _refused(graph: ChannelGraph, protect: Sequence[str], only: Sequence[str]) -> dict[str, str]:
    """Groups that stay whole, with the reason."""

    def matches(group: ChannelGroup, pattern: str) -> bool:
        layers = [group.name, *(member.layer for member in group.members if member.side == "out")]
        return any(fnmatchcase(layer, pattern) for layer in layers)

    for pattern in (*protect, *only):
        if not any(matches(group, pattern) for group in graph.groups):
            names = [group.name for group in graph.groups]
            raise UserError(f"the pattern '{pattern}' in [plan] matches no layer{did_you_mean(pattern, names)}")
    refused = {}
    for group in graph.groups:
        if group.refusal:
            refused[group.name] = group.refusal
        elif any(matches(group, pattern) for pattern in protect):
            refused[group.name] = "protected by the recipe"
        elif only and not any(matches(group, pattern) for pattern in only):
            refused[group.name] = "not among the layers that the recipe allows to be cut"
    return refused


def _quantum(group: ChannelGroup, round_to: int) -> int:
    """Widths go in steps that keep both the rounding and the equal parts of grouped layers."""
    return math.lcm(round_to, group.partitions)


def _floor(group: ChannelGroup, round_to: int, min_width: int, min_share: float) -> int:
    for name, value, fine in (
        ("round_to", round_to, round_to >= 1),
        ("min_width", min_width, min_width >= 1),
        ("min_share", min_share, 0 <= min_share <= 1),
    ):
        if not fine:
            raise UserError(f"[plan] {name} = {value}: expected {'0..1' if name == 'min_share' else 'at least 1'}")
    quantum = _quantum(group, round_to)
    least = max(min_width, math.ceil(min_share * group.width))
    return min(group.width, math.ceil(least / quantum) * quantum)


def _target(macs: float, total: int, least: int) -> int:
    """The budget in MACs; a share where it is at most 1."""
    if not macs > 0:
        raise UserError(
            f"[plan] macs = {macs}: expected a share of the unpruned network's MACs (0..1], or a number of MACs"
        )
    target = round(macs * total) if macs <= 1 else round(macs)
    if target < least:
        raise UserError(
            f"[plan] macs = {macs:g} asks for {target:,} MACs, but the smallest reachable is {least:,} "
            f"({least / total:.1%}); raise macs, or lower min_width and min_share, or protect less"
        )
    return min(target, total)


ShareOf = Callable[[ChannelGroup, float], float]


def _uniform(_: Sequence[ChannelGroup]) -> ShareOf:
    """Every group keeps the same share of its channels."""
    return lambda group, level: level


def _global(groups: Sequence[ChannelGroup], scores: Mapping[str, Tensor]) -> ShareOf:
    """Every group keeps the share of its channels that lie above one threshold for all groups."""
    relative = {}
    for group in groups:
        # Shifted to be positive, then relative to the group's mean: scales of layers cannot be compared, shapes can.
        positive = scores[group.name] - scores[group.name].min()
        relative[group.name] = positive / positive.mean().clamp_min(torch.finfo(positive.dtype).tiny)
    thresholds = torch.cat(list(relative.values())).sort(descending=True).values

    def share_of(group: ChannelGroup, level: float) -> float:
        cut = thresholds[min(len(thresholds) - 1, int(level * (len(thresholds) - 1)))]
        return float((relative[group.name] >= cut).double().mean())

    return share_of


def _meet(
    target: int,
    cost: Callable[[Mapping[str, int]], int],
    groups: Sequence[ChannelGroup],
    floors: Mapping[str, int],
    share_of: ShareOf,
    round_to: int,
) -> Widths:
    """The widths of the highest level whose cost stays within the target, then single steps while any still fits."""

    def widths_at(level: float) -> tuple[Widths, dict[str, float]]:
        wanted = {group.name: share_of(group, level) * group.width for group in groups}
        widths = {}
        for group in groups:
            quantum = _quantum(group, round_to)
            down = math.floor(wanted[group.name] / quantum + 1e-9) * quantum
            widths[group.name] = max(floors[group.name], group.width if level >= 1 else down)
        return widths, wanted

    low, high = 0.0, 1.0
    if cost(widths_at(high)[0]) <= target:
        return widths_at(high)[0]
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if cost(widths_at(middle)[0]) <= target else (low, middle)
    widths, wanted = widths_at(low)
    # Rounding down left some of the budget: give it back where it took the most, a step at a time.
    for group in sorted(groups, key=lambda group: widths[group.name] - wanted[group.name]):
        wider = {**widths, group.name: min(group.width, widths[group.name] + _quantum(group, round_to))}
        if cost(wider) <= target:
            widths = wider
    return widths


def _by_sensitivity(
    target: int,
    graph: ChannelGraph,
    groups: Sequence[ChannelGroup],
    floors: Mapping[str, int],
    sensitivity: Mapping[str, Mapping[int, float]] | None,
    round_to: int,
) -> Widths:
    """Cheapest measured loss first; no group below what was measured of it."""
    measured = {group.name: (sensitivity or {}).get(group.name) for group in groups}
    lacking = [name for name, losses in measured.items() if not losses]
    if lacking:
        raise UserError(
            f"[plan] allocation = 'sensitivity', but none was measured for {', '.join(lacking[:3])}; measure it, or "
            "use another allocation"
        )
    table = {name: losses for name, losses in measured.items() if losses}
    floor = {name: max(floors[name], min(losses)) for name, losses in table.items()}
    widths = allocate(table, graph, target, round_to=round_to, floor=floor)
    for group in groups:  # wider again where a grouped layer's parts would not divide
        quantum = _quantum(group, round_to)
        widths[group.name] = min(group.width, max(floor[group.name], widths[group.name] // quantum * quantum))
    return widths


def _group_plan(
    group: ChannelGroup, widths: Widths, scores: Tensor, graph: ChannelGraph, finding: Finding, allocation: str
) -> GroupPlan:
    width = widths[group.name]
    kept = _best(scores, width, group.partitions)
    layers = {member.layer for member in group.members}
    touched = ChannelGraph(graph.groups, tuple(cost for cost in graph.costs if cost.layer in layers), graph.input_shape)
    reason = f"{allocation} width {width} of {group.width}"
    if width < group.width:
        removed = sorted(set(range(group.width)) - set(kept))
        reason += (
            f"; the {width} channels ranked highest by {finding.analysis} "
            f"(kept {scores[list(kept)].min():.4g} and above, removed {scores[removed].max():.4g} and below)"
        )
    return GroupPlan(group.name, kept, group.width, width, touched.macs({}), touched.macs(widths), reason)


def _best(scores: Tensor, width: int, partitions: int) -> tuple[int, ...]:
    """The `width` best channels; with partitions, the best positions by mean over the parts. Ties go to the first."""
    part = len(scores) // partitions
    order = torch.argsort(scores.view(partitions, part).mean(0), descending=True, stable=True)
    chosen = sorted(order[: width // partitions].tolist())
    return tuple(channel + part * i for i in range(partitions) for channel in chosen)

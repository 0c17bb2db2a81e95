"""Which channels of a group stay longest: from scores of layers to one score per channel."""

from collections.abc import Callable, Iterable, Sequence
from typing import Annotated, Literal

import torch
from msgspec import Meta
from torch import Tensor

from infoprune.analyses.base import Finding
from infoprune.config.ranges import in_range
from infoprune.errors import UserError, did_you_mean
from infoprune.graph.channels import ChannelGraph, ChannelGroup

Reduce = Literal["mean", "max", "sum"]
Scale = Literal["standardized", "ranks", "values"]
SignalWeight = Annotated[float, Meta(ge=0, le=1_000_000)]
# In place of an analysis: whichever of the rankings in [choose] keeps most accuracy on validation data.
BEST = "best"


def group_scores(
    finding: Finding, group: ChannelGroup, reduce: Reduce = "mean", scale: Scale = "standardized"
) -> Tensor:
    """One score per channel of a group (`width`), from the scores of the layers whose filters the channels are.

    Masks belong to channel groups and scores to layers; this is the only place where the one becomes the other. Where
    several layers put out the same channels (a residual stream), their scores are brought to one scale first.

    Args:
        finding: with `importance` of at least one layer of the group.
        group: the channel group.
        reduce: how to join several layers.
        scale: what several layers are brought to: zero mean and unit variance, "ranks" (0..1), or "values" as they are.

    Raises:
        UserError: where the finding scores no layer of the group, or a score is NaN.
    """
    rows = []
    for member in group.members:
        if member.side == "out" and member.layer in finding.importance:
            scores, filters = finding.importance[member.layer].double(), sum(map(len, member.channels))
            if scores.shape != (filters,):
                raise UserError(
                    f"'{finding.analysis}' gives importance of shape {tuple(scores.shape)} for '{member.layer}', which "
                    f"has {filters} filters; expected one score per filter"
                )
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
        rows = [SCALES[scale](row) for row in rows]
    stacked = torch.stack(rows)
    return {"mean": stacked.mean(0), "max": stacked.amax(0), "sum": stacked.sum(0)}[reduce]


def standardized(scores: Tensor) -> Tensor:
    """Zero mean and unit variance; zeros where all are equal.

    >>> standardized(torch.tensor([1.0, 3.0])), standardized(torch.ones(2))
    (tensor([-1.,  1.]), tensor([0., 0.]))
    """
    return (scores - scores.mean()) / scores.std(correction=0).clamp_min(torch.finfo(scores.dtype).tiny)


def ranks(scores: Tensor) -> Tensor:
    """Ranks from 0 to 1, ties sharing their mean rank.

    >>> ranks(torch.tensor([5.0, 1.0, 5.0, 9.0]))
    tensor([0.5000, 0.0000, 0.5000, 1.0000])
    """
    below = (scores.unsqueeze(1) > scores).sum(1)
    tied = (scores.unsqueeze(1) == scores).sum(1) - 1
    return (below + tied / 2) / max(1, len(scores) - 1)


SCALES: dict[Scale, Callable[[Tensor], Tensor]] = {
    "standardized": standardized,
    "ranks": ranks,
    "values": lambda scores: scores,
}


class Ranking:
    """One score per channel from several analyses: the mean of what ranks, and a share of what speaks of redundancy.

    With one analysis that ranks and none of redundancy the scores are that analysis's own. Otherwise each analysis's
    scores of a group are brought to one scale, and redundancy's mean counts `weight` times.

    Args:
        findings: what the analyses found.
        rank_by: the analyses whose importance ranks; at least one.
        redundancy_by: the analyses whose importance says how little of a filter others know.
        weight: of redundancy against the ranking, 0 or more.
        reduce: how several layers of a group are joined.
        scale: what scores are brought to before they are joined.

    Raises:
        UserError: for an analysis that did not run or gives no importance.
    """

    def __init__(
        self,
        findings: Sequence[Finding],
        rank_by: str | Sequence[str],
        redundancy_by: Sequence[str] = (),
        weight: float = 0.5,
        reduce: Reduce = "mean",
        scale: Scale = "standardized",
    ) -> None:
        main = [rank_by] if isinstance(rank_by, str) else list(rank_by)
        if not main:
            raise UserError("[plan] rank_by is empty; name at least one analysis")
        if main == [BEST]:
            raise UserError(
                f"rank_by = '{BEST}' tries several rankings on validation data, as the steps of a recipe do; name an "
                "analysis here"
            )
        self.main = [finding_named(findings, name, "rank_by") for name in main]
        self.more = [
            finding_named(findings, name, "redundancy_by") for name in redundancy_by if name not in main and weight
        ]
        self.weight, self.reduce, self.scale = weight, reduce, scale

    @property
    def key(self) -> str:
        """The analyses that rank, as `[choose] among` joins them."""
        return "+".join(finding.analysis for finding in self.main)

    @property
    def name(self) -> str:
        """Who ranks, in words."""
        names = " and ".join(finding.analysis for finding in self.main)
        return names + (f" with {' and '.join(finding.analysis for finding in self.more)}" if self.more else "")

    def of(self, groups: Iterable[ChannelGroup]) -> dict[str, Tensor]:
        """The scores of each of these groups, by its name."""
        return {group.name: self.scores(group) for group in groups}

    def scores(self, group: ChannelGroup) -> Tensor:
        """One score per channel (`width`); the larger, the longer it stays.

        Raises:
            UserError: where an analysis that ranks scores no layer of the group, or a score is NaN.
        """
        rows = [group_scores(finding, group, self.reduce, self.scale) for finding in self.main]
        # What merely speaks of redundancy need not know every layer.
        more = [
            group_scores(finding, group, self.reduce, self.scale) for finding in self.more if _knows(finding, group)
        ]
        if len(rows) == 1 and not more:
            return rows[0]
        to_scale = SCALES["standardized" if self.scale == "values" else self.scale]
        joined = torch.stack([to_scale(row) for row in rows]).mean(0)
        return joined + self.weight * torch.stack([to_scale(row) for row in more]).mean(0) if more else joined


@in_range("[plan]")
def rank(
    findings: Sequence[Finding],
    graph: ChannelGraph,
    rank_by: str | Sequence[str] = "response_information",
    redundancy_by: Sequence[str] = (),
    redundancy_weight: SignalWeight = 0.5,
    reduce: Reduce = "mean",
    scale: Scale = "standardized",
) -> dict[str, Tensor]:
    """One score per channel for every group that can be cut, as a plan with the same options ranks them.

    >>> from infoprune.graph.channels import Member
    >>> group = ChannelGroup("a", 2, (Member("a", "out", ((0,), (1,))),))
    >>> found = Finding("l2", importance={"a": torch.tensor([0.5, 2.0])})
    >>> rank([found], ChannelGraph((group,), (), (3, 8, 8)), "l2")["a"].tolist()
    [0.5, 2.0]

    Args:
        findings: what the analyses found; those in `rank_by` must be among them.
        graph: channel groups, from `channel_graph`.
        rank_by: the analysis whose importance ranks the channels, or several, which count alike.
        redundancy_by: analyses whose importance is added as a signal of redundancy.
        redundancy_weight: of these signals against the ranking's.
        reduce: how the scores of several layers in one group become one score per channel.
        scale: what the scores of several layers or analyses are brought to before they are joined.

    Returns:
        Per group a score per channel (`width`); the larger, the longer it stays.

    Raises:
        UserError: for an analysis that did not run or gives no usable score, or a weight out of range.
    """
    ranking = Ranking(findings, rank_by, redundancy_by, redundancy_weight, reduce, scale)
    return ranking.of(group for group in graph.groups if not group.refusal)


def finding_named(findings: Sequence[Finding], name: str, option: str) -> Finding:
    """The finding of an analysis that gives importance.

    Raises:
        UserError: where it did not run or gives none.
    """
    known = {finding.analysis: finding for finding in findings}
    if name not in known:
        raise UserError(f"[plan] {option} = '{name}', but no such analysis ran{did_you_mean(name, known)}")
    if not known[name].importance:
        able = [finding.analysis for finding in findings if finding.importance]
        raise UserError(f"'{name}' gives no importance to rank by; analyses that do: {', '.join(able) or 'none ran'}")
    return known[name]


def best(scores: Tensor, width: int, partitions: int) -> tuple[int, ...]:
    """The `width` best channels; with partitions, the best positions by mean over the parts. Ties go to the first.

    >>> best(torch.tensor([1.0, 4.0, 3.0, 2.0]), 2, 1)
    (1, 2)
    """
    part = len(scores) // partitions
    order = torch.argsort(scores.view(partitions, part).mean(0), descending=True, stable=True)
    chosen = sorted(order[: width // partitions].tolist())
    return tuple(channel + part * i for i in range(partitions) for channel in chosen)


def _knows(finding: Finding, group: ChannelGroup) -> bool:
    return any(member.side == "out" and member.layer in finding.importance for member in group.members)

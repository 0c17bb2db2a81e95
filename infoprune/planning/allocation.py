"""How the loss is shared among channel groups: one level for all, raised until the budget is used up."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from infoprune.graph.channels import ChannelGroup
from infoprune.planning.budget import Budget


@dataclass(frozen=True)
class Span:
    """The widths that one group may have: from `floor` to `top` in multiples of `step`, or its full width."""

    group: ChannelGroup
    floor: int
    top: int
    step: int

    def clamp(self, width: float) -> int:
        """The widest allowed that is no wider."""
        down = math.floor(width / self.step + 1e-9) * self.step
        return max(self.floor, self.top if width >= self.top else down)

    def wider(self, width: int) -> int:
        """One step up."""
        return min(self.top, width + self.step)


ShareOf = Callable[[ChannelGroup, float], float]


def uniform(group: ChannelGroup, level: float) -> float:
    """Every group keeps the same share of its channels."""
    return level


def in_proportion(recommended: Mapping[str, int]) -> ShareOf:
    """Every group has its recommended width at level 0.5, a common part of it below, and nears its full width above.

    >>> group = ChannelGroup("a", 16, ())
    >>> [round(in_proportion({"a": 8})(group, level), 3) for level in (0.25, 0.5, 0.75, 1.0)]
    [0.25, 0.5, 0.794, 1.0]
    """

    def share_of(group: ChannelGroup, level: float) -> float:
        share = recommended.get(group.name, group.width) / group.width
        return share * 2 * level if level < 0.5 else float(share ** ((1 - level) / level))

    return share_of


def above_one_threshold(scores: Mapping[str, Tensor]) -> ShareOf:
    """Every group keeps the share of its channels that lie above one threshold for all groups.

    Scales of layers cannot be compared, shapes can: scores are shifted to be positive, then taken relative to their
    group's mean.
    """
    relative = {}
    for name, own in scores.items():
        positive = own - own.min()
        relative[name] = positive / positive.mean().clamp_min(torch.finfo(positive.dtype).tiny)
    thresholds = torch.cat(list(relative.values())).sort(descending=True).values

    def share_of(group: ChannelGroup, level: float) -> float:
        cut = thresholds[min(len(thresholds) - 1, int(level * (len(thresholds) - 1)))]
        return float((relative[group.name] >= cut).double().mean())

    return share_of


def meet(budget: Budget, spans: Sequence[Span], share_of: ShareOf) -> dict[str, int]:
    """The widths of the highest level that keeps the budget, then single steps while any still fits.

    Args:
        budget: the limits; the floors of all spans keep them.
        spans: the widths that each group may have.
        share_of: the share of its channels that a group keeps at a level, more at a higher one; level 0 is all floors.
    """

    def widths_at(level: float) -> tuple[dict[str, int], dict[str, float]]:
        wanted = {span.group.name: share_of(span.group, level) * span.group.width if level else 0.0 for span in spans}
        return {span.group.name: span.clamp(wanted[span.group.name]) for span in spans}, wanted

    low, high = 0.0, 1.0
    if budget.met(widths_at(high)[0]):
        return widths_at(high)[0]
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if budget.met(widths_at(middle)[0]) else (low, middle)
    widths, wanted = widths_at(low)
    # Rounding down left some of the budget: give it back where it took the most.
    widen(budget, spans, lambda span: widths[span.group.name] - wanted[span.group.name], widths)
    return widths


def widen(budget: Budget, spans: Sequence[Span], turn: Callable[[Span], float], widths: dict[str, int]) -> None:
    """Gives groups single steps more, one each in every round, until no step keeps the budget.

    Args:
        budget: the limits.
        spans: the widths that each group may have.
        turn: asked before each round; the least goes first.
        widths: changed in place.
    """
    left = list(spans)
    while left:  # a step that the budget does not allow is not allowed when others are wider either
        left = [span for span in sorted(left, key=turn) if _stepped(budget, span, widths)]


def _stepped(budget: Budget, span: Span, widths: dict[str, int]) -> bool:
    before = widths[span.group.name]
    widths[span.group.name] = span.wider(before)
    if widths[span.group.name] != before and budget.met(widths):
        return True
    widths[span.group.name] = before
    return False

"""Which groups may be cut, how far, and in which steps."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from infoprune.errors import UserError, did_you_mean
from infoprune.graph.channels import ChannelGraph, ChannelGroup


@dataclass(frozen=True)
class Constraints:
    """What a recipe allows.

    Attributes:
        round_to: widths are multiples of this.
        min_width: least number of channels in a group.
        min_share: least share of a group's channels, 0..1.
        protect: patterns (`layer1.*`) of groups or layers that stay whole.
        only: patterns of the groups or layers that may be cut; empty for all.
    """

    round_to: int = 1
    min_width: int = 1
    min_share: float = 0.05
    protect: Sequence[str] = ()
    only: Sequence[str] = ()

    def step(self, group: ChannelGroup) -> int:
        """Widths go in steps that keep both the rounding and the equal parts of grouped layers."""
        return math.lcm(self.round_to, group.partitions)

    def floor(self, group: ChannelGroup) -> int:
        """The least width of a group, a multiple of its step unless that is more than the group has."""
        least = max(self.min_width, math.ceil(self.min_share * group.width))
        return min(group.width, up(least, self.step(group)))

    def refused(self, graph: ChannelGraph) -> dict[str, str]:
        """Groups that stay whole, with the reason.

        Raises:
            UserError: for a pattern that matches nothing.
        """
        for pattern in (*self.protect, *self.only):
            if not any(_matches(group, pattern) for group in graph.groups):
                names = [group.name for group in graph.groups]
                raise UserError(f"the pattern '{pattern}' in [plan] matches no layer{did_you_mean(pattern, names)}")
        reasons = {}
        for group in graph.groups:
            if group.refusal:
                reasons[group.name] = group.refusal
            elif any(_matches(group, pattern) for pattern in self.protect):
                reasons[group.name] = "protected by the recipe"
            elif self.only and not any(_matches(group, pattern) for pattern in self.only):
                reasons[group.name] = "not among the layers that the recipe allows to be cut"
        return reasons


@dataclass(frozen=True)
class Feasibility:
    """How far one group can go, before anything is cut.

    Attributes:
        group: its name.
        width: its channels.
        floor: the least width that the constraints allow; the width itself where it is refused.
        macs, parameters: cost of the layers that it cuts, unpruned (a layer between two groups counts in both).
        saves_macs, saves_parameters: what the network saves if this group alone goes to its floor.
        refusal: why it stays whole; empty where it may be cut.
    """

    group: str
    width: int
    floor: int
    macs: int
    parameters: int
    saves_macs: int
    saves_parameters: int
    refusal: str = ""


def feasibility(graph: ChannelGraph, constraints: Constraints) -> list[Feasibility]:
    """One row per channel group, in the order of the forward pass: what could be cut, what it would save, and why not.

    Args:
        graph: channel groups and costs.
        constraints: what the recipe allows.

    Raises:
        UserError: for a pattern that matches no layer.
    """
    refused, whole = constraints.refused(graph), graph.cost({})
    rows = []
    for group in graph.groups:
        floor = group.width if group.name in refused else constraints.floor(group)
        least, own = graph.cost({group.name: floor}), touched(graph, group).cost({})
        saved = whole.macs - least.macs, whole.parameters - least.parameters
        rows.append(
            Feasibility(group.name, group.width, floor, own.macs, own.parameters, *saved, refused.get(group.name, ""))
        )
    return rows


def touched(graph: ChannelGraph, group: ChannelGroup) -> ChannelGraph:
    """The part of a graph that holds only the layers which a group cuts."""
    layers = {member.layer for member in group.members} | {group.name}
    return ChannelGraph(graph.groups, tuple(cost for cost in graph.costs if cost.layer in layers), graph.input_shape)


def up(width: int, step: int) -> int:
    """The next multiple of a step.

    >>> up(5, 4), up(8, 4)
    (8, 8)
    """
    return -(-width // step) * step


def _matches(group: ChannelGroup, pattern: str) -> bool:
    layers = [group.name, *(member.layer for member in group.members if member.side == "out")]
    return any(fnmatchcase(layer, pattern) for layer in layers)

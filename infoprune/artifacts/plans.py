"""What is kept of a model."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class GroupPlan:
    """What is kept of one channel group.

    Attributes:
        group: the group's name.
        kept: sorted indices of the kept channels, in the original model's coordinates.
        width_before, width_after: number of channels.
        macs_before, macs_after: multiply-accumulates per sample of all layers this group cuts, before and after the
            whole plan (a layer between two groups counts in both).
        reason: which signal decided, in words.
    """

    group: str
    kept: tuple[int, ...]
    width_before: int
    width_after: int
    macs_before: int
    macs_after: int
    reason: str


@dataclass(frozen=True)
class Plan:
    """Which channels stay, in the original model's coordinates.

    Attributes:
        groups: one entry per group that is cut or could have been.
        refused: groups that cannot be cut, with the reason.
        macs_before, macs_after: multiply-accumulates of the whole network per sample.
        input_shape: shape of one input sample; needed to trace the model again.
        notes: what the planner wants said about how the budget was met.
        removed: blocks that give way to the identity; the groups are those of what remains.
    """

    groups: tuple[GroupPlan, ...]
    refused: Mapping[str, str]
    macs_before: int
    macs_after: int
    input_shape: tuple[int, ...]
    notes: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()

    def kept(self) -> dict[str, tuple[int, ...]]:
        """The kept channels of every group that loses some."""
        return {group.group: group.kept for group in self.groups if group.width_after < group.width_before}

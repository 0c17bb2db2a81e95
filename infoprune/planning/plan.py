"""What is kept of a model."""

from collections.abc import Mapping
from dataclasses import dataclass

from infoprune.utils.tables import Table, Tabular


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
class Plan(Tabular):
    """Which channels stay, in the original model's coordinates.

    Attributes:
        groups: one entry per group that is cut or could have been.
        refused: groups that cannot be cut, with the reason.
        macs_before, macs_after: multiply-accumulates of the whole network per sample.
        input_shape: shape of one input sample; needed to trace the model again.
        notes: what the planner wants said about how the budget was met.
        removed: blocks that give way to the identity; the groups are those of what remains.
        ranked_by: the analyses that ranked the channels, joined by "+"; empty where they were not ranked.
    """

    groups: tuple[GroupPlan, ...]
    refused: Mapping[str, str]
    macs_before: int
    macs_after: int
    input_shape: tuple[int, ...]
    notes: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    ranked_by: str = ""

    def kept(self) -> dict[str, tuple[int, ...]]:
        """The kept channels of every group that loses some."""
        return {group.group: group.kept for group in self.groups if group.width_after < group.width_before}

    def table(self) -> Table:
        """One row per channel group; those that stay whole come last."""
        rows = [
            (
                group.group,
                f"{group.width_before} → {group.width_after}",
                f"{group.macs_before:,} → {group.macs_after:,}",
                group.reason,
            )
            for group in self.groups
        ]
        rows += [(name, "whole", "", reason) for name, reason in self.refused.items()]
        share = self.macs_after / max(1, self.macs_before)
        title = f"Plan: {self.macs_before:,} → {self.macs_after:,} multiply-accumulates per sample ({share:.1%})"
        removed = (f"removed blocks: {', '.join(self.removed)}",) if self.removed else ()
        return Table(title, ("group", "channels", "MACs of its layers", "why"), rows, (*removed, *self.notes))

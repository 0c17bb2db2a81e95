"""Which channels hang together in an architecture, and what they cost."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import nn

from infoprune.graph.costs import Cost, CostTable, LayerCost


@dataclass(frozen=True)
class Member:
    """One side of one layer that a channel group cuts.

    Attributes:
        layer: the module's dotted name.
        side: "out" (its filters) or "in" (what it reads of each input).
        channels: for each of the group's channels, the indices that go with it on this side, all of equal count
            (more than one after a flatten).
        axis: of a bare parameter: the one along which its channels lie.
    """

    layer: str
    side: Literal["out", "in"]
    channels: tuple[tuple[int, ...], ...]
    axis: int = 0


@dataclass(frozen=True)
class ChannelGroup:
    """Channels that can only be removed together, across all layers that share them.

    Attributes:
        name: the layer whose filters the channels are counted by; the first of them in the order of the forward pass.
        width: number of channels.
        members: every layer side that is cut along.
        partitions: kept channels must be the same within each of this many equal parts (grouped layer or norm).
        refusal: why the group cannot be pruned; empty where it can.
        parameters: parameters outside layers that are cut along, such as a layer scale, by their dotted names.
    """

    name: str
    width: int
    members: tuple[Member, ...]
    partitions: int = 1
    refusal: str = ""
    parameters: tuple[Member, ...] = ()


@dataclass(frozen=True)
class ChannelGraph:
    """Everything the planner has to know about an architecture.

    Attributes:
        groups: all channel groups, in the order of the forward pass, the refused ones too.
        costs: one entry per layer whose cost depends on a width; convolutions and linear layers come first, in the
            order of the forward pass.
        input_shape: shape of one input sample.
        fixed: what no width changes: parameters and bytes of everything that is not in `costs`.
        removed: blocks of the unpruned model that are left out; the groups are those of what remains.
        whole: cost of the unpruned model with those blocks; `None` where none is left out.
    """

    groups: tuple[ChannelGroup, ...]
    costs: tuple[LayerCost, ...]
    input_shape: tuple[int, ...]
    fixed: Cost = Cost(0, 0, 0)  # noqa: RUF009
    removed: tuple[str, ...] = ()
    whole: Cost | None = None

    @property
    def unpruned(self) -> Cost:
        """Cost of the unpruned model, blocks that are left out included."""
        return self.whole or self.cost({})

    def cost(self, widths: Mapping[str, int]) -> Cost:
        """Cost when the groups named in `widths` have those widths, the others their own."""
        return self._table.cost(widths)

    def macs(self, widths: Mapping[str, int]) -> int:
        """Multiply-accumulates per sample when the groups named in `widths` have those widths, the others their own."""
        return self.cost(widths).macs

    def layer_widths(self, widths: Mapping[str, int]) -> dict[str, tuple[int, int]]:
        """Inputs and outputs of every layer of `costs` when the groups named in `widths` have those widths."""
        inputs, outputs = self._table.widths(widths)
        return {
            cost.layer: (round(read), round(own)) for cost, read, own in zip(self.costs, inputs, outputs, strict=True)
        }

    @cached_property
    def _table(self) -> CostTable:
        cuts = {
            group.name: [(member.layer, member.side, len(member.channels[0])) for member in group.members]
            for group in self.groups
        }
        return CostTable(self.costs, {group.name: group.width for group in self.groups}, cuts, self.fixed)


def width_of(layer: nn.Module) -> int:
    """Number of filters (output channels) of a convolution, linear or normalisation layer.

    >>> width_of(nn.Conv2d(3, 8, 1))
    8

    Raises:
        TypeError: for any other kind of layer.
    """
    for attribute in ("out_channels", "out_features", "num_features", "num_channels"):
        width = getattr(layer, attribute, None)
        if isinstance(width, int):
            return width
    if isinstance(getattr(layer, "normalized_shape", None), tuple):
        return int(torch.Size(layer.normalized_shape).numel())  # type: ignore[arg-type]
    raise TypeError(f"a {type(layer).__name__} has no width")


Kept = Mapping[str, Sequence[int]]


Sides = dict[tuple[str, str], list[int]]


def removed_sides(graph: ChannelGraph, kept: Kept) -> Sides:
    """The indices that a cut takes out of each layer side, (layer, "out" or "in") -> sorted indices.

    Args:
        graph: channel groups of the unpruned model.
        kept: kept channel indices per group; groups not named keep all.
    """
    sides: dict[tuple[str, str], set[int]] = {}
    for group in graph.groups:
        gone = set(range(group.width)) - set(kept.get(group.name, range(group.width)))
        for member in group.members if gone else ():
            indices = {index for channel in gone for index in member.channels[channel]}
            sides.setdefault((member.layer, member.side), set()).update(indices)
    return {side: sorted(indices) for side, indices in sides.items()}

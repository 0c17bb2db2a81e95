"""Which channels hang together in an architecture, and what they cost."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn


@dataclass(frozen=True)
class Member:
    """One side of one layer that a channel group cuts.

    Attributes:
        layer: the module's dotted name.
        side: "out" (its filters) or "in" (what it reads of each input).
        channels: for each of the group's channels, the indices that go with it on this side, all of equal count
            (more than one after a flatten).
    """

    layer: str
    side: Literal["out", "in"]
    channels: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class ChannelGroup:
    """Channels that can only be removed together, across all layers that share them.

    Attributes:
        name: the layer whose filters the channels are counted by; the first of them in the order of the forward pass.
        width: number of channels.
        members: every layer side that is cut along.
        partitions: kept channels must be the same within each of this many equal parts (grouped convolution).
        refusal: why the group cannot be pruned; empty where it can.
    """

    name: str
    width: int
    members: tuple[Member, ...]
    partitions: int = 1
    refusal: str = ""


@dataclass(frozen=True)
class LayerCost:
    """Cost of one convolution or linear layer as a function of its widths.

    Attributes:
        layer: the module's dotted name.
        inputs, outputs: its widths in the unpruned model.
        macs: multiply-accumulates per sample of the unpruned layer.
        depthwise: whether each filter reads its own channel only, so that cost grows with one width.
    """

    layer: str
    inputs: int
    outputs: int
    macs: int
    depthwise: bool = False


@dataclass(frozen=True)
class ChannelGraph:
    """Everything the planner has to know about an architecture.

    Attributes:
        groups: all channel groups, in the order of the forward pass, the refused ones too.
        costs: one entry per convolution and linear layer, in the order of the forward pass.
        input_shape: shape of one input sample.
    """

    groups: tuple[ChannelGroup, ...]
    costs: tuple[LayerCost, ...]
    input_shape: tuple[int, ...]

    def macs(self, widths: Mapping[str, int]) -> int:
        """Multiply-accumulates per sample when the groups named in `widths` have those widths, the others their own."""
        cut: dict[tuple[str, str], int] = {}
        for group in self.groups:
            removed = group.width - widths.get(group.name, group.width)
            for member in group.members if removed else ():
                key = (member.layer, member.side)
                cut[key] = cut.get(key, 0) + removed * len(member.channels[0])
        total = 0
        for cost in self.costs:
            outputs = cost.outputs - cut.get((cost.layer, "out"), 0)
            inputs = cost.inputs - cut.get((cost.layer, "in"), 0)
            share = outputs / cost.outputs if cost.depthwise else outputs * inputs / (cost.outputs * cost.inputs)
            total += round(cost.macs * share)
        return total


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

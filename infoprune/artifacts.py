"""The nouns, in the order in which the flow makes them: a layer's view, findings, channel groups, the plan, metrics."""

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn

Value = TypeVar("Value")


class Memo:
    """Computes a thing for whoever asks first and hands the same thing to whoever asks next."""

    def __init__(self) -> None:
        self._kept: dict[Hashable, Any] = {}

    def once(self, key: Hashable, compute: Callable[[], Value]) -> Value:
        """The value under `key`, computed at the first call."""
        if key not in self._kept:
            self._kept[key] = compute()
        value: Value = self._kept[key]
        return value


class BatchView(Memo):
    """One calibration batch as every layer sees it.

    Attributes:
        inputs: the network's input, `samples x channels x height x width`.
        labels: class indices, `samples`; `None` where the batches carry none.
        index: number of this batch, from 0.
    """

    def __init__(self, inputs: Tensor, labels: Tensor | None, index: int) -> None:
        super().__init__()
        self.inputs, self.labels, self.index = inputs, labels, index


class LayerView(Memo):
    """One layer on one calibration batch; it dies with the forward hook that made it.

    Attributes:
        layer: the module's dotted name in the model.
        module: the layer itself.
        activations: what it put out, `samples x filters [x height x width]`, detached.
        gradients: loss gradient at that output, same shape; `None` unless an analysis asked for gradients.
        batch: what all layers share on this batch.
    """

    def __init__(
        self, layer: str, module: nn.Module, activations: Tensor, batch: BatchView, gradients: Tensor | None = None
    ) -> None:
        super().__init__()
        self.layer, self.module, self.activations, self.gradients = layer, module, activations, gradients
        self.batch = batch


@dataclass(frozen=True)
class Measure:
    """One figure of a layer, or one per filter.

    Attributes:
        value: a number (`()`) for the layer or one per filter (`filters`), averaged over mini-batches.
        low: lower end of the 95 % interval over mini-batches, shaped as `value`; `None` with fewer than two batches.
        high: its upper end.
        unit: "bits" unless said otherwise.
    """

    value: Tensor
    low: Tensor | None = None
    high: Tensor | None = None
    unit: str = "bits"


@dataclass(frozen=True)
class Flag:
    """A reason not to conclude from a layer's figures."""

    layer: str
    kind: Literal["saturated", "undefined"]
    reason: str


@dataclass(frozen=True)
class Finding:
    """What one analysis knows about a model.

    Attributes:
        analysis: its name in the recipe.
        importance: per layer, one score per filter (`filters`); the larger, the more reason to keep the filter.
        widths: per layer, the recommended number of filters.
        removable: names of blocks that the analysis would remove.
        measures: per layer, named figures.
        flags: what not to trust, and why.
    """

    analysis: str
    importance: Mapping[str, Tensor] = field(default_factory=dict)
    widths: Mapping[str, int] = field(default_factory=dict)
    removable: tuple[str, ...] = ()
    measures: Mapping[str, Mapping[str, Measure]] = field(default_factory=dict)
    flags: tuple[Flag, ...] = ()


@runtime_checkable
class Analysis(Protocol):
    """What a file under `analyses/` defines: the constructor's keyword arguments are its options.

    Attributes:
        observes: the kinds of module it wants to see.
        needs_gradients: whether views must carry the loss gradient at the layer's output.
        needs_labels: whether it can work without labels.
    """

    observes: tuple[type[nn.Module], ...]
    needs_gradients: bool
    needs_labels: bool

    def observe(self, view: LayerView) -> None:
        """Adds one layer on one batch to running sums."""

    def conclude(self) -> Finding:
        """Turns the running sums into a finding."""


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
    """

    groups: tuple[GroupPlan, ...]
    refused: Mapping[str, str]
    macs_before: int
    macs_after: int
    input_shape: tuple[int, ...]
    notes: tuple[str, ...] = ()

    def kept(self) -> dict[str, tuple[int, ...]]:
        """The kept channels of every group that loses some."""
        return {group.group: group.kept for group in self.groups if group.width_after < group.width_before}


@dataclass(frozen=True)
class EpochRecord:
    """One epoch of training: losses in nats per sample, accuracies 0..1; validation is NaN where there is none."""

    epoch: int
    learning_rate: float
    train_loss: float
    train_accuracy: float
    validation_loss: float
    validation_accuracy: float
    seconds: float


@dataclass(frozen=True)
class Score:
    """How a model does on a split: share of correct predictions 0..1, mean cross-entropy in nats, number of samples."""

    accuracy: float
    loss: float
    samples: int


@dataclass(frozen=True)
class Latency:
    """Time of one forward pass in milliseconds over repeated runs."""

    median: float
    iqr: float
    batch: int
    device: str
    threads: int


@dataclass(frozen=True)
class Verification:
    """Largest difference between the outputs of the pruned model and of its masked twin.

    Attributes:
        max_abs_difference: in units of the output.
        max_rel_difference: relative to the largest absolute output of the masked twin.
        dtype: the precision in which it was decided.
    """

    max_abs_difference: float
    max_rel_difference: float
    dtype: str


@dataclass(frozen=True)
class StageMetrics:
    """One row of the final table.

    Attributes:
        accuracy: share of correct predictions on the test split, 0..1.
        loss: mean cross-entropy there, in nats.
        parameters: number of trainable and frozen parameters, buffers not counted.
        macs: multiply-accumulates per sample of convolutions and matrix products.
        bytes: size of the weights file.
        latency_ms: one forward pass.
    """

    accuracy: float
    loss: float
    parameters: int
    macs: int
    bytes: int
    latency_ms: Latency


@dataclass(frozen=True)
class ModelReference:
    """How to build the unpruned architecture again.

    Attributes:
        name: a model family of ours, or the user's own `package.module:function`.
        arguments: keyword arguments for it.
    """

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)


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

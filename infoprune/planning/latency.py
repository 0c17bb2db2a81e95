"""How long layers take at several widths."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from infoprune.config.ranges import BatchSize, PositiveShare, Repeats, in_range
from infoprune.errors import UserError
from infoprune.evaluation.metrics import Latency
from infoprune.evaluation.profile import measure_latency
from infoprune.graph.channels import ChannelGraph, width_of
from infoprune.planning.plan import Plan
from infoprune.utils.module_mode import evaluating


@dataclass(frozen=True)
class LayerTimes:
    """Milliseconds of one layer alone over a grid of widths, each ending with its own.

    Attributes:
        inputs, outputs: widths tried, rising; a depthwise layer has one input width.
        milliseconds: `outputs x inputs`.

    Raises:
        ValueError: where the numbers of widths and times do not fit.
    """

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    milliseconds: tuple[tuple[float, ...], ...]

    def __post_init__(self) -> None:
        rows, columns = len(self.outputs), len(self.inputs)
        if not rows or not columns or [len(row) for row in self.milliseconds] != rows * [columns]:
            raise ValueError(f"{rows} x {columns} widths need as many milliseconds")

    def at(self, inputs: float, outputs: float) -> float:
        """Straight between the widths tried, along both.

        >>> LayerTimes((2, 4), (4,), ((1.0, 3.0),)).at(3, 4)
        2.0
        """
        rows = [np.interp(inputs, self.inputs, row) for row in self.milliseconds]
        return float(np.interp(outputs, self.outputs, rows))


@dataclass(frozen=True)
class Timings:
    """What predicts the time of a forward pass from widths: `rest + scale * sum of the layers' times`.

    Attributes:
        layers: per convolution or linear layer, its times alone.
        scale, rest: fitted to whole networks at several widths; `rest` in milliseconds.
        whole: milliseconds of the unpruned network.
        error: largest relative error of the prediction for the networks of the fit.
        batch, device, threads: what was timed.
    """

    layers: Mapping[str, LayerTimes]
    scale: float
    rest: float
    whole: float
    error: float
    batch: int
    device: str
    threads: int

    def predict(self, graph: ChannelGraph, widths: Mapping[str, int]) -> float:
        """Milliseconds of a forward pass when groups have these widths, the others their own."""
        return self.rest + self.scale * sum_of(self.layers, graph, widths)


def sum_of(layers: Mapping[str, LayerTimes], graph: ChannelGraph, widths: Mapping[str, int]) -> float:
    """Milliseconds of all layers alone, one after the other."""
    found = graph.layer_widths(widths)
    return sum(times.at(*found[name]) for name, times in layers.items() if name in found)


Build = Callable[[Mapping[str, int]], nn.Module]
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
# Whole networks are timed at these shares of all widths, to learn what layers alone do not show.
WHOLE_SHARES = (1.0, 0.7, 0.4)
# How often a plan for a latency is corrected by what the pruned network really takes, and by how much it may miss it.
CORRECTIONS, CLOSE = 3, 1.02


@in_range("[timings]")
def measure_timings(
    model: nn.Module,
    example: Tensor,
    graph: ChannelGraph,
    narrowed: Callable[[float], tuple[nn.Module, Mapping[str, int]]],
    on_step: Callable[[int, int], None] | None = None,
    *,
    shares: Sequence[PositiveShare] = (0.25, 0.5, 0.75, 1.0),
    batch: BatchSize = 1,
    repeats: Repeats = 20,
) -> Timings:
    """Times every convolution and linear layer at several widths, and whole networks to calibrate their sum.

    Layers of equal shape are timed once. The prediction is the sum of the layers' times, straight between the widths
    tried, times a factor plus a constant, both fitted to whole networks at three widths: norms, activations and the
    calls themselves are in there. No layer is taken to be slower than a wider one.

    Args:
        model: the unpruned network; not touched.
        example: real inputs, `samples x channels x height x width`.
        graph: its channel groups.
        narrowed: gives the network with every group at a share of its width, and those widths.
        on_step: told after each layer the number of layers done and of all.
        shares: of a layer's inputs and of its filters, above 0 and up to 1.
        batch: samples per forward pass.
        repeats: timed forward passes; their median counts.

    Raises:
        UserError: for options out of range.
    """
    check_options(shares=shares)
    images = example[torch.arange(batch, device=example.device) % len(example)]
    names = [cost.layer for cost in graph.costs if cost.macs]
    inputs = _inputs(model, images, names)
    known: dict[Any, LayerTimes] = {}
    layers: dict[str, LayerTimes] = {}
    for done, (name, given) in enumerate(inputs.items(), start=1):
        module = model.get_submodule(name)
        key = (_shape(module), tuple(given.shape))
        if key not in known:
            known[key] = _times(module, given, sorted({*shares, 1.0}), repeats)
        layers[name] = known[key]
        if on_step is not None:
            on_step(done, len(inputs))
    points = []
    for share in WHOLE_SHARES:
        network, widths = (model, {}) if share == 1 else narrowed(share)
        points.append((widths, measure_latency(network, images, repeats=2 * repeats)))
    return _fitted(layers, graph, points)


def check_options(*, shares: Sequence[float], **_: object) -> None:
    """Raises UserError where `measure_timings` would have no width to time."""
    if not shares:
        raise UserError("[timings] shares = []: expected at least one number above 0 and up to 1")


def plan_within(
    asked: float, whole: float, plan_for: Callable[[float], Plan], time_of: Callable[[Plan], float]
) -> tuple[Plan, float]:
    """A plan whose network takes a share of the unpruned one's time as measured; predictions are aimed lower till then.

    Args:
        asked: the share (0..1].
        whole: milliseconds of the unpruned network.
        plan_for: a plan that is predicted to take a share.
        time_of: the milliseconds that a plan's network takes.

    Returns:
        The last plan that was made, and its milliseconds, which may still be too many.

    Raises:
        UserError: if not even predictions come down to the share.
    """
    target = asked
    found = plan_for(target)
    taken = time_of(found)
    for _ in range(CORRECTIONS):
        if taken <= CLOSE * asked * whole:
            break
        target *= asked * whole / taken
        try:
            found = plan_for(target)
        except UserError:  # what was asked for is in reach, only the correction is not
            break
        taken = time_of(found)
    return found, taken


def _inputs(model: nn.Module, images: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
    """What each layer reads in its first call."""
    found: dict[str, Tensor] = {}

    def keep(name: str, given: tuple[Tensor, ...], named: Mapping[str, Tensor]) -> None:
        found.setdefault(name, torch.rand_like(next(iter((*given, *named.values())))))

    handles = [
        model.get_submodule(name).register_forward_pre_hook(
            lambda _, given, named, name=name: keep(name, given, named), with_kwargs=True
        )
        for name in names
    ]
    try:
        with evaluating(model), torch.no_grad():
            model(images)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _shape(module: nn.Module) -> tuple[Any, ...]:
    weight: Any = module.weight
    options = (getattr(module, name, None) for name in ("stride", "padding", "dilation", "groups"))
    return (type(module), tuple(weight.shape), module.bias is not None, *options)


def _times(module: Any, given: Tensor, shares: Sequence[float], repeats: int) -> LayerTimes:
    """A layer of the same kind at each pair of widths."""
    groups = getattr(module, "groups", 1)
    reads = module.weight.shape[1] * groups
    depthwise = groups == reads == width_of(module) > 1
    inputs = [reads] if depthwise else _widths(reads, shares, groups)
    outputs = _widths(width_of(module), shares, 1 if depthwise else groups)
    rows = []
    for own in outputs:
        row = []
        for read in inputs:
            layer = _like(module, own if depthwise else read, own, given)
            size = own if depthwise else read
            narrow = given[..., :size] if isinstance(module, nn.Linear) else given[:, :size]
            row.append(measure_latency(layer, narrow.contiguous(), repeats=repeats, warmup=3).median)
        rows.append(row)
    # A narrower layer that took longer did so by chance, or could be padded: predictions never rise as widths fall.
    times = np.array(rows)[::-1, ::-1]
    for axis in (0, 1):
        times = np.minimum.accumulate(times, axis)
    return LayerTimes(tuple(inputs), tuple(outputs), tuple(tuple(row) for row in times[::-1, ::-1].tolist()))


def _widths(width: int, shares: Sequence[float], step: int) -> list[int]:
    return sorted({max(step, round(share * width / step) * step) for share in shares} | {width})


def _like(module: Any, inputs: int, outputs: int, given: Tensor) -> nn.Module:
    bias = module.bias is not None
    where: Any = {"device": given.device, "dtype": given.dtype}
    if isinstance(module, nn.Linear):
        return nn.Linear(inputs, outputs, bias, **where)
    kind: Any = next(each for each in CONVOLUTIONS if isinstance(module, each))
    groups = outputs if module.groups == module.in_channels > 1 else module.groups
    shape = (module.kernel_size, module.stride, module.padding, module.dilation, groups)
    layer: nn.Module = kind(inputs, outputs, *shape, bias, **where)
    return layer


def _fitted(
    layers: Mapping[str, LayerTimes], graph: ChannelGraph, points: Sequence[tuple[Mapping[str, int], Latency]]
) -> Timings:
    """Least squares of the whole networks' times on the sums of their layers'."""
    sums = np.array([sum_of(layers, graph, widths) for widths, _ in points])
    times = np.array([latency.median for _, latency in points])
    scale, rest = np.polyfit(sums, times, 1) if np.ptp(sums) > 0 else (0.0, times[0])
    if scale <= 0 or rest < 0:  # noise; the sum alone then
        scale, rest = float((sums @ times) / (sums @ sums)), 0.0
    error = float(np.abs((rest + scale * sums) / times - 1).max())
    whole = points[0][1]
    return Timings(layers, float(scale), float(rest), whole.median, error, whole.batch, whole.device, whole.threads)

"""Refits in closed form the layers that read pruned channels, from the input of the network to its output."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from infoprune.errors import UserError
from infoprune.graph.channels import ChannelGraph, width_of
from infoprune.repairing.graph_replay import Batches, Hooked, Lockstep, Site, Walker, find_sites
from infoprune.repairing.ridge import STRENGTHS, Call, Fit, Moments, fit, rows
from infoprune.utils import distributed
from infoprune.utils.module_mode import evaluating

LAYERS = (nn.Conv1d, nn.Conv2d, nn.Linear)
POSITIONS = 64  # of a map, per image: all 1,024 took twice the time for 0.3 % less held-out error (ResNet-20)
HELD_OUT = 4  # every fourth sample chooses the ridge strength
Scope = Literal["consumers", "all"]


@dataclass(frozen=True)
class LayerRepair:
    """What the refit of one layer came to.

    Attributes:
        layer: its dotted name.
        target: "sum" where it took in the shortcut's error, "norm" for the response behind its batch norm, "output"
            for its own; of gradient steps on what ends here, "block", or "predictions" with errors in nats.
        strength: ridge strength, relative to the mean variance of the inputs; infinite where nothing was better.
        error_before, error_after: mean squared error on held-out samples, over the target's mean square.
    """

    layer: str
    target: Literal["sum", "norm", "output", "block", "predictions"]
    strength: float
    error_before: float
    error_after: float


@dataclass(frozen=True)
class Repair:
    """What a repair did: one entry per refitted layer, in order, and what is worth saying about the rest."""

    layers: tuple[LayerRepair, ...] = ()
    notes: tuple[str, ...] = ()

    def __add__(self, other: "Repair") -> "Repair":
        return Repair((*self.layers, *other.layers), (*self.notes, *other.notes))


def compensate(
    pruned: nn.Module,
    teacher: nn.Module,
    graph: ChannelGraph,
    kept: Mapping[str, Sequence[int]],
    batches: Batches,
    on_step: Callable[[int, int], None] | None = None,
    *,
    scope: Scope = "consumers",
    ridge: float | None = None,
    positions: int = POSITIONS,
    cache_mb: int = 2048,
    inputs_limit: int = 8192,
) -> Repair:
    """Refits layers of the pruned network so that it answers as the unpruned one did; no labels, no gradients.

    In the order of the forward pass each layer's weights become the ridge regression from what the **pruned** network
    feeds it to what the **unpruned** network puts out there, behind the layer's batch norm, at the kept channels. Where
    the layer ends in a residual sum, the target is the unpruned sum minus what the pruned shortcut contributes, so that
    the shortcut's error is taken in too. The idea is that of He, Zhang and Sun, "Channel pruning for accelerating very
    deep neural networks", ICCV 2017, equation 1 and section 3.3.

    No module changes its type, name or shape: scale and offset go into the batch norm, whose statistics become those
    of the refitted layer, or into the bias. Memory: normal matrices of 3·8·(k²·C)² bytes for a layer that reads C
    channels through k x k weights (0.5 GB at 4,608 inputs), and the cache.

    Args:
        pruned: changed in place; its modes are afterwards as before.
        teacher: the unpruned network; not touched.
        graph: channel groups of the teacher.
        kept: kept channels per group, in the teacher's coordinates; groups not named kept all.
        batches: pairs of images and anything, iterable again and again; the second is not used.
        on_step: told after each layer the number of layers done and of all.
        scope: refit the "consumers" of pruned groups, or "all" layers behind the first of them.
        ridge: strength relative to the mean variance of a layer's inputs; if not given, the best on held-out samples.
        positions: rows taken from each image's map of a layer, drawn at random; 0 for all.
        cache_mb: memory for activations kept between layers, in MiB; where they do not fit, batches are run again.
        inputs_limit: layers with more inputs (channels times kernel size) than this stay as they are.

    Raises:
        UserError: for no batches, NaN or infinite activations, or networks that do not fit `graph` and `kept`.
    """
    outputs, consumers = kept_outputs(pruned, teacher, graph, kept)
    images = first_images(batches, pruned)
    done: list[LayerRepair] = []
    with evaluating(pruned), evaluating(teacher), torch.no_grad():
        run, sites, notes = _prepare(
            pruned, teacher, _layers(pruned, graph, consumers, scope), images, batches, cache_mb, graph.removed
        )
        for count, site in enumerate(sites, start=1):
            module: Any = pruned.get_submodule(site.layer)
            if module.weight[0].numel() > inputs_limit:
                notes.append(f"'{site.layer}' reads more than {inputs_limit} values and stays as it is")
            elif (
                moments := gather(run.collect(site), site.layer, module, outputs[site.layer], positions, batches)
            ) is None:
                notes.append(f"'{site.layer}' does not use its weight as it stands, and stays as it is")
            else:
                done.append(_refit(pruned, site, moments, STRENGTHS if ridge is None else (ridge,)))
            if on_step is not None:
                on_step(count, len(sites))
    return Repair(tuple(done), tuple(notes))


def _prepare(
    pruned: nn.Module,
    teacher: nn.Module,
    layers: Collection[str],
    images: Tensor,
    batches: Batches,
    cache_mb: int,
    leaves: Collection[str],
) -> tuple[Lockstep | Hooked, list[Site], list[str]]:
    """How to run the two networks side by side, and where to stop."""
    try:
        walkers = Walker(teacher, leaves), Walker(pruned, leaves)
        shapes = walkers[0].shapes(images[:1])
    except Exception as error:  # Tracing and replaying fail in as many ways as there are models.
        notes = [
            f"the model cannot be traced ({type(error).__name__}), so sums and norms are not found: every layer is "
            "refitted to its own output"
        ]
        run = Hooked(teacher, pruned, batches, images.device)
        return run, run.find_sites(layers, images[:1]), notes
    sites = find_sites(walkers[1], pruned, layers, shapes)
    missing = sorted(set(layers) - {site.layer for site in sites})
    notes = (
        [f"not called exactly once, or not as modules, and left as they are: {', '.join(missing)}"] if missing else []
    )
    return Lockstep(*walkers, batches, cache_mb << 20, images.device), sites, notes


def gather(
    visits: Iterator[tuple[Call | None, Tensor, Tensor | None]],
    layer: str,
    module: Any,
    channels: Sequence[int],
    positions: int = POSITIONS,
    batches: Batches = (),
) -> tuple[Moments, Moments] | None:
    """Sums of the rows for fitting and of the held-out ones; `None` where the layer's weight is not what is used.

    Where `batches` are this process's share, the sums are those of all processes.
    """
    train = held_out = None
    first, stride = getattr(batches, "rank", 0), distributed.sharers(batches)
    for place, (call, target, contributed) in enumerate(visits):
        # By batch, so that a process draws and holds out of its share what one process alone would.
        generator, seen = torch.Generator().manual_seed(first + stride * place), 0
        if call is None:
            return None
        axis = -1 if call.function == "linear" else 1
        target = target.index_select(axis, torch.as_tensor(channels, device=target.device))
        if contributed is not None:
            target = target - contributed
        check_finite(layer, call.x, target)
        groups = call.options.get("groups", 1)
        if train is None or held_out is None:
            inputs = module.weight[0].numel()
            train, held_out = (Moments(groups, inputs, len(channels) // groups, target.device) for _ in range(2))
        for x, y in rows(call, target, module.weight, groups, positions, generator):
            held = (torch.arange(seen, seen + x.shape[2], device=x.device) % HELD_OUT) == HELD_OUT - 1
            seen += x.shape[2]
            for moments, mask in ((train, ~held), (held_out, held)):
                moments.add(x[:, :, mask].flatten(2), y[:, :, mask].flatten(2))
    if train is None or held_out is None:
        return None
    return _joined(train, held_out) if stride > 1 else (train, held_out)


def _joined(*parts: Moments) -> tuple[Moments, Moments]:
    """The sums over the batches of all processes, by one all-reduce."""
    names = [(moments, name) for moments in parts for name in vars(moments)]
    sums = distributed.sum_over_ranks([torch.as_tensor(getattr(moments, name)) for moments, name in names])
    for (moments, name), value in zip(names, sums, strict=True):
        setattr(moments, name, int(value) if name == "count" else value)
    return parts[0], parts[1]


def _refit(pruned: nn.Module, site: Site, moments: tuple[Moments, Moments], strengths: Sequence[float]) -> LayerRepair:
    """Solves for one layer and writes the result into its weights and its norm."""
    module: Any = pruned.get_submodule(site.layer)
    norm: Any = pruned.get_submodule(site.norm) if site.norm else None
    result = fit(
        *moments,
        *as_map(module, norm),
        intercept=norm is not None or module.bias is not None,
        strengths=strengths,
    )
    if result.strength < float("inf"):
        absorb(module, norm, result, moments[0] + moments[1])
    target: Literal["sum", "norm", "output"] = "sum" if site.other is not None else "norm" if norm else "output"
    return LayerRepair(site.layer, target, result.strength, result.error_before, result.error_after)


def as_map(module: Any, norm: Any) -> tuple[Tensor, Tensor]:
    """A layer and the batch norm behind it as one linear map: `groups x outputs x inputs` and `groups x outputs`."""
    weight: Tensor = module.weight.double().flatten(1)
    bias = torch.zeros_like(weight[:, 0]) if module.bias is None else module.bias.double()
    if norm is not None:
        scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
        weight = weight * scale.unsqueeze(1)
        bias = norm.bias.double() + scale * (bias - norm.running_mean.double())
    groups = getattr(module, "groups", 1)
    return weight.view(groups, -1, weight.shape[1]), bias.view(groups, -1)


def absorb(module: Any, norm: Any, result: Fit, moments: Moments) -> None:
    """Writes a fitted map into a layer and the batch norm behind it."""
    weight, bias = result.weight.flatten(0, 1), result.bias.flatten()
    if norm is None:
        _set(module.weight, weight)
        _set(module.bias, bias)
        return
    # Any scale of a filter is the same function behind a batch norm. The old norm of the filter is kept, since the
    # effective learning rate of a later training depends on it, and the statistics are the true ones, so that
    # training mode and a recalibration find what evaluation mode computes.
    length = weight.norm(dim=1).clamp_min(1e-12)
    scale = module.weight.double().flatten(1).norm(dim=1).clamp_min(1e-12) / length
    xx, _ = moments.centred(intercept=True)
    x = moments.x / max(moments.count, 1)
    variance = ((result.weight @ xx) * result.weight).sum(2).flatten().clamp_min(0) * scale.square()
    mean = torch.einsum("gck,gk->gc", result.weight, x).flatten()
    _set(module.weight, weight * scale.unsqueeze(1))
    own = 0.0 if module.bias is None else module.bias.double()
    _set(norm.running_mean, mean * scale + own)
    _set(norm.running_var, variance)
    _set(norm.weight, (variance + norm.eps).sqrt() / scale)
    _set(norm.bias, bias + mean)


def _set(tensor: Tensor | None, values: Tensor) -> None:
    if isinstance(tensor, Tensor):
        tensor.detach().copy_(values.reshape(tensor.shape))


def kept_outputs(
    pruned: nn.Module, teacher: nn.Module, graph: ChannelGraph, kept: Mapping[str, Sequence[int]]
) -> tuple[dict[str, list[int]], set[str]]:
    """Per layer the kept output channels, and the layers whose inputs lost channels."""
    removed: dict[str, set[int]] = {}
    consumers: set[str] = set()
    for group in graph.groups:
        gone = set(range(group.width)) - set(kept.get(group.name, range(group.width)))
        for member in group.members if gone else ():
            if member.side == "out":
                removed.setdefault(member.layer, set()).update(i for c in gone for i in member.channels[c])
            else:
                consumers.add(member.layer)
    outputs: dict[str, list[int]] = {}
    modules = dict(pruned.named_modules())
    for name, module in teacher.named_modules():
        left_out = any(name == block or name.startswith(f"{block}.") for block in graph.removed)
        if isinstance(module, LAYERS) and not left_out:
            outputs[name] = sorted(set(range(width_of(module))) - removed.get(name, set()))
            if name not in modules or width_of(modules[name]) != len(outputs[name]):
                raise UserError(
                    f"'{name}' should have {len(outputs[name])} filters after pruning; give the plan by which this "
                    "network was pruned, and the network that it was pruned from"
                )
    return outputs, consumers


def _layers(pruned: nn.Module, graph: ChannelGraph, consumers: Collection[str], scope: Scope) -> list[str]:
    order = [cost.layer for cost in graph.costs]
    first = min((order.index(name) for name in consumers if name in order), default=len(order))
    if graph.removed:  # Where a block is missing is not known here; what lies before it keeps its weights anyway.
        first = 0
    chosen = order[first:] if scope == "all" else [name for name in order if name in consumers]
    return [name for name in chosen if isinstance(pruned.get_submodule(name), LAYERS)]


def first_images(batches: Batches, model: nn.Module) -> Tensor:
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    for images, _ in batches:
        if len(images):
            return images.to(device)
    raise UserError("no calibration images came; give at least one batch (no labels needed)")


def check_finite(layer: str, *tensors: Tensor) -> None:
    if not all(bool(torch.isfinite(tensor.sum(dtype=torch.float64))) for tensor in tensors):
        raise UserError(
            f"NaN or infinity at layer '{layer}' on the calibration images; check the weights and that the images are "
            "normalised as the model expects"
        )

"""The one door to torch-pruning: which channels hang together, and their removal.

The library neither validates indices nor reports what it cannot do, so everything is checked here before it is asked.
"""

import copy
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch_pruning as tp
from torch import Tensor, nn

from infoprune.artifacts import ChannelGraph, ChannelGroup, Cost, LayerCost, Member, Plan, width_of
from infoprune.errors import UserError, did_you_mean
from infoprune.shortening import check_blocks, shorten

PRODUCERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


def channel_graph(model: nn.Module, example: Tensor, removed: Sequence[str] = ()) -> ChannelGraph:
    """Channel groups and layer costs of a model; the model itself is not touched.

    Args:
        model: any module that torch-pruning can trace.
        example: one or more input samples, `samples x channels x height x width`.
        removed: blocks that give way to the identity first; the groups are those of what remains.

    Returns:
        All groups in the order of the forward pass; those that cannot be pruned carry the reason.

    Raises:
        UserError: where the model cannot be traced, or runs no convolution or linear layer.
    """
    twin = _traceable_copy(model)
    whole = None
    if removed:
        costs, fixed = _layer_costs(twin, example)
        whole = ChannelGraph((), costs, tuple(example.shape[1:]), fixed).cost({})
        check_blocks(twin, removed, example)
        shorten(twin, removed)
    costs, fixed = _layer_costs(twin, example)
    if not any(cost.macs for cost in costs):
        raise UserError("the model runs no convolution or linear layer on the example, so there is nothing to prune")
    graph = _dependency_graph(twin, example)
    names = {module: name for name, module in twin.named_modules()}
    groups: list[ChannelGroup] = []
    seen: set[str] = set()
    for cost in costs:
        if cost.macs and cost.layer not in seen:
            group = _channel_group(graph, cost.layer, twin.get_submodule(cost.layer), names)
            groups.append(group)
            seen.update(member.layer for member in group.members if member.side == "out")
    return ChannelGraph(tuple(groups), costs, tuple(example.shape[1:]), fixed, tuple(removed), whole)


def prune(model: nn.Module, plan: Plan) -> nn.Module:
    """A smaller copy of a model that holds only the channels a plan keeps.

    Args:
        model: the unpruned model; not touched. Mode, dtype, device, memory format and `requires_grad` carry over.
        plan: kept channels per group, in this model's coordinates.

    Raises:
        UserError: for a group or a block that the model lacks or that cannot be pruned, and for indices out of range,
            unsorted, repeated, empty, or not aligned with a grouped convolution. Nothing is pruned then.
    """
    example = _example_for(model, plan.input_shape)
    groups = {group.name: group for group in channel_graph(model, example, plan.removed).groups}
    for name, kept in plan.kept().items():
        if name not in groups:
            raise UserError(
                f"the plan cuts '{name}', but the model has no such channel group{did_you_mean(name, groups)}"
            )
        check_kept(groups[name], kept)
    pruned = shorten(_traceable_copy(model), plan.removed)
    graph = _dependency_graph(pruned, example)
    for name, kept in plan.kept().items():
        removed = sorted(set(range(groups[name].width)) - set(kept))
        # Built anew for each cut: a group remembers the layers as they were when it was made.
        _group(graph, pruned.get_submodule(name), removed).prune()
    _carry_over(model, pruned)
    return pruned


def check_kept(group: ChannelGroup, kept: Sequence[int]) -> None:
    """Raises UserError unless `kept` are channels that may be all that is left of `group`.

    >>> check_kept(ChannelGroup("conv1", 4, ()), [2, 1])
    Traceback (most recent call last):
    infoprune.errors.UserError: 'conv1': kept channels [2, 1] are not sorted and unique; sort them and drop repetitions
    """
    if group.refusal:
        raise UserError(f"'{group.name}' cannot be pruned: {group.refusal}; leave it out of the plan")
    if not kept:
        raise UserError(f"'{group.name}': no channel is kept; keep at least {group.partitions}")
    if list(kept) != sorted(set(kept)):
        raise UserError(
            f"'{group.name}': kept channels {list(kept)[:8]} are not sorted and unique; sort them and drop repetitions"
        )
    if kept[0] < 0 or kept[-1] >= group.width:
        raise UserError(
            f"'{group.name}': kept channels run from {kept[0]} to {kept[-1]}, but it has 0..{group.width - 1}"
        )
    part = group.width // group.partitions
    first = [channel for channel in kept if channel < part]
    if list(kept) != [channel + part * i for i in range(group.partitions) for channel in first]:
        raise UserError(
            f"'{group.name}' feeds {group.partitions} equal parts of a grouped layer; keep the same {part}-channel "
            "pattern in each part"
        )


def _channel_group(
    graph: tp.DependencyGraph, name: str, root: nn.Module, names: Mapping[nn.Module, str]
) -> ChannelGroup:
    width = width_of(root)
    items = _group(graph, root, range(width)).items
    modules = [item.dep.target.module for item in items]
    members: list[Member] = []
    refusal = "it has a single channel" if width < 2 else ""
    for item, module in zip(items, modules, strict=True):
        # Everything else in the list is an operation without weights, or a bare parameter that follows along.
        if module in names:
            member = _member(graph, item, names[module], width)
            members.append(member)
            refusal = refusal or _member_problem(member, module)
    if not any(member.side == "in" for member in members) or any(type(m).__name__ == "_OutputOp" for m in modules):
        refusal = "its channels are the network's output"
    partitions = math.lcm(*(_partitions(module) for module in modules if module in names))
    if width % partitions:
        refusal = refusal or f"its {width} channels do not divide into {partitions} equal parts"
    return ChannelGroup(name, width, tuple(members), partitions, refusal)


def _member(graph: tp.DependencyGraph, item: Any, name: str, width: int) -> Member:
    # Normalisation and depthwise layers count as both sides there; what they put out is what matters here.
    side = "out" if graph.is_out_channel_pruning_fn(item.dep.handler) else "in"
    channels: list[list[int]] = [[] for _ in range(width)]
    for index, root_index in zip(item.idxs, item.root_idxs, strict=True):
        if root_index is not None:
            channels[root_index].append(index)
    return Member(name, side, tuple(tuple(sorted(own)) for own in channels))  # type: ignore[arg-type]


def _member_problem(member: Member, module: nn.Module) -> str:
    """Why a member makes its group unprunable; empty where it does not."""
    if isinstance(module, nn.LayerNorm | nn.GroupNorm):
        return f"'{member.layer}' normalises over its channels together, so removing some changes the others"
    counts = {len(own) for own in member.channels}
    indices = [index for own in member.channels for index in own]
    try:
        width = width_of(module) if member.side == "out" else _input_width(module)
    except TypeError:
        return f"'{member.layer}' is a {type(module).__name__}, whose channels cannot be counted"
    if len(counts) != 1 or 0 in counts:
        return f"its channels are padded, sliced or shared unevenly on the way to '{member.layer}'"
    if min(indices) < 0 or max(indices) >= width:
        return f"its channels are padded or repeated on the way to '{member.layer}', which has {width}"
    groups = getattr(module, "groups", 1)
    # Each filter of a depthwise layer goes its own way, so several groups may share it, as behind a concatenation.
    whole = member.side == "in" or not isinstance(module, PRODUCERS) or groups == width > 1
    if not whole and len(set(indices)) != width:
        return f"it meets only part of the filters of '{member.layer}': channels are padded, sliced or split in between"
    if groups > 1 and groups == _input_width(module) != width_of(module):
        return f"'{member.layer}' is a depthwise convolution with several filters per channel"
    if groups > 1 and counts != {1}:
        return f"'{member.layer}' is a grouped convolution that sees each channel several times"
    return ""


def _partitions(module: nn.Module) -> int:
    groups = getattr(module, "groups", 1)
    return 1 if not isinstance(module, PRODUCERS) or groups == width_of(module) else int(groups)


def _input_width(module: nn.Module) -> int:
    for attribute in ("in_channels", "in_features"):
        if isinstance(width := getattr(module, attribute, None), int):
            return width
    raise TypeError(f"a {type(module).__name__} has no input width")


def _layer_costs(model: nn.Module, example: Tensor) -> tuple[tuple[LayerCost, ...], Cost]:
    """Costs of layers with widths, in the order of the forward pass, and of the rest; a layer that runs twice costs
    twice, its parameters once."""
    macs: dict[str, int] = {}

    def count(name: str, module: nn.Module, output: Tensor) -> None:
        macs[name] = macs.get(name, 0) + int(output.numel() // len(example) * module.weight[0].numel())  # type: ignore[index]

    handles = [
        module.register_forward_hook(lambda module, _, output, name=name: count(name, module, output))
        for name, module in model.named_modules()
        if isinstance(module, PRODUCERS)
    ]
    try:
        with torch.no_grad():
            model(example)
    except Exception as error:  # A user's forward raises whatever it likes.
        raise UserError(
            f"the model does not run on an input of shape {tuple(example.shape)}: {error}; check that "
            "data and model match"
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    modules = dict(model.named_modules())
    norms = [name for name, module in modules.items() if name not in macs and _has_vectors_only(module)]
    seen: set[int] = set()
    costs = tuple(_layer_cost(name, modules[name], macs.get(name, 0), seen) for name in (*macs, *norms))
    rest = [tensor for tensor in (*model.parameters(), *model.buffers()) if id(tensor) not in seen]
    parameters = sum(tensor.numel() for tensor in rest if isinstance(tensor, nn.Parameter))
    return costs, Cost(0, parameters, sum(tensor.numel() * tensor.element_size() for tensor in rest))


def _has_vectors_only(module: nn.Module) -> bool:
    """Whether all of a module's own parameters are one number per channel, as in norms."""
    try:
        width = width_of(module)
    except TypeError:
        return False
    own = [*module.parameters(recurse=False)]
    return bool(own) and not isinstance(module, PRODUCERS) and all(each.numel() == width for each in own)


def _layer_cost(name: str, module: nn.Module, macs: int, seen: set[int]) -> LayerCost:
    """One layer's cost; parameters in `seen` are shared with a layer before and counted there."""
    outputs = width_of(module)
    inputs = _input_width(module) if isinstance(module, PRODUCERS) else outputs
    counts = {"weights": 0, "vectors": 0, "buffers": 0}
    item = 4
    for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
        kind = "buffers" if not isinstance(tensor, nn.Parameter) else "vectors" if tensor.dim() == 1 else "weights"
        if id(tensor) not in seen and tensor.numel() >= outputs and tensor.numel() > 1:
            seen.add(id(tensor))
            counts[kind] += tensor.numel()
            item = tensor.element_size()
    depthwise = not isinstance(module, PRODUCERS) or getattr(module, "groups", 1) == inputs == outputs > 1
    return LayerCost(name, inputs, outputs, macs, depthwise, item=item, **counts)


def _traceable_copy(model: nn.Module) -> nn.Module:
    """A copy in evaluation mode with all parameters trainable: frozen ones drop out of the library's trace."""
    twin = copy.deepcopy(model).eval()
    for parameter in twin.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    return twin


def _carry_over(model: nn.Module, pruned: nn.Module) -> None:
    """Restores what tracing and cutting reset."""
    modes = {name: module.training for name, module in model.named_modules()}
    for name, module in pruned.named_modules():
        module.training = modes[name]
    trainable = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    for name, parameter in pruned.named_parameters():
        parameter.requires_grad_(trainable[name])
        parameter.grad = None
    images = [p for p in model.parameters() if p.dim() == 4]
    if any(p.is_contiguous(memory_format=torch.channels_last) and not p.is_contiguous() for p in images):
        pruned.to(memory_format=torch.channels_last)


def _example_for(model: nn.Module, shape: Sequence[int]) -> Tensor:
    first = next(model.parameters(), torch.empty(0))
    return torch.zeros(1, *shape, device=first.device, dtype=first.dtype)


def _dependency_graph(model: nn.Module, example: Tensor) -> tp.DependencyGraph:
    with _quiet(), torch.enable_grad():
        try:
            return tp.DependencyGraph().build_dependency(model, example[:1])
        except Exception as error:  # The library raises whatever its own bookkeeping ran into.
            raise UserError(
                f"torch-pruning cannot trace this model ({type(error).__name__}: {error}); such an "
                "architecture cannot be pruned here"
            ) from error


def _group(graph: tp.DependencyGraph, root: nn.Module, indices: Sequence[int]) -> Any:
    handler = graph.get_pruner_of_module(root).prune_out_channels
    return graph.get_pruning_group(root, handler, list(indices))


@contextmanager
def _quiet() -> Iterator[None]:
    """Bare parameters (such as a layer scale) are pruned along with their layer, which the library warns about."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Unwrapped parameters detected", category=UserWarning)
        yield

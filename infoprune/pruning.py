"""The one door to torch-pruning: which channels hang together, and their removal.

The library neither validates indices nor reports what it cannot do, so everything is checked here before it is asked.
"""

import gc
import math
import random
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from infoprune.artifacts import ChannelGraph, ChannelGroup, Cost, LayerCost, Plan, width_of
from infoprune.artifacts.layers import PRODUCERS, input_width
from infoprune.cutting import carry_over, cut, traceable_copy
from infoprune.errors import RunError, UserError, did_you_mean, out_of_memory
from infoprune.grouping import find_groups
from infoprune.repeatability import check_repeatable
from infoprune.shortening import check_blocks, shorten
from infoprune.verifying import check_images, output_of, proves, verify

# Trials stop being made after this long. A plan is not touched by it: only the groups that it cuts are tried again.
TRIAL_SECONDS = 120.0
MOST_INPUTS, MOST_AXES = 1 << 26, 8  # numbers in one sample, and axes


def channel_graph(
    model: nn.Module, example: Tensor, removed: Sequence[str] = (), on_group: Callable[[int, int], None] | None = None
) -> ChannelGraph:
    """Channel groups and layer costs of a model; the model itself is not touched.

    Args:
        model: any module that torch-pruning can trace.
        example: one or more input samples, `samples x channels x height x width`.
        removed: blocks that give way to the identity first; the groups are those of what remains.
        on_group: told the number of groups of which it is known whether they can be cut, and of all to be tried.

    Returns:
        All groups in the order of the forward pass; those that cannot be pruned carry the reason.

    Raises:
        UserError: where the model cannot be traced, runs no convolution or linear layer, puts out NaN or infinity, or
            does not compute the same each time.
    """
    check_images(example)
    check_repeatable(model, _varied(example[:2]))
    graph, copies = _untried(model, example, removed)
    names = [group.name for group in graph.groups if not group.refusal]
    return _tried(model, graph, names, example, copies, on_group)


def _untried(model: nn.Module, example: Tensor, removed: Sequence[str]) -> tuple[ChannelGraph, list[nn.Module]]:
    """The graph as the operations tell it, and a copy of the model to try it on: in a list, to be taken out of."""
    twin = traceable_copy(model)
    whole = None
    if removed:
        costs, fixed = _layer_costs(twin, example)
        whole = ChannelGraph((), costs, tuple(example.shape[1:]), fixed).cost({})
        check_blocks(twin, removed, example)
        shorten(twin, removed)
    costs, fixed = _layer_costs(twin, example)
    if not any(cost.macs for cost in costs):
        raise UserError("the model runs no convolution or linear layer on the example, so there is nothing to prune")
    groups = find_groups(twin, example, [cost.layer for cost in costs if cost.macs])
    shape = tuple(example.shape[1:])
    return ChannelGraph(tuple(groups), costs, shape, fixed, tuple(removed), whole), [twin]


def _tried(
    model: nn.Module,
    graph: ChannelGraph,
    names: list[str],
    example: Tensor,
    copies: list[nn.Module],
    on_group: Callable[[int, int], None] | None = None,
) -> ChannelGraph:
    """The graph with those of the named groups refused whose cut, at random, does not compute what masking them does.

    Operations alone do not tell it all: views of a fixed size, means over channels and whatever else a forward may do.
    """
    images = _varied(example[:2])
    refusals: dict[str, str] = {}
    earlier: list[weakref.ref[nn.Module]] = []
    tried = names

    def problem(names: Sequence[str]) -> str:
        kept = {group.name: _drawn(group) for group in graph.groups if group.name in names}
        try:
            if any(copy() is not None for copy in earlier):
                gc.collect()  # a copy that refers to itself outlives its trial; slow in a large process, so only then
            smaller = copies.pop() if copies else shorten(traceable_copy(model), graph.removed)
            earlier.append(weakref.ref(smaller))
            verify(model, cut(smaller, graph, kept), graph, kept, images)
        except RunError as error:
            return f"a trial cut fails: {' '.join(str(error).split())}"
        return ""

    start, settled = time.monotonic(), set[str]()

    def settle(names: list[str], words: str = "") -> None:
        settled.update(names)
        if words:
            refusals.update(dict.fromkeys(names, words))
        if on_group is not None:
            on_group(len(settled), len(tried))

    def sound(names: list[str]) -> list[str]:
        """Those that can be cut together, found by halving."""
        if time.monotonic() - start > TRIAL_SECONDS:
            late = f"whether it can be cut was not known after {TRIAL_SECONDS:g} s of trials on this machine"
            settle(names, late)
            return []
        if not names or not (words := problem(names)):
            settle(names)
            return names
        if len(names) == 1:
            settle(names, words)
            return []
        middle = len(names) // 2
        left, right = sound(names[:middle]), sound(names[middle:])
        if words := problem([*left, *right]) if left and right else "":
            settle(right, words)
            return left
        return left + right

    if problem(names):
        if words := problem([]):
            raise UserError(
                f"a copy of the model does not compute what the model does, so nothing can be proven: {words}"
            )
        sound(names)
    groups = (replace(group, refusal=refusals.get(group.name, group.refusal)) for group in graph.groups)
    return replace(graph, groups=tuple(groups))


def _varied(images: Tensor) -> Tensor:
    """Images, made up where all their numbers are equal: on zeros much would agree that does not on images."""
    if not images.numel() or bool((images != images.flatten()[0]).any()):
        return images
    return torch.rand(images.shape, generator=torch.Generator().manual_seed(0)).to(images)


def _drawn(group: ChannelGroup) -> list[int]:
    """One channel of each pair of neighbours, drawn at random but the same on every call.

    Neighbours apart find out what works on several channels, or on their places, sooner than any half would.
    """
    part, draw = group.width // group.partitions, random.Random(group.name)
    chosen = [pair + draw.randrange(2) for pair in range(0, part - 1, 2)]
    return [channel + part * i for i in range(group.partitions) for channel in chosen]


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
    graph, copies = _untried(model, example, plan.removed)
    free = [group.name for group in graph.groups if group.name in plan.kept() and not group.refusal]
    # Images are made up here: a detector may find nothing on them, and then a trial says nothing of the groups.
    if proves(output_of(model, _varied(example))):
        graph = _tried(model, graph, free, example, copies)
    copies.clear()
    groups = {group.name: group for group in graph.groups}
    for name, kept in plan.kept().items():
        if name not in groups:
            raise UserError(
                f"the plan cuts '{name}', but the model has no such channel group{did_you_mean(name, groups)}"
            )
        check_kept(groups[name], kept)
    for entry in plan.groups:
        if entry.group in groups and entry.width_before != groups[entry.group].width:
            raise UserError(
                f"the plan says that '{entry.group}' has {entry.width_before} channels, but in the model it has "
                f"{groups[entry.group].width}; use the plan of this model"
            )
    pruned = cut(shorten(traceable_copy(model), plan.removed), graph, plan.kept())
    carry_over(model, pruned)
    return pruned


def check_plan(plan: Plan, graph: ChannelGraph, source: str) -> None:
    """Raises UserError where a plan that was read from a file does not fit a model, or contradicts itself."""
    check_consistent(plan, source)
    groups = {group.name: group for group in graph.groups}
    for entry in plan.groups:
        if entry.group not in groups:
            raise UserError(
                f"'{source}' names the group '{entry.group}', which the model lacks; mend or remove the file"
            )
        if entry.width_before != groups[entry.group].width:
            raise UserError(
                f"'{source}': '{entry.group}' goes from {entry.width_before} to {entry.width_after} channels but "
                f"keeps {len(entry.kept)} of {groups[entry.group].width}; mend or remove the file"
            )
        if entry.width_after < entry.width_before:
            check_kept(groups[entry.group], entry.kept)


def check_consistent(plan: Plan, source: str) -> None:
    """Refuses a plan that was read from a file and contradicts itself, whatever the model.

    Args:
        plan: as read.
        source: the file, for the message.

    Raises:
        UserError: for a group named twice, negative numbers of multiply-accumulates, widths that are not those of the
            kept channels, or channels that the group does not have.
    """
    remedy = "use an intact file, or remove it to have it made again"
    names = [entry.group for entry in plan.groups]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"'{source}' names the group '{twice[0]}' {names.count(twice[0])} times; {remedy}")
    macs = [plan.macs_before, plan.macs_after]
    macs += [count for entry in plan.groups for count in (entry.macs_before, entry.macs_after)]
    if min(macs) < 0:
        raise UserError(f"'{source}' has {min(macs)} multiply-accumulates, expected 0 or more; {remedy}")
    for entry in plan.groups:
        kept, before, after = entry.kept, entry.width_before, entry.width_after
        if after != len(kept) or not 1 <= after <= before:
            raise UserError(
                f"'{source}': '{entry.group}' goes from {before} to {after} channels but keeps {len(kept)}; expected "
                f"as many as are kept, at least 1 and at most {before}; {remedy}"
            )
        if after == before and kept != tuple(range(before)):
            raise UserError(f"'{source}': '{entry.group}' stays whole, so kept has to be 0..{before - 1}; {remedy}")
        if list(kept) != sorted(set(kept)) or kept[0] < 0 or kept[-1] >= before:
            raise UserError(
                f"'{source}': '{entry.group}' keeps {list(kept[:8])}, expected sorted and unique indices of channels "
                f"0..{before - 1}; {remedy}"
            )


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
            f"'{group.name}' feeds {group.partitions} equal parts of a grouped layer or norm; keep the same "
            f"{part}-channel pattern in each part"
        )


def _layer_costs(model: nn.Module, example: Tensor) -> tuple[tuple[LayerCost, ...], Cost]:
    """Costs of layers with widths, in the order of the forward pass, and of the rest; a layer that runs twice costs
    twice, its parameters once."""
    macs: dict[str, int] = {}

    def count(name: str, module: nn.Module, output: object) -> None:
        weight = getattr(module, "weight", None)
        if not isinstance(output, Tensor) or not isinstance(weight, Tensor):
            what = "has no weight" if isinstance(output, Tensor) else f"puts out a {type(output).__name__}"
            raise UserError(
                f"layer '{name}', a {type(module).__name__}, {what}; expected one weight and one tensor put out, as "
                "its class in torch.nn has them. Derive such a layer from torch.nn.Module instead"
            )
        macs[name] = macs.get(name, 0) + output.numel() // len(example) * weight[0].numel()

    handles = [
        module.register_forward_hook(lambda module, _, output, name=name: count(name, module, output))
        for name, module in model.named_modules()
        if isinstance(module, PRODUCERS)
    ]
    try:
        with torch.no_grad():
            model(example)
    except UserError:
        raise
    except Exception as error:  # A user's forward raises whatever it likes.
        if out_of_memory(error):
            raise
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
    inputs = input_width(module) if isinstance(module, PRODUCERS) else outputs
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


def _example_for(model: nn.Module, shape: Sequence[int]) -> Tensor:
    if not 1 <= len(shape) <= MOST_AXES or min(shape) < 1 or math.prod(shape) > MOST_INPUTS:
        raise UserError(
            f"the plan's input_shape is {tuple(shape[: MOST_AXES + 1])}; expected the shape of one image, such as "
            f"(3, 32, 32), of at most {MOST_INPUTS:,} numbers"
        )
    first = next(model.parameters(), torch.empty(0))
    return torch.zeros(1, *shape, device=first.device, dtype=first.dtype)

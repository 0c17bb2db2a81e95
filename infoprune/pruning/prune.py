"""Removes the channels that a plan leaves out, by torch-pruning.

The library neither validates indices nor reports what it cannot do, so everything is checked here before it is asked.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from infoprune.errors import UserError, did_you_mean
from infoprune.graph.channels import ChannelGraph, ChannelGroup
from infoprune.graph.depth import shorten
from infoprune.graph.tracing import traceable_copy
from infoprune.planning.plan import Plan
from infoprune.pruning.channel_graph import tried_graph, untried_graph, varied
from infoprune.pruning.surgery import carry_over, cut
from infoprune.pruning.verify import proves
from infoprune.utils.outputs import output_of

MOST_INPUTS, MOST_AXES = 1 << 26, 8  # numbers in one sample, and axes


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
    graph, copies = untried_graph(model, example, plan.removed)
    free = [group.name for group in graph.groups if group.name in plan.kept() and not group.refusal]
    # Images are made up here: a detector may find nothing on them, and then a trial says nothing of the groups.
    if proves(output_of(model, varied(example))):
        graph = tried_graph(model, graph, free, example, copies)
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
                f"'{source}' names the group '{entry.group}', which the model lacks; fix or remove the file"
            )
        if entry.width_before != groups[entry.group].width:
            raise UserError(
                f"'{source}': '{entry.group}' goes from {entry.width_before} to {entry.width_after} channels but "
                f"keeps {len(entry.kept)} of {groups[entry.group].width}; fix or remove the file"
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


def _example_for(model: nn.Module, shape: Sequence[int]) -> Tensor:
    if not 1 <= len(shape) <= MOST_AXES or min(shape) < 1 or math.prod(shape) > MOST_INPUTS:
        raise UserError(
            f"the plan's input_shape is {tuple(shape[: MOST_AXES + 1])}; expected the shape of one image, such as "
            f"(3, 32, 32), of at most {MOST_INPUTS:,} numbers"
        )
    first = next(model.parameters(), torch.empty(0))
    return torch.zeros(1, *shape, device=first.device, dtype=first.dtype)

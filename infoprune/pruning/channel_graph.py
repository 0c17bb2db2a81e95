"""Finds the channel groups of a model, and tries on a copy whether each can be cut."""

import gc
import random
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from infoprune.errors import RunError, UserError
from infoprune.graph.channels import ChannelGraph, ChannelGroup
from infoprune.graph.dependency import find_groups
from infoprune.graph.depth import check_blocks, shorten
from infoprune.graph.layer_costs import layer_costs
from infoprune.graph.tracing import traceable_copy
from infoprune.pruning.repeatability import check_repeatable
from infoprune.pruning.surgery import cut
from infoprune.pruning.verify import check_images, verify

# Trials stop being made after this long. A plan is not touched by it: only the groups that it cuts are tried again.
TRIAL_SECONDS = 120.0


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
    check_repeatable(model, varied(example[:2]))
    graph, copies = untried_graph(model, example, removed)
    names = [group.name for group in graph.groups if not group.refusal]
    return tried_graph(model, graph, names, example, copies, on_group)


def untried_graph(model: nn.Module, example: Tensor, removed: Sequence[str]) -> tuple[ChannelGraph, list[nn.Module]]:
    """The graph as the operations tell it, and a copy of the model to try it on: in a list, to be taken out of."""
    clone = traceable_copy(model)
    whole = None
    if removed:
        costs, fixed = layer_costs(clone, example)
        whole = ChannelGraph((), costs, tuple(example.shape[1:]), fixed).cost({})
        check_blocks(clone, removed, example)
        shorten(clone, removed)
    costs, fixed = layer_costs(clone, example)
    if not any(cost.macs for cost in costs):
        raise UserError("the model runs no convolution or linear layer on the example, so there is nothing to prune")
    groups = find_groups(clone, example, [cost.layer for cost in costs if cost.macs])
    shape = tuple(example.shape[1:])
    return ChannelGraph(tuple(groups), costs, shape, fixed, tuple(removed), whole), [clone]


def tried_graph(
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
    images = varied(example[:2])
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


def varied(images: Tensor) -> Tensor:
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

"""Takes channels out of a copy of a model, by torch-pruning's pruners and one of our own for norms."""

from typing import Any

import torch
from torch import Tensor, nn

from infoprune.errors import RunError, out_of_memory
from infoprune.graph.channels import ChannelGraph, Kept, removed_sides
from infoprune.graph.layers import is_channelwise
from infoprune.graph.tracing import pruners


def cut(model: nn.Module, graph: ChannelGraph, kept: Kept) -> nn.Module:
    """Takes the channels that are not kept out of a model, in place, and returns it.

    Args:
        model: a copy of the unpruned model, without the blocks that the graph leaves out.
        graph: its channel groups.
        kept: kept channel indices per group; groups not named keep all.

    Raises:
        RunError: where torch-pruning fails at a layer.
    """
    library = pruners(model)
    for (name, side), indices in removed_sides(graph, kept).items():
        module: Any = model.get_submodule(name)
        channelwise = is_channelwise(module)
        pruner = library.get_pruner_of_module(module)
        try:
            (pruner.prune_out_channels if side == "out" else pruner.prune_in_channels)(module, indices)
        except Exception as error:  # The library raises whatever its indexing ran into.
            if out_of_memory(error):
                raise
            raise RunError(f"torch-pruning cannot cut '{name}' ({type(error).__name__}: {error})") from error
        if channelwise:
            module.num_groups = module.num_channels
    for (name, axis), gone in _removed_parameters(graph, kept).items():
        parent, _, own = name.rpartition(".")
        tensor: Tensor = getattr(model.get_submodule(parent), own)
        left = torch.tensor(sorted(set(range(tensor.shape[axis])) - gone), device=tensor.device)
        setattr(model.get_submodule(parent), own, nn.Parameter(tensor.detach().index_select(axis, left)))
    return model


def _removed_parameters(graph: ChannelGraph, kept: Kept) -> dict[tuple[str, int], set[int]]:
    removed: dict[tuple[str, int], set[int]] = {}
    for group in graph.groups:
        gone = set(range(group.width)) - set(kept.get(group.name, range(group.width)))
        for member in group.parameters if gone else ():
            indices = {index for channel in gone for index in member.channels[channel]}
            removed.setdefault((member.layer, member.axis), set()).update(indices)
    return removed


def carry_over(model: nn.Module, pruned: nn.Module) -> None:
    """Restores what tracing and cutting reset: modes, `requires_grad` and the memory format."""
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

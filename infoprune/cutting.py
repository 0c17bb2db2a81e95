"""Takes channels out of a copy of a model, by torch-pruning's pruners and one of our own for norms."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
import torch_pruning as tp
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from infoprune.artifacts import ChannelGraph
from infoprune.artifacts.layers import is_channelwise, output_width
from infoprune.errors import RunError, UserError, out_of_memory
from infoprune.verifying import Kept, removed_sides


class _PerChannel(tp.BasePruningFunc):  # type: ignore[misc]
    """Norms whose every number belongs to one channel.

    The library forgets instance norm's running statistics and frozen norms altogether, and takes a layer norm's numbers
    in the order of a Python set, which is sorted only by luck.
    """

    def prune_out_channels(self, layer: Any, idxs: Sequence[int]) -> nn.Module:
        kept = sorted(set(range(self.get_out_channels(layer))) - set(idxs))
        for name, tensor in (*layer.named_parameters(recurse=False), *layer.named_buffers(recurse=False)):
            if tensor.dim() == 1:
                left = tensor.detach()[kept].clone()
                setattr(layer, name, nn.Parameter(left) if isinstance(tensor, nn.Parameter) else left)
        if hasattr(layer, "num_features"):
            layer.num_features = len(kept)
        if isinstance(layer, nn.LayerNorm):
            layer.normalized_shape = (len(kept),)
        return layer  # type: ignore[no-any-return]

    prune_in_channels = prune_out_channels

    def get_out_channels(self, layer: Any) -> int:
        return output_width(layer)

    get_in_channels = get_out_channels


def pruners(model: nn.Module) -> tp.DependencyGraph:
    """The library's graph, not built yet, with the right pruner for every layer of a model."""
    graph = tp.DependencyGraph()
    for kind in {type(module) for module in model.modules()}:
        # By name: detectron2 has its own class, and importing torchvision's would cost a second.
        frozen = kind.__name__ == "FrozenBatchNorm2d"
        if frozen or issubclass(kind, (nn.modules.instancenorm._InstanceNorm, nn.LayerNorm)):
            graph.register_customized_layer(kind, _PerChannel())
    return graph


def traceable_copy(model: nn.Module) -> nn.Module:
    """A copy in evaluation mode with all parameters trainable: frozen ones drop out of the library's trace.

    Raises:
        UserError: for a model whose lazy layers have not run yet, or of which no copy can be made.
    """
    if any(is_lazy(parameter) for parameter in model.parameters()):
        raise UserError("the model has lazy layers without shapes; run it once on an example first")
    try:
        twin = copy.deepcopy(model).eval()
    except Exception as error:  # Whatever hangs on a user's model is asked for a copy of itself.
        if out_of_memory(error):
            raise
        raise UserError(
            f"the model cannot be copied ({type(error).__name__}: {error}); remove from it what copy.deepcopy refuses: "
            "torch.nn.utils.weight_norm, spectral_norm and pruning masks, locks, open files, generators"
        ) from error
    for parameter in twin.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    return twin


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

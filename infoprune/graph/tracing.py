"""What torch-pruning follows: a copy of a model that it can trace, and its pruners."""

import copy
from collections.abc import Sequence
from typing import Any

import torch_pruning as tp
from torch import nn
from torch.nn.parameter import is_lazy

from infoprune.errors import UserError, out_of_memory
from infoprune.graph.layers import output_width


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
        clone = copy.deepcopy(model).eval()
    except Exception as error:  # Whatever hangs on a user's model is asked for a copy of itself.
        if out_of_memory(error):
            raise
        raise UserError(
            f"the model cannot be copied ({type(error).__name__}: {error}); remove from it what copy.deepcopy refuses: "
            "torch.nn.utils.weight_norm, spectral_norm and pruning masks, locks, open files, generators"
        ) from error
    for parameter in clone.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    return clone

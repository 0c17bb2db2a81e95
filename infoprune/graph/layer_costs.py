"""Counts what each layer of a model costs, by one forward pass."""

import torch
from torch import Tensor, nn

from infoprune.errors import UserError, out_of_memory
from infoprune.graph.channels import width_of
from infoprune.graph.costs import Cost, LayerCost
from infoprune.graph.layers import PRODUCERS, input_width


def layer_costs(model: nn.Module, example: Tensor) -> tuple[tuple[LayerCost, ...], Cost]:
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

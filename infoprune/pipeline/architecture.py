"""The arguments with which a model family builds a network of given widths, to be trained from scratch."""

import dataclasses
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from torch import nn

from infoprune.config import registry
from infoprune.config.recipe import options
from infoprune.errors import UserError
from infoprune.evaluation.metrics import ModelReference
from infoprune.graph.channels import width_of
from infoprune.io.checkpoint import build

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def narrowed(
    reference: ModelReference, model: nn.Module, widths: Mapping[str, int], removed: Collection[str] = ()
) -> ModelReference | None:
    """How to build a narrower, shallower network of the same family.

    A model may say itself how, by a method `arguments_for(widths, removed)`. Otherwise a family with an option
    `widths` is taken to mean the filters of its convolutions in the order of definition (`hidden`: of its linear layers
    but the last). Either way an answer is given only where building with it gives exactly these widths.

    Args:
        reference: how the present network is built.
        model: that network.
        widths: filters of layers by name; layers not named keep theirs.
        removed: blocks that are left out.

    Returns:
        The family with its arguments; `None` where it has no arguments for these widths.
    """
    wanted = {
        name: widths.get(name, width_of(module))
        for name, module in model.named_modules()
        if isinstance(module, (*CONVOLUTIONS, nn.Linear))
    }
    left = [own for name, own in wanted.items() if not any(f"{name}.".startswith(f"{block}.") for block in removed)]
    for arguments in _candidates(reference, model, wanted, removed):
        found = dataclasses.replace(reference, arguments={**reference.arguments, **arguments})
        try:
            made = build(found)
        except UserError:
            continue
        built = [width_of(m) for m in made.modules() if isinstance(m, (*CONVOLUTIONS, nn.Linear))]
        if built == left:
            return found
    return None


def _candidates(
    reference: ModelReference, model: nn.Module, wanted: Mapping[str, int], removed: Collection[str]
) -> Iterator[dict[str, Any]]:
    own = getattr(model, "arguments_for", None)
    if own is not None:
        yield own(wanted, removed)
        return
    if removed or "widths" not in options(registry.find("models", reference.name)):
        return
    linear = [name for name in wanted if isinstance(model.get_submodule(name), nn.Linear)]
    widths = [width for name, width in wanted.items() if name not in linear]
    yield {"widths": widths}
    yield {"widths": widths, "hidden": [wanted[name] for name in linear[:-1]]}

"""Depth: whole blocks give way to the identity."""

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from infoprune.errors import UserError, did_you_mean
from infoprune.utils.module_mode import evaluating


def shorten(model: nn.Module, blocks: Sequence[str]) -> nn.Module:
    """Puts an identity in the place of each block; the model is changed in place and returned.

    A residual block that ends in a ReLU, as in ResNets, reads what a ReLU put out, so that without its branch it is
    the identity too.

    >>> shorten(nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU()), ["0"])
    Sequential(
      (0): Identity()
      (1): ReLU()
    )

    Args:
        model: changed in place; its other modules and their names stay.
        blocks: dotted names of modules that put out what has the shape of what they read.

    Raises:
        UserError: for a name that the model lacks, or a block within another one.
    """
    known = dict(model.named_modules())
    for name in blocks:
        if not name or name not in known:
            raise UserError(f"the model has no block '{name}' to remove{did_you_mean(name, [n for n in known if n])}")
        outer = [other for other in blocks if name.startswith(f"{other}.")]
        if outer or list(blocks).count(name) > 1:
            raise UserError(f"the block '{name}' is removed with '{(outer or [name])[0]}' already; name it once")
    for name in blocks:
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, nn.Identity())
    return model


def check_blocks(model: nn.Module, blocks: Sequence[str], example: Tensor) -> None:
    """Makes sure that blocks can give way to the identity.

    Args:
        model: with the blocks; it stays as it was.
        blocks: dotted names.
        example: input samples, `samples x channels x height x width`.

    Raises:
        UserError: for an unknown name, and for a block that does not run once, or reads or puts out something else
            than one tensor of one shape.
    """
    shorten(_Names(model), blocks)
    seen: dict[str, list[str]] = {name: [] for name in blocks}

    def look(name: str, given: tuple[Any, ...], output: Any) -> None:
        alike = len(given) == 1 and all(isinstance(each, Tensor) for each in (*given, output))
        shapes = [tuple(each.shape) if isinstance(each, Tensor) else type(each).__name__ for each in (*given, output)]
        fits = alike and given[0].shape == output.shape
        seen[name].append("" if fits else f"goes from {shapes[:-1]} to {shapes[-1]}")

    with evaluating(model), torch.no_grad(), ExitStack() as hooks:
        for name in blocks:
            module = model.get_submodule(name)
            hooks.callback(module.register_forward_hook(lambda _, i, o, name=name: look(name, i, o)).remove)
        model(example)
    for name, problems in seen.items():
        if len(problems) != 1 or problems[0]:
            problem = f"runs {len(problems)} times" if len(problems) != 1 else problems[0]
            raise UserError(f"the block '{name}' {problem}; only what runs once and keeps the shape can be removed")


class _Names(nn.Module):
    """A model's module tree without what is in it, to try names on."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        for name, child in model.named_children():
            self.add_module(name, _Names(child))

"""The tensors in what a model puts out, whatever holds them."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from infoprune.errors import RunError, UserError, out_of_memory
from infoprune.utils.module_mode import evaluating


def output_of(model: nn.Module, images: Tensor) -> Tensor:
    """All numbers that a model puts out in evaluation mode, in one row.

    Args:
        model: its mode is afterwards as before.
        images: `samples x channels x height x width`.

    Raises:
        RunError: where the model does not run on the images.
        UserError: for an output of anything but tensors, or tuples or mappings of them.
    """
    with evaluating(model), torch.no_grad():
        try:
            output = model(images)
        except Exception as error:  # A user's forward raises whatever it likes.
            if out_of_memory(error):
                raise
            words = str(error) or type(error).__name__
            raise RunError(f"the model does not run on an input of shape {tuple(images.shape)}: {words}") from error
    # Class indices and masks are compared as numbers, too.
    found = [each.to(images.device).flatten() for each in tensors_of(output)]
    numbers = [each if each.is_floating_point() or each.is_complex() else each.double() for each in found]
    return torch.cat(numbers) if numbers else images.new_empty(0)


def tensors_of(output: object) -> Iterator[Tensor]:
    """All tensors of a model's output: a tensor, or tuples, lists or mappings of tensors and `None`.

    >>> [each.numel() for each in tensors_of({"logits": torch.ones(3), "more": [torch.ones(2), None]})]
    [3, 2]

    Raises:
        UserError: for anything else.
    """
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, Mapping | list | tuple):
        for part in output.values() if isinstance(output, Mapping) else output:
            yield from tensors_of(part)
    elif output is not None:
        raise UserError(
            f"the model puts out a {type(output).__name__}; expected a tensor, or tuples or mappings of them"
        )

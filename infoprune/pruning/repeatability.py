"""Whether a model computes the same from the same images each time: nothing can be proven of one that does not."""

from torch import Tensor, nn

from infoprune.errors import RunError, UserError
from infoprune.graph.tracing import traceable_copy
from infoprune.pruning.verify import TOLERANCE, check_images, check_output
from infoprune.utils.outputs import output_of

REMEDY = "do so only where self.training is true"


def check_repeatable(model: nn.Module, images: Tensor) -> None:
    """Makes sure that a model in evaluation mode depends on its images alone.

    A copy runs twice, so the model, its mode, buffers and attributes stay as they are.

    Args:
        model: any module; its outputs are tensors, or tuples or mappings of them.
        images: a few samples, `samples x channels x height x width`.

    Raises:
        UserError: where the model cannot be copied or does not run, where its output is empty, holds NaN or infinity or
            differs between the two passes by more than rounding, and where it changes a parameter or buffer.
    """
    check_images(images)
    copied = traceable_copy(model)
    try:
        first, second = output_of(copied, images), output_of(copied, images)
    except RunError as error:
        raise UserError(f"{error}; check that data and model match") from error
    check_output(copied, first)
    if changed := _changed(model, copied):
        raise UserError(f"the model changes {', '.join(changed[:5])} in forward in evaluation mode; {REMEDY}")
    if first.shape != second.shape:
        raise UserError(
            f"the model puts out {first.numel()} numbers, and {second.numel()} when it runs on the same images again "
            f"in evaluation mode: it counts, draws at random or changes itself in forward; {REMEDY}"
        )
    difference = float((first - second).abs().max()) / (float(first.abs().max()) or 1.0)
    if not difference <= TOLERANCE:
        raise UserError(
            f"the model's output differs by {difference:.2g} of its largest number when it runs on the same images "
            f"again in evaluation mode: it counts, draws at random or changes itself in forward; {REMEDY}"
        )


def _changed(model: nn.Module, used: nn.Module) -> list[str]:
    """Names of parameters and buffers that are no longer what they were; caches that were added do not count."""
    after = {**dict(used.named_parameters()), **dict(used.named_buffers())}
    before = (*model.named_parameters(), *model.named_buffers())
    return [f"'{name}'" for name, tensor in before if name not in after or not _same(tensor, after[name])]


def _same(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors hold the same numbers, where NaN is the same as NaN."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    return bool(((one == other) | ((one != one) & (other != other))).all())

"""Proof that a pruned model computes what the masked one does."""

import copy
import math
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from infoprune.errors import RunError, UserError
from infoprune.evaluation.metrics import Verification
from infoprune.graph.channels import ChannelGraph, Kept, removed_sides
from infoprune.graph.layers import is_channelwise
from infoprune.utils.outputs import output_of

TOLERANCE = 1e-5


def channel_axis(module: nn.Module, values: Tensor) -> int:
    """Where the channels lie in what a layer reads or puts out.

    >>> channel_axis(nn.Linear(4, 2), torch.zeros(3, 5, 4))
    2
    >>> channel_axis(nn.Conv2d(4, 2, 1), torch.zeros(4, 8, 8))
    0
    """
    if isinstance(module, nn.Linear):
        return values.dim() - 1
    if isinstance(module, nn.modules.conv._ConvNd):
        return values.dim() - module.weight.dim() + 1
    if isinstance(module, nn.LayerNorm):
        # A subclass for maps (torchvision's and timm's LayerNorm2d) normalises over their channels.
        mapped = type(module) is not nn.LayerNorm and values.dim() == 4
        return 1 if mapped and values.shape[1] == module.normalized_shape[0] else values.dim() - 1
    return min(1, values.dim() - 1)


@contextmanager
def masked(model: nn.Module, graph: ChannelGraph, kept: Kept) -> Iterator[nn.Module]:
    """The unpruned model with removed channels silent: what removal has to be equal to. No copy is made.

    Zeroing a filter alone would leave the bias of the batch norm behind it alive, so every layer of a group is silenced
    at its output, and every layer that reads the channels is made deaf to them (an activation with f(0) ≠ 0 may lie
    between). Layer and group norms take their statistics over the channels that are kept.

    Args:
        model: the unpruned model; hooks do the masking and are gone afterwards.
        graph: its channel groups; blocks that the graph leaves out pass their input on.
        kept: kept channel indices per group; groups not named keep all.
    """
    modules = dict(model.named_modules())
    with ExitStack() as hooks:
        for name in graph.removed:
            hooks.callback(modules[name].register_forward_hook(lambda _, given, __: given[0]).remove)
        for (name, side), indices in removed_sides(graph, kept).items():
            if side == "in":
                handle = modules[name].register_forward_pre_hook(
                    lambda module, given, gone=indices: (_silent(module, given[0], gone), *given[1:])
                )
            elif isinstance(modules[name], nn.LayerNorm | nn.GroupNorm):
                handle = modules[name].register_forward_hook(
                    lambda module, given, _, gone=indices: _normalised(module, given[0], gone)
                )
            else:
                handle = modules[name].register_forward_hook(
                    lambda module, _, output, gone=indices: _silent(module, output, gone)
                )
            hooks.callback(handle.remove)
        yield model


def _silent(module: nn.Module, values: Tensor, removed: Sequence[int]) -> Tensor:
    return values.index_fill(channel_axis(module, values), torch.tensor(removed, device=values.device), 0)


def _normalised(norm: Any, values: Tensor, removed: Sequence[int]) -> Tensor:
    """What a layer or group norm makes of the kept channels alone; zero elsewhere."""
    axis = channel_axis(norm, values)
    kept = torch.tensor(sorted(set(range(values.shape[axis])) - set(removed)), device=values.device)
    some = values.index_select(axis, kept)
    weight, bias = (None if each is None else each[kept] for each in (norm.weight, norm.bias))
    if isinstance(norm, nn.GroupNorm):
        groups = len(kept) if is_channelwise(norm) else norm.num_groups
        normal = F.group_norm(some, groups, weight, bias, norm.eps)
    else:
        last = some.movedim(axis, -1)
        normal = F.layer_norm(last, last.shape[-1:], weight, bias, norm.eps).movedim(-1, axis)
    return torch.zeros_like(values).index_copy(axis, kept, normal)


def verify(model: nn.Module, pruned: nn.Module, graph: ChannelGraph, kept: Kept, images: Tensor) -> Verification:
    """Compares the pruned model with the masked one on calibration images.

    Where float32 rounding leaves it open, both are compared again in float64, one copy at a time. Outputs that are
    empty or not finite prove nothing.

    Args:
        model: the unpruned model.
        pruned: what pruning made of it.
        graph: channel groups of the unpruned model.
        kept: kept channel indices per group.
        images: `samples x channels x height x width`, prepared as the model expects.

    Raises:
        UserError: where the unpruned model puts out nothing, or NaN or infinity.
        RunError: where outputs differ by more than 1e-5 of the largest output, or the pruned model puts out NaN or
            infinity; names the group behind it.
    """
    check_images(images)
    found = _compared(model, pruned, graph, kept, images)
    rounding = math.isfinite(found.max_rel_difference) and images.dtype != torch.float64
    if not found.max_rel_difference <= TOLERANCE and rounding:
        found = _compared(model, pruned, graph, kept, images.double())
    if not found.max_rel_difference <= TOLERANCE:
        layer, groups = _first_difference(model, pruned, graph, kept, images)
        how = (
            f"differs from its masked reference model by {found.max_rel_difference:.2g} of the largest output (at most "
            f"{TOLERANCE:g} is rounding)"
            if math.isfinite(found.max_rel_difference)
            else "puts out NaN or infinity, where the masked reference model does not"
        )
        raise RunError(
            f"the pruned model {how}, first at '{layer}': the cut of {' or '.join(groups)} is not sound; protect it in "
            "[plan]"
        )
    return found


def check_images(images: object) -> None:
    """Raises UserError unless images are a tensor of at least one sample."""
    if not isinstance(images, Tensor):
        raise UserError(
            f"images came as a {type(images).__name__}; expected one tensor, samples x channels x height x width. Wrap "
            "a model of several inputs in a module that takes one tensor"
        )
    if images.dim() == 0 or len(images) == 0:
        raise UserError(f"images came in the shape {tuple(images.shape)}; give at least one sample")


def proves(output: Tensor) -> bool:
    """Whether a comparison with an output proves anything: it holds numbers, all of them finite."""
    return output.numel() > 0 and bool(output.isfinite().all())


def check_output(model: nn.Module, output: Tensor) -> None:
    """Makes sure that something can be proven of a model by an output of it.

    Args:
        model: for the message, which names its parameters and buffers that are not finite.
        output: all numbers that it puts out, in one row, as `output_of` gives them.

    Raises:
        UserError: for an output without a number, and for NaN or infinity in it.
    """
    if not output.numel():
        raise UserError(
            "the model puts out no number on these images, so nothing can be proven of it; give images on which it "
            "finds something, or lower the threshold above which it reports what it finds"
        )
    if not proves(output):
        own = (*model.named_parameters(), *model.named_buffers())
        names = [f"'{name}'" for name, tensor in own if not bool(tensor.isfinite().all())]
        raise UserError(
            f"the model puts out NaN or infinity{f' ({names[0]} is not finite)' if names else ''}; check its weights "
            "and the images' normalisation"
        )


def _compared(model: nn.Module, pruned: nn.Module, graph: ChannelGraph, kept: Kept, images: Tensor) -> Verification:
    """Both models in the precision of the images."""
    # Passed on without a name, so that the copies, where any are needed, never live at the same time.
    expected = _reference(_precise(model, images), graph, kept, images)
    return _difference(expected, output_of(_precise(pruned, images), images), images)


def _reference(model: nn.Module, graph: ChannelGraph, kept: Kept, images: Tensor) -> Tensor:
    """What the masked reference model puts out: at least one number, and all finite."""
    with masked(model, graph, kept):
        expected = output_of(model, images)
    if not proves(expected):
        check_output(model, output_of(model, images))
        what = "NaN or infinity" if expected.numel() else "no number"
        raise RunError(
            f"with the removed channels of {' and '.join(kept)} at zero, the unpruned model puts out {what}, so the "
            "cut cannot be proven; protect them in [plan]"
        )
    return expected


def _precise(model: nn.Module, images: Tensor) -> nn.Module:
    fits = images.dtype != torch.float64 or all(each.dtype == torch.float64 for each in model.parameters())
    return model if fits else copy.deepcopy(model).double()


def _first_difference(
    model: nn.Module, pruned: nn.Module, graph: ChannelGraph, kept: Kept, images: Tensor
) -> tuple[str, list[str]]:
    """The first layer that reads or puts out something else in the pruned model, and the groups cut there."""
    cut = [group for group in graph.groups if group.name in kept]
    layers = {member.layer for group in cut for member in group.members}
    with masked(model, graph, kept):
        expected = _traffic(model, layers, images[:2])
    got, removed = _traffic(pruned, layers, images[:2]), removed_sides(graph, kept)
    for (layer, side), values in expected.items():
        gone = removed.get((layer, side)) or removed.get((layer, "out"), [])  # norms read what they put out
        if not _alike(values, got.get((layer, side)), gone):
            sides = {group.name: {m.side for m in group.members if m.layer == layer} for group in cut}
            exact = [name for name, own in sides.items() if side in own]
            return layer, exact or [name for name, own in sides.items() if own]
    return "the output", list(kept)


def _traffic(model: nn.Module, layers: Collection[str], images: Tensor) -> dict[tuple[str, str], Tensor]:
    """What each layer reads and puts out when it first runs, in the order of the forward pass."""
    found: dict[tuple[str, str], Tensor] = {}

    def note(layer: str, given: tuple[Tensor, ...], output: Tensor) -> None:
        found.setdefault((layer, "in"), given[0].clone())  # in-place operations may follow
        found.setdefault((layer, "out"), output.clone())

    with ExitStack() as hooks:
        for name in layers:
            module = model.get_submodule(name)
            hooks.callback(module.register_forward_hook(lambda _, i, o, name=name: note(name, i, o)).remove)
        with suppress(RunError):
            output_of(model, images)
    return found


def _alike(expected: Tensor, got: Tensor | None, removed: Sequence[int]) -> bool:
    if got is None or expected.dim() != got.dim():
        return False
    for axis in range(expected.dim()):
        if expected.shape[axis] - got.shape[axis] == len(removed) > 0:
            kept = sorted(set(range(expected.shape[axis])) - set(removed))
            expected = expected.index_select(axis, torch.tensor(kept, device=expected.device))
    return expected.shape == got.shape and torch.allclose(
        got.double(), expected.double(), rtol=0, atol=100 * TOLERANCE * float(expected.abs().max()), equal_nan=True
    )


def _difference(expected: Tensor, got: Tensor, images: Tensor) -> Verification:
    """How far an output is from the one expected, which is finite; NaN or infinity where it is not finite itself."""
    if expected.shape != got.shape:
        raise RunError(
            f"the pruned model puts out {got.numel()} values where the unpruned one puts out {expected.numel()}: "
            "its output layer was cut"
        )
    largest = float((expected - got).abs().max())
    return Verification(
        largest, largest / (float(expected.abs().max()) or 1.0), str(images.dtype).removeprefix("torch.")
    )

"""Proof that a pruned model computes what the masked one does."""

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from infoprune.artifacts import ChannelGraph, ChannelGroup, Verification
from infoprune.errors import RunError
from infoprune.shortening import shorten

TOLERANCE = 1e-5


def masked_twin(model: nn.Module, graph: ChannelGraph, kept: Mapping[str, Sequence[int]]) -> nn.Module:
    """A copy of the unpruned model in which removed channels are silent: what removal has to be equal to.

    Zeroing a filter alone would leave the bias of the batch norm behind it alive, so every layer of the group is
    silenced at its output, and every layer that reads the channels is made deaf to them (an activation with f(0) ≠ 0
    may lie between).

    Args:
        model: the unpruned model.
        graph: its channel groups.
        kept: kept channel indices per group; groups not named keep all.
    """
    twin = shorten(copy.deepcopy(model), graph.removed)
    groups = {group.name: group for group in graph.groups}
    with torch.no_grad():
        for name, channels in kept.items():
            _silence(twin, groups[name], sorted(set(range(groups[name].width)) - set(channels)))
    return twin


def _silence(model: nn.Module, group: ChannelGroup, removed: Sequence[int]) -> None:
    for member in group.members:
        module = model.get_submodule(member.layer)
        indices = [index for channel in removed for index in member.channels[channel]]
        if member.side == "out":
            for name in ("weight", "bias", "running_mean"):
                tensor = getattr(module, name, None)
                if isinstance(tensor, Tensor):
                    tensor[indices] = 0
        elif getattr(module, "groups", 1) == 1:
            module.weight[:, indices] = 0  # type: ignore[operator]


def verify(
    model: nn.Module, pruned: nn.Module, graph: ChannelGraph, kept: Mapping[str, Sequence[int]], images: Tensor
) -> Verification:
    """Compares the pruned model with the masked twin on calibration images.

    Where float32 rounding leaves it open, both are compared again in float64.

    Args:
        model: the unpruned model.
        pruned: what pruning made of it.
        graph: channel groups of the unpruned model.
        kept: kept channel indices per group.
        images: `samples x channels x height x width`, prepared as the model expects.

    Raises:
        RunError: where outputs differ by more than 1e-5 of the largest output.
    """
    twin = masked_twin(model, graph, kept)
    found = _difference(twin, pruned, images)
    if found.max_rel_difference > TOLERANCE and images.dtype != torch.float64:
        found = _difference(twin.double(), copy.deepcopy(pruned).double(), images.double())
    if not found.max_rel_difference <= TOLERANCE:
        raise RunError(
            f"the pruned model differs from its masked twin by {found.max_rel_difference:.2g} of the largest output "
            f"(at most {TOLERANCE:g} is rounding): the cut of these groups is not sound: {', '.join(kept)}"
        )
    return found


def _difference(twin: nn.Module, pruned: nn.Module, images: Tensor) -> Verification:
    with torch.no_grad():
        expected, got = (_flat(copy.deepcopy(model).eval()(images)) for model in (twin, pruned))
    if expected.shape != got.shape:
        raise RunError(
            f"the pruned model puts out {got.numel()} values where the unpruned one puts out {expected.numel()}: "
            "its output layer was cut"
        )
    largest = float((expected - got).abs().max())
    scale = float(expected.abs().max()) or 1.0
    return Verification(largest, largest / scale, str(images.dtype).removeprefix("torch."))


def _flat(output: object) -> Tensor:
    """All tensors of a model's output (a tensor, or a dictionary or tuple of them) in one row."""
    if isinstance(output, Tensor):
        return output.flatten()
    parts = output.values() if isinstance(output, Mapping) else output
    return torch.cat([_flat(part) for part in parts if part is not None])  # type: ignore[attr-defined]

"""torch-pruning's own pruner with its own defaults, as masks: what a user would get without us."""

import copy
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch_pruning as tp
from torch import Tensor, nn
from torch.nn import functional as F

from infoprune.errors import UserError, did_you_mean
from infoprune.graph.channels import ChannelGraph

Batches = Iterable[tuple[Tensor, Tensor]]
CRITERIA: Mapping[str, Callable[[], Any]] = {
    "l1": lambda: tp.importance.MagnitudeImportance(p=1),
    "l2": lambda: tp.importance.MagnitudeImportance(p=2),
    "batch_norm_scale": tp.importance.BNScaleImportance,
    "taylor": tp.importance.TaylorImportance,
    "hessian": tp.importance.HessianImportance,
    "fpgm": tp.importance.FPGMImportance,
    "lamp": tp.importance.LAMPImportance,
    "random": tp.importance.RandomImportance,
}
# Which of them look at gradients of the loss.
GRADIENTS = ("taylor", "hessian")
ROUNDS = 12


def masks_of(
    model: nn.Module, graph: ChannelGraph, batches: Batches, criterion: str, macs: float, seed: int = 0
) -> dict[str, list[int]]:
    """Kept filters per layer as torch-pruning's pruner chooses them: one ratio for all groups but the logits'.

    The library's ratio is one of channels; the one whose network costs at most `macs` is searched. Its criteria are
    taken as they are, with what is known of them: `hessian` keeps the last sample's only, `taylor` ignores batch norm,
    `fpgm` measures distances between absolute values.

    Args:
        model: the unpruned model; not touched.
        graph: its channel groups; layers that it refuses are left whole.
        batches: images and labels, for criteria that look at gradients.
        criterion: a name in `CRITERIA`.
        macs: multiply-accumulates per sample, at most.
        seed: of `random`.

    Returns:
        Layer -> kept filters, of one layer for each group that loses some.

    Raises:
        UserError: for an unknown criterion, or one that fails on this model.
    """
    if criterion not in CRITERIA:
        raise UserError(f"torch-pruning has no criterion '{criterion}' here{did_you_mean(criterion, CRITERIA)}")
    base = copy.deepcopy(model).eval()
    for parameter in base.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    importance = CRITERIA[criterion]()
    if criterion in GRADIENTS:
        _gradients(base, batches, importance)
    low, high = 0.0, 1.0
    found: dict[str, list[int]] = {}
    owners = {m.layer: group.name for group in graph.groups for m in group.members if m.side == "out"}
    whole = {group.name: group.width for group in graph.groups}
    for _ in range(ROUNDS):
        ratio = (low + high) / 2
        removed = _removed(base, graph, importance, ratio, seed)
        widths = {owners[layer]: whole[owners[layer]] - len(gone) for layer, gone in removed.items()}
        if graph.macs(widths) <= macs:
            high = ratio
            found = {layer: sorted(set(range(whole[owners[layer]])) - gone) for layer, gone in removed.items()}
        else:
            low = ratio
    return found


def _gradients(model: nn.Module, batches: Batches, importance: Any) -> None:
    """The loss gradients of all batches together, or the sums that a second-order criterion wants."""
    for images, labels in batches:
        loss = F.cross_entropy(model(images), labels, reduction="none")
        if isinstance(importance, tp.importance.HessianImportance):
            for each in loss[:8]:  # a backward pass for each sample, as its documentation has it
                model.zero_grad()
                torch.autograd.backward(each, retain_graph=True)
                importance.accumulate_grad(model)
        else:
            torch.autograd.backward(loss.mean())


def _removed(model: nn.Module, graph: ChannelGraph, importance: Any, ratio: float, seed: int) -> dict[str, set[int]]:
    """Channels that one step of the library's pruner would take, by the layer that its groups start from."""
    torch.manual_seed(seed)
    names = {module: name for name, module in model.named_modules()}
    whole = {
        member.layer for group in graph.groups if group.refusal for member in group.members if member.side == "out"
    } | {group.name for group in graph.groups if group.refusal}
    example = torch.zeros(1, *graph.input_shape)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pruner = tp.pruner.BasePruner(
            model,
            example.to(next(model.parameters())),
            importance=importance,
            pruning_ratio=ratio,
            ignored_layers=[model.get_submodule(name) for name in whole],
        )
        removed: dict[str, set[int]] = {}
        for group in pruner.step(interactive=True):
            root, indices = group[0].dep.target.module, group[0].idxs
            removed.setdefault(names[root], set()).update(indices)
    return removed

"""Gradient steps on a part of the pruned network towards what the unpruned one puts out there; no labels."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from infoprune.repairing.graph_replay import NORMS, Values, Walker

HELD_OUT = 8  # every eighth sample of a batch decides whether new weights are better


@dataclass(frozen=True)
class Block:
    """Part of the graph with one value going in and one coming out.

    Attributes:
        start, stop: positions of its first node and of the one behind its last.
        modules: dotted names of its layers and norms.
        channels: the teacher's channels that its output keeps.
    """

    start: int
    stop: int
    modules: tuple[str, ...]
    channels: tuple[int, ...]


def entry_of(walker: Walker, block: Block) -> fx.Node:
    """The one value that a block reads."""
    nodes: list[fx.Node] = [node for node in walker.nodes[: block.start] if node.op != "get_attr"]
    return [node for node in nodes if walker.last_use[node] >= block.start][-1]


@dataclass(frozen=True)
class Task:
    """A block with what it reads and what it should put out, `samples x …`.

    Attributes:
        walker: the pruned network.
        block: what is trained.
        read, wanted: for all samples.
        places: of the samples within their batches: views of the same images have the same, so that none is learnt from
            whose image is held out.
    """

    walker: Walker
    block: Block
    read: Tensor
    wanted: Tensor
    places: Tensor

    def output(self, index: Tensor) -> Tensor:
        values: Values = {entry_of(self.walker, self.block): self.read[index]}
        self.walker.run(values, None, self.block.start, self.block.stop)
        result: Tensor = values[self.walker.nodes[self.block.stop - 1]]
        return result

    def error(self, index: Tensor) -> Tensor:
        """Mean squared error over the target's mean square."""
        wanted = self.wanted[index]
        return F.mse_loss(self.output(index), wanted) / wanted.square().mean().clamp_min(1e-12)

    def split(self) -> tuple[Tensor, Tensor]:
        """The samples to learn from, and those to judge by."""
        held_out = self.places % HELD_OUT == HELD_OUT - 1
        every = torch.arange(len(self.read))
        return (every[~held_out], every[held_out]) if bool(held_out.any()) else (every, every)

    def fits(self) -> bool:
        """Whether the two networks' values can be compared: a flattened map's channels are not told apart here."""
        with torch.no_grad():
            return self.output(torch.tensor([0])).shape[1:] == self.wanted.shape[1:]


class Predictions(Task):
    """The last part of a classifier, which should predict what the unpruned network predicts."""

    def error(self, index: Tensor) -> Tensor:
        """Mean divergence KL(unpruned ‖ pruned) in nats."""
        wanted = self.wanted[index].log_softmax(1)
        return F.kl_div(self.output(index).log_softmax(1), wanted, reduction="batchmean", log_target=True)


def train(
    task: Task,
    pruned: nn.Module,
    steps: int,
    rate: float,
    step_samples: int,
    generator: torch.Generator,
    looks: int = 1,
) -> tuple[float, float]:
    """Adam on one block, a few looks at the error on held-out samples, and the best weights seen at one of them.

    The first look comes before the first step: where nothing gains, the weights stay.
    """
    train, held_out = task.split()
    parameters = [p for name in task.block.modules for p in pruned.get_submodule(name).parameters()]
    leaves = [p.detach().clone() for p in parameters]
    states = [(p.requires_grad, p.grad) for p in parameters]
    before = least = _mean_error(task, held_out, step_samples)
    optimizer = torch.optim.Adam(parameters, lr=rate)
    order = train[:0]
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = rate * (1 + math.cos(math.pi * step / steps)) / 2
        if len(order) < min(step_samples, len(train)):
            order = train[torch.randperm(len(train), generator=generator)]
        index, order = order[:step_samples], order[step_samples:]
        with torch.enable_grad():
            for parameter in parameters:
                parameter.requires_grad_(True)
            gradients = torch.autograd.grad(task.error(index), parameters, allow_unused=True)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        optimizer.step()
        if (step + 1) * looks // steps > step * looks // steps:
            error = _mean_error(task, held_out, step_samples)
            if error < least:
                least, leaves = error, [p.detach().clone() for p in parameters]
    with torch.no_grad():
        for parameter, leaf, (trainable, own) in zip(parameters, leaves, states, strict=True):
            parameter.copy_(leaf)
            parameter.requires_grad_(trainable).grad = own
    return before, least


def _mean_error(task: Task, index: Tensor, samples: int) -> float:
    total = 0.0
    with torch.no_grad():
        for start in range(0, len(index), samples):
            part = index[start : start + samples]
            total += float(task.error(part)) * len(part)
    return total / len(index)


def settle(task: Task, pruned: nn.Module, samples: int) -> None:
    """Makes the statistics of the block's norms the true ones again, and the affine terms such that nothing changes.

    Training moved the weights under statistics that stood still; a later training in training mode would find others.
    """
    norms: list[Any] = [pruned.get_submodule(name) for name in task.block.modules]
    norms = [norm for norm in norms if isinstance(norm, NORMS) and norm.affine and norm.track_running_stats]
    sums = {norm: norm.weight.new_zeros(2, norm.num_features, dtype=torch.float64) for norm in norms}
    counts = dict.fromkeys(norms, 0)

    def note(norm: nn.Module, inputs: tuple[Tensor, ...], named: Mapping[str, Tensor]) -> None:
        rows = next(iter((*inputs, *named.values()))).transpose(0, 1).flatten(1).double()
        sums[norm] += torch.stack([rows.sum(1), rows.square().sum(1)])
        counts[norm] += rows.shape[1]

    handles = [norm.register_forward_pre_hook(note, with_kwargs=True) for norm in norms]
    try:
        _mean_error(task, torch.arange(len(task.read)), samples)
    finally:
        for handle in handles:
            handle.remove()
    for norm, total in sums.items():
        mean, square = total / counts[norm]
        variance = (square - mean.square()).clamp_min(0)
        scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
        with torch.no_grad():
            norm.bias.add_(scale * (mean - norm.running_mean))
            norm.weight.copy_(scale * (variance + norm.eps).sqrt())
            norm.running_mean.copy_(mean)
            norm.running_var.copy_(variance)

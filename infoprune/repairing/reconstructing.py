"""Gradient steps on each block's reconstruction, without labels: what no linear refit of one layer can reach."""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from infoprune.artifacts import ChannelGraph
from infoprune.errors import UserError
from infoprune.modes import evaluating
from infoprune.repairing.compensating import LAYERS, LayerRepair, Repair, check_finite, first_images, kept_outputs
from infoprune.repairing.lockstep import NORMS, Batches, Values, Walker

HELD_OUT = 8  # every eighth sample decides whether a block's new weights are better
LAYERS_PER_BLOCK = 2  # a producer and its consumer: one layer alone is what the closed form has done already
COPIES = 2  # of what a block reads and puts out: on its way from block to block, and joined over the batches


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


def find_blocks(walker: Walker, model: nn.Module, outputs: Mapping[str, Sequence[int]]) -> list[Block]:
    """The graph in blocks of at least two layers, cut before a layer where a single value is alive.

    A grouped layer counts as part of the path from producer to consumer: an inverted residual block stays one block,
    cut where its maps are few.
    """
    blocks: list[Block] = []
    modules: list[str] = []
    channels: Sequence[int] = ()
    start, layers = 1, 0
    live: set[fx.Node] = {walker.nodes[0]}
    for position, node in enumerate(walker.nodes[1:], start=1):
        module = model.get_submodule(str(node.target)) if node.op == "call_module" else None
        dense = isinstance(module, LAYERS) and getattr(module, "groups", 1) == 1
        single = len(live) == 1 and dense
        if (node.op == "output" and len(live) == 1) or (single and layers >= LAYERS_PER_BLOCK):
            if modules and channels:
                blocks.append(Block(start, position, tuple(modules), tuple(channels)))
            start, modules, layers = position, [], 0
        if isinstance(module, (*LAYERS, *NORMS)):
            modules.append(str(node.target))
        if isinstance(module, LAYERS):
            layers, channels = layers + dense, outputs[str(node.target)]
        live = {value for value in {*live, node} if walker.last_use[value] > position and value.op != "get_attr"}
    return blocks


def reconstruct(
    pruned: nn.Module,
    teacher: nn.Module,
    graph: ChannelGraph,
    kept: Mapping[str, Sequence[int]],
    batches: Batches,
    on_step: Callable[[int, int], None] | None = None,
    *,
    steps: int = 200,
    learning_rate: float = 1e-3,
    step_samples: int = 64,
    cache_mb: int = 2048,
    seed: int = 0,
) -> Repair:
    """Trains each block of the pruned network to put out what the unpruned one does, from input to output.

    A block reads what the pruned network feeds it; Adam lowers the mean squared error at its end, with batch norms in
    evaluation mode. Labels are not used, and no gradient crosses a block's border: block reconstruction as Li et al.,
    "BRECQ", ICLR 2021, section 3.2, do it for quantization. New weights are kept where the error on held-out samples
    falls.

    Memory: what a block reads and what it should put out, twice each, for as many images as `cache_mb` allows, and
    what backpropagation through one block keeps for `step_samples` images.

    Args:
        pruned: changed in place, best after `compensate`; its modes are afterwards as before.
        teacher: the unpruned network; not touched.
        graph: channel groups of the teacher.
        kept: kept channels per group, in the teacher's coordinates.
        batches: pairs of images and anything; iterated once.
        on_step: told after each block the number of blocks done and of all.
        steps: gradient steps per block.
        learning_rate: Adam's, falling to 0 along a cosine.
        step_samples: images per step.
        cache_mb: memory for maps, in MiB; images whose maps do not fit are left out, which a note says.
        seed: of the order of the images.

    Raises:
        UserError: for no batches, NaN or infinite activations, or a model that torch.fx cannot trace.
    """
    outputs, _ = kept_outputs(pruned, teacher, graph, kept)
    device = first_images(batches, pruned).device
    generator = torch.Generator().manual_seed(seed)
    done: list[LayerRepair] = []
    with evaluating(pruned), evaluating(teacher):
        given, own = (_traced(model, graph.removed) for model in (teacher, pruned))
        blocks, at = find_blocks(own, pruned, outputs), 1
        images, notes = _fitting(batches, own, blocks, cache_mb << 20, device)
        states = [({given.nodes[0]: part}, {own.nodes[0]: part}) for part in images]
        for count, block in enumerate(blocks, start=1):
            read, wanted = _advance((given, own), states, at, block)
            task = _Task(own, block, read, wanted)
            if task.fits():
                errors = _train(task, pruned, steps, learning_rate, step_samples, generator)
                _settle(task, pruned, step_samples)
                done.append(LayerRepair(block.modules[-1], "block", 0.0, *errors))
            with torch.no_grad():
                for _, values in states:
                    own.run(values, None, block.start, block.stop)
            at = block.stop
            if on_step is not None:
                on_step(count, len(blocks))
    return Repair(tuple(done), notes)


def _fitting(
    batches: Batches, walker: Walker, blocks: Sequence[Block], cache_bytes: int, device: torch.device
) -> tuple[list[Tensor], tuple[str, ...]]:
    """The first images, as many as have maps at the borders of blocks that fit, and a note where some do not."""
    given = [images for images, _ in batches if len(images)]
    with torch.no_grad():
        shapes = walker.shapes(given[0][:1].to(device))
    sizes = [_entry(walker, block) for block in blocks], [walker.nodes[block.stop - 1] for block in blocks]
    numbers = [[math.prod(shapes[walker.positions[node]] or ()) for node in nodes] for nodes in sizes]
    largest = max((sum(pair) for pair in zip(*numbers, strict=True)), default=1)
    count, total = cache_bytes // (COPIES * given[0].element_size() * largest), sum(map(len, given))
    if count >= total:
        return [part.to(device) for part in given], ()
    if count < 1:
        raise UserError(
            f"cache_mb = {cache_bytes >> 20} holds the maps of no image; one takes "
            f"{COPIES * given[0].element_size() * largest / 2**20:.0f} MiB"
        )
    whole, size = torch.cat(given), max(map(len, given))
    kept = [whole[start : min(start + size, count)] for start in range(0, count, size)]
    return [part.to(device) for part in kept], (
        f"gradient steps see {count} of {total} images: cache_mb holds no more",
    )


def _traced(model: nn.Module, leaves: Collection[str]) -> Walker:
    try:
        return Walker(model, leaves)
    except Exception as error:  # Tracing fails in as many ways as there are models.
        raise UserError(
            f"torch.fx cannot trace the model ({type(error).__name__}: {error}); use method = 'compensate'"
        ) from error


def _advance(
    walkers: tuple[Walker, Walker], states: list[tuple[Values, Values]], at: int, block: Block
) -> tuple[Tensor, Tensor]:
    """What the pruned block reads and what the teacher puts out behind it, for all images."""
    teacher, pruned = walkers
    with torch.no_grad():
        for given, own in states:
            teacher.run(given, None, at, block.stop)
            pruned.run(own, None, at, block.start)
    entry, last = _entry(pruned, block), teacher.nodes[block.stop - 1]
    wanted = torch.cat([given[last] for given, _ in states])
    if wanted.shape[1] > len(block.channels):
        wanted = wanted.index_select(1, torch.tensor(block.channels, device=wanted.device))
    read = torch.cat([own[entry] for _, own in states])
    check_finite(block.modules[0], read, wanted)
    return read, wanted


def _entry(walker: Walker, block: Block) -> fx.Node:
    """The one value that a block reads."""
    nodes: list[fx.Node] = [node for node in walker.nodes[: block.start] if node.op != "get_attr"]
    return [node for node in nodes if walker.last_use[node] >= block.start][-1]


@dataclass(frozen=True)
class _Task:
    """A block with what it reads and what it should put out, `samples x …`."""

    walker: Walker
    block: Block
    read: Tensor
    wanted: Tensor

    def output(self, index: Tensor) -> Tensor:
        values: Values = {_entry(self.walker, self.block): self.read[index]}
        self.walker.run(values, None, self.block.start, self.block.stop)
        result: Tensor = values[self.walker.nodes[self.block.stop - 1]]
        return result

    def error(self, index: Tensor) -> Tensor:
        """Mean squared error over the target's mean square."""
        wanted = self.wanted[index]
        return F.mse_loss(self.output(index), wanted) / wanted.square().mean().clamp_min(1e-12)

    def fits(self) -> bool:
        """Whether the two networks' values can be compared: a flattened map's channels are not told apart here."""
        with torch.no_grad():
            return self.output(torch.tensor([0])).shape[1:] == self.wanted.shape[1:]


def _train(
    task: _Task, pruned: nn.Module, steps: int, rate: float, step_samples: int, generator: torch.Generator
) -> tuple[float, float]:
    """Adam on one block; the weights as they were come back where held-out samples do not gain."""
    every = torch.arange(len(task.read))
    mask = every % HELD_OUT == HELD_OUT - 1
    held_out, train = (every[mask], every[~mask]) if bool(mask.any()) else (every, every)
    parameters = [p for name in task.block.modules for p in pruned.get_submodule(name).parameters()]
    leaves = [p.detach().clone() for p in parameters]
    states = [(p.requires_grad, p.grad) for p in parameters]
    before = _mean_error(task, held_out, step_samples)
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
    for parameter, (trainable, own) in zip(parameters, states, strict=True):
        parameter.requires_grad_(trainable).grad = own
    after = _mean_error(task, held_out, step_samples)
    if not after < before:
        after = before
        with torch.no_grad():
            for parameter, leaf in zip(parameters, leaves, strict=True):
                parameter.copy_(leaf)
    return before, after


def _mean_error(task: _Task, index: Tensor, samples: int) -> float:
    total = 0.0
    with torch.no_grad():
        for start in range(0, len(index), samples):
            part = index[start : start + samples]
            total += float(task.error(part)) * len(part)
    return total / len(index)


def _settle(task: _Task, pruned: nn.Module, samples: int) -> None:
    """Makes the statistics of the block's norms the true ones again, and the affine terms such that nothing changes.

    Training moved the weights under statistics that stood still; a later training in training mode would find others.
    """
    norms: list[Any] = [pruned.get_submodule(name) for name in task.block.modules]
    norms = [norm for norm in norms if isinstance(norm, NORMS) and norm.affine and norm.track_running_stats]
    sums = {norm: norm.weight.new_zeros(2, norm.num_features, dtype=torch.float64) for norm in norms}
    counts = dict.fromkeys(norms, 0)

    def note(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        rows = inputs[0].transpose(0, 1).flatten(1).double()
        sums[norm] += torch.stack([rows.sum(1), rows.square().sum(1)])
        counts[norm] += rows.shape[1]

    handles = [norm.register_forward_pre_hook(note) for norm in norms]
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

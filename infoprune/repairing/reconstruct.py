"""Gradient steps on each block's reconstruction, without labels: what no linear refit of one layer can reach."""

import math
from collections.abc import Callable, Collection, Mapping, Sequence

import torch
from torch import Tensor, fx, nn

from infoprune.errors import UserError
from infoprune.graph.channels import ChannelGraph
from infoprune.repairing.compensate import LAYERS, LayerRepair, Repair, check_finite, first_images, kept_outputs
from infoprune.repairing.gradient_steps import Block, Task, entry_of, settle, train
from infoprune.repairing.graph_replay import NORMS, Batches, Values, Walker
from infoprune.utils.module_mode import evaluating

LAYERS_PER_BLOCK = 2  # a producer and its consumer: one layer alone is what the closed form has done already
COPIES = 2  # of what a block reads and puts out: on its way from block to block, and joined over the batches


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
        given, own = (traced(model, graph.removed) for model in (teacher, pruned))
        blocks, at = find_blocks(own, pruned, outputs), 1
        images, notes = fitting(batches, own, blocks, cache_mb << 20, device)
        places = torch.cat([torch.arange(len(part)) for part in images])
        states = [({given.nodes[0]: part}, {own.nodes[0]: part}) for part in images]
        for count, block in enumerate(blocks, start=1):
            read, wanted = _advance((given, own), states, at, block)
            task = Task(own, block, read, wanted, places)
            if task.fits():
                errors = train(task, pruned, steps, learning_rate, step_samples, generator)
                settle(task, pruned, step_samples)
                done.append(LayerRepair(block.modules[-1], "block", 0.0, *errors))
            with torch.no_grad():
                for _, values in states:
                    own.run(values, None, block.start, block.stop)
            at = block.stop
            if on_step is not None:
                on_step(count, len(blocks))
    return Repair(tuple(done), notes)


def fitting(
    batches: Batches, walker: Walker, blocks: Sequence[Block], cache_bytes: int, device: torch.device
) -> tuple[list[Tensor], tuple[str, ...]]:
    """The first images, as many as have maps at the borders of blocks that fit, and a note where some do not."""
    given = [images for images, _ in batches if len(images)]
    with torch.no_grad():
        shapes = walker.shapes(given[0][:1].to(device))
    sizes = [entry_of(walker, block) for block in blocks], [walker.nodes[block.stop - 1] for block in blocks]
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
    kept: list[Tensor] = []
    left = count
    for part in given:  # as they came: an image's place in its batch says whether it is held out
        kept += [part[:left].to(device)] if left > 0 else []
        left -= len(part)
    return kept, (f"gradient steps see {count} of {total} images: cache_mb holds no more",)


def traced(model: nn.Module, leaves: Collection[str]) -> Walker:
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
    entry, last = entry_of(pruned, block), teacher.nodes[block.stop - 1]
    wanted = torch.cat([given[last] for given, _ in states])
    if wanted.shape[1] > len(block.channels):
        wanted = wanted.index_select(1, torch.tensor(block.channels, device=wanted.device))
    read = torch.cat([own[entry] for _, own in states])
    check_finite(block.modules[0], read, wanted)
    return read, wanted

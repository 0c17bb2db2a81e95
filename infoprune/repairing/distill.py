"""Gradient steps on the last blocks together, towards the unpruned network's predictions, without labels."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from infoprune.errors import UserError
from infoprune.graph.channels import ChannelGraph
from infoprune.repairing.compensate import LayerRepair, Repair, check_finite, first_images, kept_outputs
from infoprune.repairing.gradient_steps import Block, Predictions, entry_of, settle, train
from infoprune.repairing.graph_replay import Batches, Values
from infoprune.repairing.reconstruct import find_blocks, fitting, traced
from infoprune.utils.module_mode import evaluating

LOOKS = 8  # at the held-out divergence, the best of which counts: few images are soon learnt by heart
# Rates are tried one after the other, each from the best weights so far: a folded MobileNetV2 with 500 images gains at
# the first alone, a CIFAR ResNet with 1,024 at the later ones.
RATES = (1, 5, 25)


def match_predictions(
    pruned: nn.Module,
    teacher: nn.Module,
    graph: ChannelGraph,
    kept: Mapping[str, Sequence[int]],
    batches: Batches,
    on_step: Callable[[int, int], None] | None = None,
    *,
    blocks: int = 6,
    steps: int = 100,
    learning_rate: float = 2e-5,
    step_samples: int = 64,
    cache_mb: int = 2048,
    seed: int = 0,
) -> Repair:
    """Trains the last blocks of the pruned network, together, to predict what the unpruned one predicts.

    What no repair of single responses sees: which errors the logits are sensitive to, and how those of several blocks
    add up. Adam lowers KL(unpruned ‖ pruned) over the classes (the distillation of Hinton et al., 1503.02531, section
    2, at temperature 1 and without labels) on maps that are computed once, with batch norms in evaluation mode. Three
    rounds take steps at rising rates, and the best of a few looks at held-out samples counts.

    Memory: what the first of the blocks reads, for as many images as `cache_mb` allows, and what backpropagation
    through the blocks keeps for `step_samples` images.

    Args:
        pruned: changed in place, after every other repair; its modes are afterwards as before.
        teacher: the unpruned network; not touched.
        graph: channel groups of the teacher.
        kept: kept channels per group, in the teacher's coordinates.
        batches: pairs of images and anything; iterated once.
        on_step: told after each round the number of rounds done and of all.
        blocks: how many, counted from the output; all where there are fewer.
        steps: gradient steps per round.
        learning_rate: Adam's in the first round, five times as large in each further one, falling to 0 along a cosine.
        step_samples: images per step.
        cache_mb: memory for maps, in MiB; images whose maps do not fit are left out, which a note says.
        seed: of the order of the images.

    Raises:
        UserError: for no batches, NaN or infinite activations, or a model that torch.fx cannot trace or that is no
            classifier.
    """
    outputs, _ = kept_outputs(pruned, teacher, graph, kept)
    device = first_images(batches, pruned).device
    with evaluating(pruned), evaluating(teacher):
        given, own = (traced(model, graph.removed) for model in (teacher, pruned))
        found = find_blocks(own, pruned, outputs)
        some = found[max(0, len(found) - blocks) :]
        if not some:
            return Repair((), ("the network has no blocks to take steps on",))
        modules = tuple(name for block in some for name in block.modules)
        tail = Block(some[0].start, some[-1].stop, modules, some[-1].channels)
        images, notes = fitting(batches, own, [tail], cache_mb << 20, device)
        read: list[Tensor] = []
        wanted: list[Tensor] = []
        with torch.no_grad():
            for part in images:
                theirs: Values = {given.nodes[0]: part}
                ours: Values = {own.nodes[0]: part}
                given.run(theirs, None, 1, tail.stop)
                own.run(ours, None, 1, tail.start)
                read.append(ours[entry_of(own, tail)])
                wanted.append(theirs[given.nodes[tail.stop - 1]])
        logits = wanted[0]
        if not isinstance(logits, Tensor) or logits.dim() != 2:
            raise UserError("only a classifier has predictions to match (logits, samples x classes); set match = 0")
        check_finite(modules[0], *read, *wanted)
        places = torch.cat([torch.arange(len(part)) for part in images])
        task = Predictions(own, tail, torch.cat(read), torch.cat(wanted), places)
        generator = torch.Generator().manual_seed(seed)
        errors: list[float] = []
        for done, factor in enumerate(RATES, start=1):
            errors += train(task, pruned, steps, factor * learning_rate, step_samples, generator, LOOKS)
            if on_step is not None:
                on_step(done, len(RATES))
        settle(task, pruned, step_samples)
    return Repair((LayerRepair(modules[-1], "predictions", 0.0, errors[0], errors[-1]),), notes)

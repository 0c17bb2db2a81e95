"""Brings accuracy back after pruning without labels and without training."""

from collections.abc import Callable, Mapping, Sequence, Sized
from typing import Annotated, Any, Literal, get_args

import torch
from msgspec import Meta
from torch import Tensor, nn

from infoprune.config.ranges import LearningRate, Mebibytes, Positions, Seed, Steps, in_range
from infoprune.errors import UserError
from infoprune.graph.channels import ChannelGraph
from infoprune.repairing.compensate import POSITIONS, Repair, Scope, check_finite, compensate, first_images
from infoprune.repairing.distill import match_predictions
from infoprune.repairing.graph_replay import NORMS, Batches
from infoprune.repairing.reconstruct import reconstruct
from infoprune.utils.module_mode import mode_kept

Method = Literal["reconstruct", "compensate", "batch_norm", "none"]


@in_range("[repair]")
def repair(
    pruned: nn.Module,
    teacher: nn.Module,
    graph: ChannelGraph,
    kept: Mapping[str, Sequence[int]],
    batches: Batches,
    on_step: Callable[[int, int], None] | None = None,
    views: Batches = (),
    *,
    method: Method = "compensate",
    scope: Scope = "all",
    ridge: Annotated[float, Meta(gt=0, le=1_000_000)] | None = None,
    positions: Positions = POSITIONS,
    cache_mb: Mebibytes = 2048,
    inputs_limit: Annotated[int, Meta(ge=0, le=1_000_000)] = 8192,
    steps: Steps = 200,
    learning_rate: LearningRate = 1e-3,
    match: Annotated[int, Meta(ge=0, le=10_000)] = 0,
    match_steps: Steps = 100,
    match_rate: LearningRate = 2e-5,
    seed: Seed = 0,
) -> Repair:
    """Repairs a pruned network in place from calibration images without labels.

    Args:
        pruned: changed in place; module types, names and shapes stay, and so do modes.
        teacher: the unpruned network; not touched.
        graph: channel groups of the teacher.
        kept: kept channels per group, in the teacher's coordinates; groups not named kept all.
        batches: pairs of images and anything, iterable again and again; the second is not used.
        on_step: told after each step (a layer, or a batch) the number of steps done and of all (0 where unknown).
        views: the same images changed at random, each where it is in its batch, for gradient steps; a refit gains
            nothing from them.
        method: "compensate" refits layers in closed form; "reconstruct" does so and then takes gradient steps on each
            block's reconstruction, which gains more and takes minutes; "batch_norm" re-estimates the statistics of
            batch norms; "none" leaves the network as it was cut. Recalibrating after a refit gains nothing.
        scope: of a refit: the "consumers" of pruned groups, or "all" layers behind the first of them.
        ridge: of a refit: strength relative to the mean variance of a layer's inputs; if not given, chosen by the
            error on held-out samples.
        positions: of a refit: rows taken from each image's map of a layer, drawn at random; 0 for all.
        cache_mb: memory for activations kept between layers, in MiB; where they do not fit, a refit runs batches
            again, which takes longer, and gradient steps see fewer images, which a note says.
        inputs_limit: of a refit: layers with more inputs (channels times kernel size) stay as they are; the
            normal matrices of k inputs take 24·k² bytes.
        steps: of "reconstruct": gradient steps per block.
        learning_rate: of "reconstruct": Adam's, falling to 0 along a cosine.
        match: the number of blocks, counted from the output, that then take gradient steps together towards the
            unpruned network's predictions, without labels; 0 for none.
        match_steps: their number in each of three rounds.
        match_rate: Adam's in the first round, five times as large in each further one; the best weights count.
        seed: of gradient steps: order of the images.

    Raises:
        UserError: for no batches, NaN or infinite activations, options out of range, or networks that do not fit
            `graph` and `kept`.
    """
    if method not in get_args(Method):
        raise UserError(f"[repair] method is '{method}'; expected 'reconstruct', 'compensate', 'batch_norm' or 'none'")
    more = [*batches, *views] if match or method == "reconstruct" else []
    models, done = (pruned, teacher, graph, kept), Repair()
    if method in ("compensate", "reconstruct"):
        refit: dict[str, Any] = {"scope": scope, "ridge": ridge, "positions": positions, "inputs_limit": inputs_limit}
        done += compensate(*models, batches, on_step, cache_mb=cache_mb, **refit)
    if method == "reconstruct":
        done += reconstruct(
            *models, more, on_step, steps=steps, learning_rate=learning_rate, cache_mb=cache_mb, seed=seed
        )
    if method == "batch_norm":
        recalibrate(pruned, batches, on_step)
    if match:
        how: dict[str, Any] = {"blocks": match, "steps": match_steps, "learning_rate": match_rate}
        done += match_predictions(*models, more, on_step, cache_mb=cache_mb, seed=seed, **how)
    return done


def recalibrate(model: nn.Module, batches: Batches, on_step: Callable[[int, int], None] | None = None) -> None:
    """Re-estimates batch norm statistics: plain averages over all batches, everything else in evaluation mode.

    Statistics change all along the network at once, each norm seeing what the others make of the same batch, as in
    training. Weights, modes and momenta stay as they were.

    Args:
        model: changed in place; a model without batch norm stays as it is.
        batches: pairs of images and anything.
        on_step: told after each batch the number of batches done and of all (0 where they have no length).

    Raises:
        UserError: for no batches, a batch of one value per channel, or NaN or infinite activations.
    """
    norms = [module for module in model.modules() if isinstance(module, NORMS) and module.track_running_stats]
    momenta = [norm.momentum for norm in norms]
    device = first_images(batches, model).device
    total = len(batches) if isinstance(batches, Sized) else 0
    with mode_kept(model), torch.no_grad():
        model.eval()
        try:
            for norm in norms:
                norm.reset_running_stats()
                norm.momentum = None  # torch's word for a cumulative average
                norm.train()
            for done, (images, _) in enumerate(batches, start=1):
                _forward(model, images.to(device))
                if on_step is not None:
                    on_step(done, total)
        finally:
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.momentum = momentum
    for name, module in model.named_modules():
        if module in norms:
            check_finite(name, module.running_mean, module.running_var)


def _forward(model: nn.Module, images: Tensor) -> None:
    try:
        model(images)
    except ValueError as error:
        raise UserError(
            f"batch norm cannot be recalibrated on a batch of shape {tuple(images.shape)}: {error}; use larger batches"
        ) from error

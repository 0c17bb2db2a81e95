"""The networks of a run's stages, read from and written to its checkpoints."""

import copy
from pathlib import Path
from typing import Any

from torch import nn

from infoprune.io import checkpoint, storage
from infoprune.pipeline.artifacts import MADE_FROM, Origin, weights_name
from infoprune.pipeline.context import Context
from infoprune.planning.masks import compose
from infoprune.planning.plan import Plan
from infoprune.utils import distributed


def network(context: Context, stage: str) -> nn.Module:
    """The network of a stage: the one just made, or read from its file."""
    if stage == "base":
        return context.model
    if stage not in context.networks:
        reference, path = context.settings.model, context.out / weights_name(stage)
        whole = checkpoint.without_weights(reference) if context.earlier_plan else copy.deepcopy(context.model)
        # This run wrote the file, so that what it asks for is what the recipe asked for.
        context.networks[stage] = checkpoint.load(path, whole, trust_code=True).to(context.device)
    return context.networks[stage]


def save_network(
    context: Context, stage: str, model: nn.Module, made_from: Origin, plan: Plan | None, of: str = "", **notes: Any
) -> None:
    """Keeps the network of a stage; the first process writes it.

    Args:
        context: the run.
        stage: "pruned", …
        model: the network.
        made_from: what it came from.
        plan: by which it was pruned in this run; `None` where it was not.
        of: the artifact that it is a part of; itself if not given.
        notes: further JSON values for the header.
    """
    context.networks[stage] = model
    if not distributed.is_first():
        return
    earlier = None if stage.startswith("trained") else context.earlier_plan  # training starts from the whole network
    if earlier is not None:
        plan = earlier if plan is None else compose(earlier, plan)

    def write(path: Path) -> None:
        checkpoint.save(path, model, context.settings.model, plan, **{MADE_FROM: made_from}, **notes)

    context.directory.write(weights_name(stage), write, of, storage.value_fingerprint(made_from))

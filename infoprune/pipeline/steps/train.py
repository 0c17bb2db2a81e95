"""Trains the recipe's model from scratch and writes `trained.safetensors`: how shipped weights are made."""

from collections.abc import Mapping

import torch

from infoprune.errors import UserError
from infoprune.io import checkpoint
from infoprune.pipeline import fit
from infoprune.pipeline.artifacts import Origin, changes, is_current, origin
from infoprune.pipeline.context import Context
from infoprune.pipeline.step import Step, always

FILE = fit.TRAIN.artifact


def origins(context: Context) -> dict[str, Origin]:
    """A network trained from scratch comes from no weights."""
    options, code = fit.given(context, fit.TRAIN), fit.code(context, fit.TRAIN)
    return {FILE: origin(context, options, code=code, calibrated=False, weighted=False)}


def make(context: Context, stale: Mapping[str, Origin]) -> None:
    """Writes the trained network, its history, and the best or the last epoch's weights beside it."""
    torch.manual_seed(context.settings.run.seed)
    model = checkpoint.build(context.settings.model).to(context.device)
    fit.train(context, fit.TRAIN, model, None, None, stale[FILE])


def keep_earlier(context: Context) -> None:
    """Raises UserError where weights of a training with other options would be replaced."""
    made_from = origins(context)[FILE]
    if context.directory.state(FILE) == "absent" or is_current(context.directory, FILE, made_from):
        return
    differences = context.directory.damaged(FILE) or changes(context.directory, FILE, made_from) or ["files beside it"]
    raise UserError(
        f"'{context.out / FILE}' holds weights of an earlier training and would be replaced (changed: "
        f"{', '.join(differences)}); add --replace to train again, or choose another folder with --out"
    )


def clear(context: Context, origins: Mapping[str, Origin]) -> None:
    """Removes the state of a training whose artifact is there."""
    fit.epochs(context, fit.TRAIN, origins[FILE]).clear()


STEP = Step("train", origins, make, together=always, after=clear)

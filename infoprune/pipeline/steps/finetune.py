"""Trains the repaired model with the unpruned one as teacher and writes `finetuned.safetensors`."""

import copy
from collections.abc import Mapping

from infoprune.pipeline import fit
from infoprune.pipeline.artifacts import Origin, origin, weights_name
from infoprune.pipeline.context import Context
from infoprune.pipeline.networks import network
from infoprune.pipeline.step import Step, always
from infoprune.pipeline.steps.plan import planned

FILE = fit.FINETUNE.artifact


def origins(context: Context) -> dict[str, Origin]:
    """The fine-tuned network comes from the repaired one."""
    options, code = fit.given(context, fit.FINETUNE), fit.code(context, fit.FINETUNE)
    return {FILE: origin(context, options, weights_name("repaired"), code=code, calibrated=False)}


def make(context: Context, stale: Mapping[str, Origin]) -> None:
    """Writes the fine-tuned network, its history, and the best or the last epoch's weights beside it."""
    model = copy.deepcopy(network(context, "repaired"))
    fit.train(context, fit.FINETUNE, model, context.model, planned(context), stale[FILE])


def clear(context: Context, origins: Mapping[str, Origin]) -> None:
    """Removes the state of a training whose artifact is there."""
    fit.epochs(context, fit.FINETUNE, origins[FILE]).clear()


STEP = Step("finetune", origins, make, together=always, after=clear)

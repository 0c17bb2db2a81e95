"""Training in a run directory: resumable to the epoch, with its history, its planes and the other of best and last."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from infoprune.io import storage
from infoprune.pipeline.artifacts import Origin, weights_name
from infoprune.pipeline.context import Context
from infoprune.pipeline.networks import save_network
from infoprune.planning.plan import Plan
from infoprune.training.finetune import finetune
from infoprune.training.history import write_history
from infoprune.training.plane import PlaneFile
from infoprune.training.resume import EpochFile
from infoprune.utils import distributed


@dataclass(frozen=True)
class Fit:
    """One of the two steps that train.

    Attributes:
        table: of the recipe, and the step's name.
        stage: of the network that it leaves.
        history: the file of its epochs.
    """

    table: Literal["finetune", "train"]
    stage: str
    history: str

    @property
    def artifact(self) -> str:
        """The file that the step leaves; the others are parts of it."""
        return weights_name(self.stage)

    @property
    def planes(self) -> str:
        """The file of the information planes while training."""
        return f"plane-{self.stage}.json"


FINETUNE, TRAIN = Fit("finetune", "finetuned", "history.csv"), Fit("train", "trained", "training.csv")


def given(context: Context, fit: Fit) -> dict[str, Any]:
    """The options that a training depends on: its own, the batch size, and the planes to look at."""
    points = context.settings.plane.points
    planes = {"plane": points} if points else {}
    return {**context.settings.tables[fit.table], "batch_size": context.settings.run.batch_size, **planes}


def code(context: Context, fit: Fit) -> list[str | None]:
    """References to the user's own code that a training uses."""
    options = context.settings.tables[fit.table]
    return [options["loss"], options["metric"]]


def epochs(context: Context, fit: Fit, made_from: Origin) -> EpochFile:
    """Where the state of a training lies until its artifact is written."""
    return EpochFile(context.directory.private(f"{fit.stage}.epochs{storage.SAFETENSORS}"), made_from)


def train(
    context: Context, fit: Fit, model: nn.Module, teacher: nn.Module | None, plan: Plan | None, made_from: Origin
) -> None:
    """Trains a model in place, going on where a killed run got to, and writes it, its history and its counterpart.

    That is the best epoch's weights where the last one's are kept, and the other way round.
    """
    options, state = context.settings.tables[fit.table], epochs(context, fit, made_from)
    batches, validation = context.batches("train"), context.batches("validation")
    watch, seed = _watch(context, fit, model, made_from), context.settings.run.seed
    records = finetune(model, batches, validation, teacher, watch, state, seed=seed, **options)
    if distributed.is_first():
        fingerprint = storage.value_fingerprint(made_from)
        context.directory.write(fit.history, lambda path: write_history(path, records), fit.artifact, fingerprint)
    other: Literal["best", "last"] = "best" if options["keep"] == "last" else "last"
    if weights := state.weights(other):
        counterpart = copy.deepcopy(model)
        storage.fit_weights(counterpart, weights, str(state.path))
        save_network(context, f"{fit.stage}-{other}", counterpart, made_from, plan, fit.artifact)
    save_network(context, fit.stage, model, made_from, plan)
    distributed.wait()


def _watch(context: Context, fit: Fit, model: nn.Module, made_from: Origin) -> Callable[[int, int], None]:
    """What is done after each step of a training: progress, and a look at the information plane."""
    count: Callable[[int, int], None] = context.counter(fit.table)
    if not context.settings.plane.points or not distributed.is_first():
        return count
    fingerprint = storage.value_fingerprint(made_from)

    def save(content: Mapping[str, Any]) -> None:
        context.directory.write_json(fit.planes, content, fit.artifact, fingerprint)

    options = context.settings.analyses.get("information_plane", {})
    planes = PlaneFile(context.directory.recall(fit.planes), save, made_from, context.settings.plane.steps, options)
    planes.look(model, context.calibration, 0, 1)

    def watch(done: int, total: int) -> None:
        count(done, total)
        planes.look(model, context.calibration, done, total)

    return watch

"""Trials on validation data: what a plan's network keeps after repair, and a memory of what was tried."""

import math
from collections.abc import Callable, Mapping

from torch import nn

from infoprune.evaluation.accuracy import evaluate
from infoprune.io.encoding import from_json
from infoprune.pipeline.artifacts import MADE_FROM, Origin, write_json
from infoprune.pipeline.context import Context
from infoprune.planning.plan import Plan
from infoprune.pruning.prune import prune
from infoprune.repairing.repair import repair

Remember = Callable[[Mapping[str, float]], None]


def accuracy(context: Context, model: nn.Module) -> float:
    """Share of correct predictions on the validation split, 0..1."""
    batches = context.data.batches("validation", batch_size=context.settings.run.batch_size, device=context.device)
    return evaluate(model, batches).accuracy


def accuracy_after_repair(context: Context, plan: Plan) -> float:
    """Validation accuracy of a plan's network after repair, 0..1."""
    model = prune(context.model, plan)
    graph, kept = context.graph_without(plan.removed), plan.kept()
    options = context.settings.tables["repair"]
    repair(model, context.model, graph, kept, context.calibration, None, context.views, **options)
    return accuracy(context, model)


def remembered(
    context: Context, file: str, made_from: Origin, most: int, of: str
) -> tuple[float, dict[str, float], Remember]:
    """The unpruned model's validation accuracy, what was tried before, and how to note what is.

    Args:
        context: the run.
        file: name of the artifact that keeps what was tried; NaN stands there as null.
        made_from: what must be equal for earlier trials to count.
        most: how many there will be at most, for the progress.
        of: the artifact that the file is a part of, so that damage to it is noticed.
    """
    before, path = context.directory.recall(file), str(context.out / file)
    if before.get(MADE_FROM) != made_from:
        before = {"base": accuracy(context, context.model), "tried": {}}
    base: float = from_json(before.get("base"), float, path)
    tried = from_json(before.get("tried"), dict[str, float | None], path)
    known = {key: math.nan if value is None else value for key, value in tried.items()}

    def remember(tried: Mapping[str, float]) -> None:
        context.progress.advance("trials", len(tried), max(most, len(tried)))
        rows = {key: None if math.isnan(value) else value for key, value in tried.items()}
        write_json(context, file, made_from, {"base": base, "tried": rows}, of)

    return base, known, remember

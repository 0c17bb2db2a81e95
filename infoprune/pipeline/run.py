"""Recipe -> run directory: each step leaves its artifacts, and is skipped where they came from equal inputs."""

from pathlib import Path

from infoprune.config.recipe import Recipe
from infoprune.evaluation.metrics import Metrics, StageMetrics
from infoprune.pipeline.context import Context, Progress, open_run
from infoprune.pipeline.step import Step, run_step
from infoprune.pipeline.steps import (
    analyze,
    depth,
    evaluate,
    export,
    finetune,
    plan,
    prune,
    repair,
    report,
    sensitivity,
    timings,
    train,
)
from infoprune.utils import distributed
from infoprune.utils.notebook import bars_in_notebook

STEPS: tuple[Step, ...] = (
    analyze.STEP,
    depth.STEP,
    sensitivity.STEP,
    timings.STEP,
    plan.STEP,
    prune.STEP,
    repair.STEP,
    finetune.STEP,
    evaluate.BASE_STEP,
    evaluate.STEP,
    export.STEP,
    report.STEP,
)
# Those that a user asks for by name; the others are taken where a plan wants them.
COMMANDS = ("analyze", "plan", "prune", "repair", "finetune", "evaluate", "export", "report")


def run(recipe: Recipe, out: Path | str, progress: Progress | None = None, *, force: bool = False) -> Metrics:
    """Runs all steps of a recipe.

    Args:
        recipe: from `infoprune.config.recipe.read`.
        out: the run directory; steps whose artifacts in it came from equal inputs are skipped.
        progress: told about each step; in a notebook, bars if not given.
        force: accept a folder that holds other files; they stay as they are.

    Returns:
        What `metrics.json` says of each stage.

    Raises:
        UserError: for anything in the recipe, the data or the model that the user has to correct.
        RunError: where a step fails, such as a verification that does not hold.
    """
    context = open_run(recipe, out, progress or bars_in_notebook(), force=force)
    run_until(context, "report")
    return evaluate.metrics(context)


def run_until(context: Context, last: str) -> None:
    """Runs the steps of a recipe up to one of them, those that it wants and that are not up to date."""
    names = [step.name for step in STEPS]
    with distributed.together():
        if names.index(last) >= names.index("plan"):
            plan.check(context)
        for step in STEPS[: names.index(last) + 1]:
            if step.wanted(context):
                run_step(context, step)


def train_from_scratch(context: Context, *, replace: bool = False) -> StageMetrics:
    """Trains the recipe's model from scratch and measures it on the test split.

    Args:
        context: the run.
        replace: train again where weights lie there that came from other options.

    Raises:
        UserError: where such weights lie there, and they are not to be replaced.
    """
    with distributed.together():
        if not replace:
            train.keep_earlier(context)
        run_step(context, train.STEP)
        score = evaluate.score(context, "trained")
        with distributed.in_turn():
            return evaluate.measure(context, "trained", score)

"""The commands that do the job: `run`, `train`, and one per step."""

from pathlib import Path

import click

from infoprune.cli import tables
from infoprune.cli.display import PROCESS, Display, conclude, failures, job_for, out, recipe_options

STEPS = {
    "analyze": "Run the analyses and write findings/.",
    "plan": "Choose the channels to keep and write plan.json.",
    "prune": "Remove channels, prove the result, write pruned.safetensors.",
    "repair": "Bring accuracy back without training; write repaired.safetensors.",
    "finetune": "Train the smaller network; write finetuned.safetensors.",
    "evaluate": "Measure all stages on the test split; write metrics.json.",
    "export": "Write the fine-tuned network in other formats under export/.",
    "report": "Write report.html.",
}
EXPLAIN = click.option("--explain", metavar="GROUP", help="Say all that is known of one channel group.")


@click.command(short_help="Do the whole job: all of the steps below.")
@recipe_options
def run(recipe: str, folder: Path | None, overrides: tuple[str, ...], quiet: bool) -> None:
    """Do the whole job: all of the steps below."""
    _until("report", recipe, folder, overrides, quiet)


@click.command(short_help="Train the recipe's model from scratch; write trained.safetensors.")
@recipe_options
def train(recipe: str, folder: Path | None, overrides: tuple[str, ...], quiet: bool) -> None:
    """Train the recipe's model from scratch; write trained.safetensors."""
    display = Display(quiet)
    with failures(), display.bars:
        job = job_for(recipe, folder, overrides, display)
        measured = job.train()
    if not PROCESS:
        out.print(tables.stage_table({"trained": measured}))
    conclude(job)


def step_commands() -> list[click.Command]:
    """One command per step."""
    return [_step(name, help) for name, help in STEPS.items()]


def _step(step: str, help: str) -> click.Command:
    def command(
        recipe: str, folder: Path | None, overrides: tuple[str, ...], quiet: bool, explain: str | None = None
    ) -> None:
        _until(step, recipe, folder, overrides, quiet, explain)

    options = recipe_options(EXPLAIN(command) if step == "plan" else command)
    return click.command(step, help=help, short_help=help)(options)


def _until(
    step: str, recipe: str, folder: Path | None, overrides: tuple[str, ...], quiet: bool, explain: str | None = None
) -> None:
    display = Display(quiet)
    with failures(), display.bars:
        job = job_for(recipe, folder, overrides, display)
        job.until(step)
        shown = None if explain is None else tables.explained(job, explain)
    if not PROCESS and step in ("evaluate", "report"):
        out.print(tables.stage_table(job.metrics()))
    if not PROCESS and step == "plan":
        out.print(tables.plan_table(job) if shown is None else shown)
    conclude(job)

"""The command line: click and rich live here and nowhere else; torch is imported only by commands that need it."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from infoprune import __version__, tables
from infoprune.errors import RunError, UserError

if TYPE_CHECKING:
    from infoprune.pipeline import Run

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
# torchrun numbers the processes that it starts; only the first shows how far the job is and what came of it.
PROCESS = int(os.environ.get("RANK", "0")) if "TORCHELASTIC_RUN_ID" in os.environ else 0
out = Console()
err = Console(stderr=True)


class _Display:
    """Draws the progress of a run: a line per step, a bar for what takes long."""

    def __init__(self, quiet: bool) -> None:
        self.quiet = quiet = quiet or PROCESS > 0
        columns = (
            TextColumn("  {task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        self.bars = Progress(*columns, console=err, transient=True, disable=quiet)
        self.tasks: dict[str, Any] = {}

    def step(self, name: str, state: str) -> None:
        self._clear()
        if not self.quiet and state != "running":
            err.print(f"[green]✓[/] {name}" + ("" if state == "done" else f" [dim]({state})[/]"))
        elif not self.quiet and not err.is_terminal:
            err.print(f"  {name} …")

    def advance(self, what: str, done: int, total: int) -> None:
        if what not in self.tasks:
            self._clear()
            self.tasks[what] = self.bars.add_task(what, total=total or None)
        self.bars.update(self.tasks[what], completed=done, total=total or None)

    def _clear(self) -> None:
        for task in self.tasks.values():
            self.bars.remove_task(task)
        self.tasks.clear()


@contextmanager
def _failures() -> Iterator[None]:
    """A user's mistake ends with exit code 2 and a message, a failed run with 1; anything else is a bug of ours."""
    try:
        yield
    except (UserError, RunError) as error:
        who = f"process {PROCESS}: " if PROCESS else ""
        err.print(f"[bold red]error:[/] {who}{_plain(str(error))}", highlight=False, soft_wrap=True)
        sys.exit(2 if isinstance(error, UserError) else 1)
    except KeyboardInterrupt:
        err.print("interrupted; the same command again goes on with the step that was running")
        sys.exit(130)


def _plain(text: str) -> str:
    from rich.markup import escape

    return escape(text)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="infoprune")
def main() -> None:
    """Prune a pretrained CNN by what information theory says it does not need.

    RECIPE is a TOML file or the name of a shipped one (digits, resnet56_cifar10). The way of the data:
    analyze → plan → prune → repair → finetune → evaluate → export → report. Each command does the steps before it
    first and skips what is already there.

    Exit codes: 0 done, 1 the run failed, 2 something in the recipe, data or model has to be mended.
    """


def _recipe_command(name: str, help: str) -> Callable[[Callable[..., None]], click.Command]:
    def decorate(function: Callable[..., None]) -> click.Command:
        for decorator in (
            click.option("-q", "--quiet", is_flag=True, help="No progress display."),
            click.option(
                "--set", "overrides", multiple=True, metavar="TABLE.KEY=VALUE", help="Override an option of the recipe."
            ),
            click.option("--out", type=click.Path(path_type=Path), help="Run directory.  [default: runs/RECIPE]"),
            click.argument("recipe"),
        ):
            function = decorator(function)
        return main.command(name, help=help, short_help=help)(function)

    return decorate


def _job(recipe: str, out_folder: Path | None, overrides: tuple[str, ...], display: _Display) -> "Run":
    from infoprune import pipeline
    from infoprune.recipe import read

    read_recipe = read(recipe, overrides)
    return pipeline.Run(read_recipe, out_folder or Path("runs") / read_recipe.name, display)


def _add_steps() -> None:
    def make(step: str, help: str) -> None:
        @_recipe_command(step, help)
        def command(recipe: str, out: Path | None, overrides: tuple[str, ...], quiet: bool) -> None:
            display = _Display(quiet)
            with _failures(), display.bars:
                job = _job(recipe, out, overrides, display)
                job.until(step)
            _conclude(job, step)

    for step, help in STEPS.items():
        make(step, help)


def _conclude(job: "Run", step: str) -> None:
    from infoprune import distributed

    distributed.stop()
    if PROCESS:
        return
    if step in ("evaluate", "report"):
        out.print(tables.stage_table(job.metrics()))
    if step == "plan":
        out.print(tables.plan_table(job))
    err.print(f"artifacts are in {job.out}", highlight=False, soft_wrap=True)


@_recipe_command("run", "Do the whole job: all of the steps below.")
def run(recipe: str, out: Path | None, overrides: tuple[str, ...], quiet: bool) -> None:
    """All steps."""
    display = _Display(quiet)
    with _failures(), display.bars:
        job = _job(recipe, out, overrides, display)
        job.until("report")
    _conclude(job, "report")


_add_steps()


@_recipe_command("train", "Train the recipe's model from scratch; write trained.safetensors.")
def train(recipe: str, out: Path | None, overrides: tuple[str, ...], quiet: bool) -> None:
    """Makes weights such as the shipped ones."""
    display = _Display(quiet)
    with _failures(), display.bars:
        job = _job(recipe, out, overrides, display)
        measured = job.train()
    if not PROCESS:
        globals()["out"].print(tables.stage_table({"trained": measured}))
    _conclude(job, "train")


@main.command(short_help="Show the options of a recipe table.")
@click.argument("table", required=False)
def options(table: str | None) -> None:
    """Show the options of a recipe TABLE (run, calibration, plan, finetune, analyses.NAME, model.NAME, data.NAME …),
    or without one the list of tables."""
    from infoprune import settings

    with _failures():
        if table is None:
            for name in settings.tables():
                out.print(name, highlight=False)
            return
        rows = Table("option", "type", "default", "what it does", title=f"[{table}]".replace("[", r"\["))
        for row in settings.describe(table):
            rows.add_row(*(_plain(cell) for cell in row))
        out.print(rows)


@main.command("check-estimator", short_help="Show how far the information estimates can be trusted.")
@click.option("--alpha", type=float, default=1.0, show_default=True, help="Rényi order.")
@click.option("--rule", default="standardized", show_default=True, help="Kernel-width rule.")
@click.option("--gamma", type=float, default=1.0, show_default=True, help="Factor of the standardized width.")
@click.option("--h", type=float, default=5.0, show_default=True, help="Factor of the Silverman width.")
@click.option("--share", type=float, default=0.15, show_default=True, help="Share of the median distance.")
@click.option("--samples", type=int, default=128, show_default=True, help="Batch size.")
@click.option("--repeats", type=int, default=5, show_default=True, help="Independent draws per case.")
@click.option("--permutations", type=int, default=20, show_default=True, help="Permutations for the debiased value.")
@click.option("--seed", type=int, default=0, show_default=True, help="Everything random follows from it.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def check_estimator(as_json: bool, **chosen: Any) -> None:
    """Run the information estimator, with the settings given, on cases whose truth is known.

    Values are I(A;B) in bits. KSG is an independent nearest-neighbour estimate on the same samples.
    """
    from infoprune.information import checking

    with _failures():
        try:
            rows = checking.check_estimator(**chosen)
        except ValueError as error:
            raise UserError(str(error)) from error
    if as_json:
        import json
        from dataclasses import asdict

        click.echo(json.dumps([asdict(row) for row in rows], indent=1))
        return
    table = Table("case", "truth", "raw", "debiased", "KSG", "headroom", "", box=box.SIMPLE)
    for column in table.columns[1:6]:
        column.justify = "right"
    for row in rows:
        truth = "∞" if row.truth is None else f"{row.truth:.3f}"
        neighbour = "" if row.nearest_neighbour is None else f"{row.nearest_neighbour:.3f}"
        remark = "[red]saturated[/]" if row.saturated else _plain(row.remark)
        table.add_row(
            row.case,
            truth,
            f"{row.raw:.3f} ± {row.spread:.3f}",
            f"{row.debiased:.3f}",
            neighbour,
            f"{row.margin:.2f}",
            remark,
        )
    table.caption = "bits; headroom: log2 n − S(A,B), saturated below 0.05"
    out.print(table)


@main.command(short_help="List the shipped recipes.")
def recipes() -> None:
    """List the shipped recipes."""
    from infoprune.recipe import shipped

    for name, path in shipped().items():
        first = path.read_text(encoding="utf-8").splitlines()[0].lstrip("# ")
        out.print(f"{name:20} {first}", highlight=False, soft_wrap=True)

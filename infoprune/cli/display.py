"""What every command shares: consoles, progress, and how failures end."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from infoprune.errors import RunError, UserError

if TYPE_CHECKING:
    from infoprune.pipeline import Run

# torchrun numbers the processes that it starts; only the first shows how far the job is and what came of it.
PROCESS = int(os.environ.get("RANK", "0")) if "TORCHELASTIC_RUN_ID" in os.environ else 0
out = Console()
err = Console(stderr=True)


class Display:
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
        """A step is "running", "done" or "up to date"."""
        self._clear()
        if not self.quiet and state != "running":
            err.print(f"[green]✓[/] {name}" + ("" if state == "done" else f" [dim]({state})[/]"))
        elif not self.quiet and not err.is_terminal:
            err.print(f"  {name} …")

    def advance(self, what: str, done: int, total: int) -> None:
        """A long step got this far; `total` is 0 where nobody knows."""
        if what not in self.tasks:
            self._clear()
            self.tasks[what] = self.bars.add_task(what, total=total or None)
        self.bars.update(self.tasks[what], completed=done, total=total or None)

    def _clear(self) -> None:
        for task in self.tasks.values():
            self.bars.remove_task(task)
        self.tasks.clear()


@contextmanager
def failures() -> Iterator[None]:
    """A user's mistake ends with exit code 2 and a message, a failed run with 1; anything else is a bug of ours."""
    try:
        yield
    except (UserError, RunError) as error:
        who = f"process {PROCESS}: " if PROCESS else ""
        err.print(f"[bold red]error:[/] {who}{plain(str(error))}", highlight=False, soft_wrap=True)
        sys.exit(2 if isinstance(error, UserError) else 1)
    except KeyboardInterrupt:
        err.print("interrupted; the same command again goes on with the step that was running")
        sys.exit(130)


def plain(text: str) -> str:
    """Text in which brackets are no markup."""
    from rich.markup import escape

    return escape(text)


Decorator = Callable[[Callable[..., None]], Callable[..., None]]


def recipe_options(function: Callable[..., None]) -> Callable[..., None]:
    """What every command that works on a recipe takes."""
    for decorator in (
        click.option("-q", "--quiet", is_flag=True, help="No progress display."),
        click.option(
            "--set", "overrides", multiple=True, metavar="TABLE.KEY=VALUE", help="Override an option of the recipe."
        ),
        click.option("--out", "folder", type=click.Path(path_type=Path), help="Run directory.  [default: runs/RECIPE]"),
        click.argument("recipe"),
    ):
        function = decorator(function)
    return function


def job_for(recipe: str, out_folder: Path | None, overrides: tuple[str, ...], display: Display) -> "Run":
    """A recipe in its run directory."""
    from infoprune import pipeline
    from infoprune.recipe import read

    read_recipe = read(recipe, overrides)
    return pipeline.Run(read_recipe, out_folder or Path("runs") / read_recipe.name, display)


def conclude(job: "Run") -> bool:
    """Ends the work of several processes; whether this one is to show what came of it."""
    from infoprune import distributed

    distributed.stop()
    if not PROCESS:
        err.print(f"artifacts are in {job.out}", highlight=False, soft_wrap=True)
    return not PROCESS

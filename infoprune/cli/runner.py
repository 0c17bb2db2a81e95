"""How a command that works on a recipe runs: from its options to the job, and from what came of it to the terminal."""

import functools
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

from infoprune.cli.display import PROCESS, Display, err, out

if TYPE_CHECKING:
    from infoprune.pipeline.context import Context

QUIET = click.option("-q", "--quiet", is_flag=True, help="Print results and errors only.")
VERBOSE = click.option("-v", "--verbose", is_flag=True, help="Say why steps run again, on which device; tracebacks.")
JSON = click.option("--json", "as_json", is_flag=True, help="Print results as JSON, and no progress.")


@dataclass(frozen=True)
class Shown:
    """What a command came to.

    Attributes:
        value: for `--json`; anything that `to_json` takes.
        tables: for a terminal.
    """

    value: Any
    tables: Sequence[Any] = ()


class RecipeName(click.ParamType):  # type: ignore[type-arg,unused-ignore]  # generic since click 8.4
    """A recipe file or the name of a shipped one; completes both."""

    name = "recipe"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Shipped names that begin so; the shell adds files."""
        from infoprune.config.recipe import shipped

        names = [CompletionItem(name) for name in shipped() if name.startswith(incomplete)]
        return names or [CompletionItem(incomplete, type="file")]


RECIPE_OPTIONS = (
    JSON,
    VERBOSE,
    QUIET,
    click.option(
        "--set", "overrides", multiple=True, metavar="TABLE.KEY=VALUE", help="Override an option of the recipe."
    ),
    click.option("--force", is_flag=True, help="Use a folder that holds other files; they stay as they are."),
    click.option("--out", "folder", type=click.Path(), help="Run directory.  [default: runs/RECIPE]"),
    click.argument("recipe", type=RecipeName()),
)


def on_recipe(function: Callable[..., Shown]) -> Callable[..., None]:
    """Gives a function of a job what every command on a recipe takes, and shows what it returns."""

    @functools.wraps(function)
    def command(
        recipe: str,
        folder: str | None,
        force: bool,
        overrides: tuple[str, ...],
        quiet: bool,
        verbose: bool,
        as_json: bool,
        **more: Any,
    ) -> None:
        known = click.get_current_context().meta
        known["verbose"] = verbose
        quiet = quiet or as_json
        with Display(quiet) as display:
            job = _job(recipe, folder, force, overrides, display)
            known["run"] = job.out
            if verbose and not PROCESS:
                _tell_more(job)
            shown = function(job, **more)
        _leave()
        if PROCESS:
            return
        show(shown, as_json)
        if not quiet:
            err.print(f"artifacts are in {job.out}", highlight=False, soft_wrap=True)

    return recipe_options(command)


def recipe_options(command: Callable[..., None]) -> Callable[..., None]:
    """Gives a command what every command on a recipe takes."""
    for decorator in RECIPE_OPTIONS:
        command = decorator(command)
    return command


def show(shown: Shown, as_json: bool) -> None:
    """Prints what a command came to."""
    if as_json:
        from infoprune.io.encoding import to_json

        click.echo(json.dumps(to_json(shown.value), indent=1, ensure_ascii=False))
        return
    for table in shown.tables:
        out.print(table, highlight=False, soft_wrap=isinstance(table, str))


def _job(recipe: str, folder: str | None, force: bool, overrides: tuple[str, ...], display: Display) -> "Context":
    """A recipe in its run directory."""
    from infoprune.config.recipe import read
    from infoprune.pipeline.context import open_run

    read_recipe = read(recipe, overrides)
    out = Path("runs") / read_recipe.name if folder is None else folder
    return open_run(read_recipe, out, display, force=force)


def _tell_more(job: "Context") -> None:
    import torch
    from rich.logging import RichHandler  # slow to import, and seldom needed

    logger = logging.getLogger("infoprune")
    logger.handlers = [RichHandler(console=err, show_time=False, show_level=False, show_path=False)]
    logger.setLevel(logging.INFO)
    logger.info("device %s, %d threads, torch %s", job.device, torch.get_num_threads(), torch.__version__)


def _leave() -> None:
    """Ends the work of several processes."""
    from infoprune.utils import distributed

    distributed.stop()

"""The command line: click and rich live here and nowhere else; torch is imported only by commands that need it."""

from typing import Any

import click

from infoprune import __version__
from infoprune.cli.advice import depth, inspect, widths
from infoprune.cli.comparison import compare
from infoprune.cli.display import failures, standard_output
from infoprune.cli.interrupt import interruptible
from infoprune.cli.reference import check_estimator, completion, doctor, new, options, recipes
from infoprune.cli.steps import STEPS, run, step_commands, train
from infoprune.utils.allocator import keep_freed_memory

__all__ = ["STEPS", "main"]

MAP: dict[str, list[click.Command]] = {
    "The job": [run, *step_commands()],
    "Before it": [recipes, new, options, train, inspect],
    "Advice and evidence": [widths, depth, compare],
    "When in doubt": [doctor, check_estimator, completion],
}


class _Map(click.Group):
    """Lists commands in the order of the job, under headings, and ends every failure in one way."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        widest = max(len(name) for name in self.commands)
        for heading, commands in MAP.items():
            with formatter.section(heading):
                rows = [(f"{command.name:{widest}}", command.get_short_help_str(200)) for command in commands]
                formatter.write_dl(rows)

    def main(self, *args: Any, **extra: Any) -> Any:
        with standard_output():
            return super().main(*args, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        keep_freed_memory()
        with failures(ctx.meta), interruptible(ctx.meta):
            return super().invoke(ctx)


@click.group(cls=_Map, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="infoprune")
def main() -> None:
    """Prune a pretrained CNN by what information theory says it does not need, and prove the result.

    RECIPE is a TOML file or the name of a shipped one (infoprune recipes). The way of the data:
    analyze → plan → prune → repair → finetune → evaluate → export → report. Each command does the steps before it
    first and skips what is already there; interrupted, the same command goes on.

    \b
    To start:    infoprune run digits          half a minute, nothing to download
    Your model:  infoprune new mine.toml --model nets.py:my_net --data data.py:load
                 infoprune inspect mine.toml   what could be cut, before anything is
                 infoprune run mine.toml

    Exit codes: 0 done, 1 the run failed, 2 something in the recipe, data or model has to be corrected, 130 interrupted.
    """


for command in (command for commands in MAP.values() for command in commands):
    main.add_command(command)

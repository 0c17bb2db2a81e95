"""The command line: click and rich live here and nowhere else; torch is imported only by commands that need it."""

import click

from infoprune import __version__
from infoprune.cli.advice import depth, inspect, widths
from infoprune.cli.comparison import compare
from infoprune.cli.reference import check_estimator, doctor, new, options, recipes
from infoprune.cli.steps import STEPS, run, step_commands, train

__all__ = ["STEPS", "main"]


class _InOrder(click.Group):
    """Lists commands in the order of the job, not of the alphabet."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


@click.group(cls=_InOrder, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="infoprune")
def main() -> None:
    """Prune a pretrained CNN by what information theory says it does not need.

    RECIPE is a TOML file or the name of a shipped one (infoprune recipes). The way of the data:
    analyze → plan → prune → repair → finetune → evaluate → export → report. Each command does the steps before it
    first and skips what is already there.

    Exit codes: 0 done, 1 the run failed, 2 something in the recipe, data or model has to be mended.
    """


for command in (
    run,
    *step_commands(),
    train,
    inspect,
    widths,
    depth,
    compare,
    options,
    recipes,
    new,
    doctor,
    check_estimator,
):
    main.add_command(command)

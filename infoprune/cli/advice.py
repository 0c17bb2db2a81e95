"""The commands that advise: `inspect`, `widths`, `depth`."""

from typing import TYPE_CHECKING

import click

from infoprune.cli import tables
from infoprune.cli.runner import Shown, on_recipe

if TYPE_CHECKING:
    from infoprune.pipeline.context import Context


@click.command(short_help="What could be cut, what it would save, what not and why.")
@on_recipe
def inspect(job: "Context") -> Shown:
    """Show every channel group of the recipe's model before anything is analysed: its width, the least that the
    constraints allow, what its layers cost, what that would save, and why a group cannot be cut."""
    from infoprune.pipeline import advise

    rows = advise.prunable_groups(job)
    return Shown(rows, [tables.feasibility_table(rows, job.graph)])


@click.command(short_help="Recommended width of every layer; writes widths.json.")
@on_recipe
def widths(job: "Context") -> Shown:
    """Recommend a width for every channel group: what each analysis of the recipe says, with its interval over
    mini-batches and its doubts, their median, and what that saves. Where the model family takes widths, the end says
    how to build the narrower network, to be trained from scratch.

    No budget is asked for, and nothing is measured on validation data. --set calibration.labels=false leaves out what
    needs labels.
    """
    from infoprune.pipeline import advise

    advice = advise.advise_widths(job)
    return Shown(advice, [tables.widths_table(advice)])


@click.command(short_help="Blocks that could be left out; writes depth_advice.json.")
@click.option("--confirm/--no-confirm", default=True, help="Try each block on validation data, after repair.")
@on_recipe
def depth(job: "Context", confirm: bool) -> Shown:
    """Recommend which blocks to leave out: what the analyses measured between the ends of each, whether they would
    remove it, what validation accuracy says of the network without it after repair, and what that saves."""
    from infoprune.pipeline import advise

    advice = advise.advise_depth(job, confirm)
    return Shown(advice, [tables.depth_table(advice)])

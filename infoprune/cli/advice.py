"""The commands that advise: `inspect`, `widths`, `depth`."""

import json
from pathlib import Path
from typing import Any

import click

from infoprune.cli import tables
from infoprune.cli.display import PROCESS, Display, conclude, failures, job_for, out, recipe_options

JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.command(short_help="Show what could be cut of the recipe's model, what it would save, and what not and why.")
@JSON
@recipe_options
def inspect(recipe: str, folder: Path | None, overrides: tuple[str, ...], quiet: bool, as_json: bool) -> None:
    """Show every channel group of the recipe's model before anything is analysed: its width, the least that the
    constraints allow, what its layers cost, what that would save, and why a group cannot be cut."""
    display = Display(quiet)
    with failures(), display.bars:
        from infoprune import advising

        job = job_for(recipe, folder, overrides, display)
        rows = advising.rooms(job)
        table = tables.rooms_table(rows, job.graph)
    _show(rows, table, as_json)


@click.command(short_help="Recommend a width for every layer; write widths.json.")
@JSON
@recipe_options
def widths(recipe: str, folder: Path | None, overrides: tuple[str, ...], quiet: bool, as_json: bool) -> None:
    """Recommend a width for every channel group: what each analysis of the recipe says, with its interval over
    mini-batches and its doubts, their median, and what that saves. Where the model family takes widths, the end says
    how to build the narrower network, to be trained from scratch.

    No budget is asked for, and nothing is measured on validation data. --set calibration.labels=false leaves out what
    needs labels.
    """
    display = Display(quiet)
    with failures(), display.bars:
        from infoprune import advising

        job = job_for(recipe, folder, overrides, display)
        advice = advising.advise_widths(job)
        table = tables.widths_table(advice)
    _show(advice, table, as_json)
    conclude(job)


@click.command(short_help="Recommend which blocks to leave out; write depth_advice.json.")
@click.option("--confirm/--no-confirm", default=True, help="Try each block on validation data, after repair.")
@JSON
@recipe_options
def depth(
    recipe: str, folder: Path | None, overrides: tuple[str, ...], quiet: bool, as_json: bool, confirm: bool
) -> None:
    """Recommend which blocks to leave out: what the analyses measured between the ends of each, whether they would
    remove it, what validation accuracy says of the network without it after repair, and what that saves."""
    display = Display(quiet)
    with failures(), display.bars:
        from infoprune import advising

        job = job_for(recipe, folder, overrides, display)
        advice = advising.advise_depth(job, confirm)
        table = tables.depth_table(advice)
    _show(advice, table, as_json)
    conclude(job)


def _show(value: Any, table: Any, as_json: bool) -> None:
    if PROCESS:
        return
    if as_json:
        from infoprune.encoding import to_json

        click.echo(json.dumps(to_json(value), indent=1))
    else:
        out.print(table)

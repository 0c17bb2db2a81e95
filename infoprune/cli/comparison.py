"""The command `compare`."""

from typing import TYPE_CHECKING

import click
from rich import box
from rich.markup import escape
from rich.table import Table

from infoprune.cli.runner import Shown, on_recipe

if TYPE_CHECKING:
    from collections.abc import Sequence

    from infoprune.evaluation.metrics import Cell
    from infoprune.pipeline.context import Context


@click.command(short_help="Criteria at equal budgets, with controls; writes compare.csv.")
@on_recipe
def compare(job: "Context") -> Shown:
    """Compare criteria at equal budgets on the recipe's model and data, before and after repair (and after fine-tuning
    of equal length, with compare.epochs), beside controls: random filters at the same widths, uniform L2, and a small
    dense network trained from scratch. infoprune options compare lists what can be set.

    The test split is looked at once per stage of each cell; nothing is chosen on it. Interrupted, the same command goes
    on with the cells that are missing.
    """
    from infoprune.pipeline import compare

    cells = compare.compare(job, job.settings.compare)
    return Shown(cells, [cells_table(cells, job.graph.unpruned.macs)])


def cells_table(cells: "Sequence[Cell]", whole: int) -> Table:
    """One row per criterion and budget; means over seeds, with their deviation."""
    stages = [name for name in ("cut", "repaired", "finetuned") if any(getattr(c, name) is not None for c in cells)]
    table = Table("criterion", "fewer", *stages, "latency", "cost", box=box.SIMPLE)
    for column in table.columns:
        column.justify, column.no_wrap = "left" if column.header == "criterion" else "right", True
    groups: dict[tuple[float, str], list[Cell]] = {}
    for cell in cells:
        groups.setdefault((cell.share, cell.criterion), []).append(cell)
    for number, ((share, criterion), own) in enumerate(groups.items()):
        if number and share != list(groups)[number - 1][0]:
            table.add_section()
        scores = [_spread([getattr(cell, name) for cell in own]) for name in stages]
        latency, seconds = (sum(getattr(c, n) for c in own) / len(own) for n in ("latency_ms", "seconds"))
        fewer = whole / (sum(cell.macs for cell in own) / len(own))
        table.add_row(escape(criterion), f"{fewer:.2f}×", *scores, f"{latency:.2f} ms", f"{seconds:.1f} s")
    table.caption = "accuracy in percent of the test split; cost: analyses, sensitivities and planning"
    return table


def _spread(values: "Sequence[float | None]") -> str:
    """Mean and deviation in percent.

    >>> _spread([0.5, 0.7]), _spread([0.5]), _spread([None])
    ('60.00 ±10.00', '50.00', '')
    """
    known = [100 * value for value in values if value is not None]
    if not known:
        return ""
    mean = sum(known) / len(known)
    spread = (sum((value - mean) ** 2 for value in known) / len(known)) ** 0.5
    return f"{mean:.2f}" + (f" ±{spread:.2f}" if len(known) > 1 else "")

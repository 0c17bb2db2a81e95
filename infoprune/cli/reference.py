"""The commands that need no recipe: `options`, `recipes`, `new`, `doctor`, `check-estimator`."""

from pathlib import Path
from typing import Any

import click
from rich import box
from rich.table import Table

from infoprune.cli.display import failures, out, plain
from infoprune.errors import UserError


@click.command(short_help="Show the options of a recipe table.")
@click.argument("table", required=False)
def options(table: str | None) -> None:
    """Show the options of a recipe TABLE (run, calibration, plan, finetune, analyses.NAME, model.NAME, data.NAME …),
    or without one the list of tables."""
    from infoprune import settings

    with failures():
        if table is None:
            for name in settings.tables():
                out.print(name, highlight=False)
            return
        rows = Table("option", "type", "default", "what it does", title=f"[{table}]".replace("[", r"\["))
        for row in settings.describe(table):
            rows.add_row(*(plain(cell) for cell in row))
        out.print(rows)


@click.command(short_help="Write a recipe to start from.")
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--model", default="cifar_resnet", show_default=True, help="A model family, or package.module:function.")
@click.option("--data", default="cifar10", show_default=True, help="A data set, or package.module:function.")
@click.option("--weights", help="A weights file (.safetensors, .pth).")
@click.option("--set", "given", multiple=True, metavar="TABLE.KEY=VALUE", help="An option to write out.")
def new(path: Path, model: str, data: str, weights: str | None, given: tuple[str, ...]) -> None:
    """Write a recipe for a model and a data set to PATH, with all their options at hand as comments."""
    from infoprune.starting import starting_recipe

    with failures():
        if path.exists():
            raise UserError(f"'{path}' is there already; choose another name")
        text = starting_recipe(f"{model} on {data}", model, data, weights, given)
        try:
            path.write_text(text, encoding="utf-8")
        except OSError as error:
            raise UserError(f"cannot write '{path}': {error.strerror}; choose another place") from error
    out.print(f"wrote {plain(str(path))}; infoprune inspect {plain(str(path))} shows what could be cut", soft_wrap=True)


@click.command(short_help="Show versions, devices and the data found.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def doctor(context: click.Context, as_json: bool) -> None:
    """Show versions, devices, threads and the data found; exit code 1 where something is missing."""
    from infoprune import diagnosing

    rows = diagnosing.diagnose()
    if as_json:
        import json
        from dataclasses import asdict

        click.echo(json.dumps([asdict(row) for row in rows], indent=1))
    else:
        table = Table("", "", box=box.SIMPLE, show_header=False)
        for row in rows:
            table.add_row(row.what, f"[red]{plain(row.found)}[/]" if row.problem else plain(row.found))
        out.print(table)
    context.exit(int(any(row.problem for row in rows)))


@click.command("check-estimator", short_help="Show how far the information estimates can be trusted.")
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

    with failures():
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
        remark = "[red]saturated[/]" if row.saturated else plain(row.remark)
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


@click.command(short_help="List the shipped recipes.")
def recipes() -> None:
    """List the shipped recipes."""
    from infoprune.recipe import shipped

    for name, path in shipped().items():
        first = path.read_text(encoding="utf-8").splitlines()[0].lstrip("# ")
        out.print(f"{name:20} {first}", highlight=False, soft_wrap=True)

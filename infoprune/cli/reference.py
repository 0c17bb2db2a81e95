"""The commands that need no recipe: `options`, `recipes`, `new`, `doctor`, `check-estimator`, `completion`."""

from pathlib import Path
from typing import Any

import click
from click.shell_completion import get_completion_class
from rich import box
from rich.markup import escape
from rich.table import Table

from infoprune.cli.display import Display, out
from infoprune.cli.runner import JSON, QUIET, Shown, show
from infoprune.errors import UserError

OVERRIDES = click.option("--set", "given", multiple=True, metavar="TABLE.KEY=VALUE", help="An option to write out.")


@click.command(short_help="All tables of a recipe, or the options of one.")
@JSON
@click.argument("table", required=False)
def options(table: str | None, as_json: bool) -> None:
    """Show the options of a recipe TABLE (run, calibration, plan, finetune, analyses.NAME, model.NAME, data.NAME …),
    or without one the list of tables."""
    from infoprune.pipeline import settings

    if table is None:
        names = settings.tables()
        show(Shown(names, names), as_json)
        return
    found = settings.describe(table)
    rows = Table("option", "default", "what it does", title=escape(f"[{table}]"), box=box.SIMPLE)
    for name, kind, default, help in found:
        rows.add_row(name, escape(default), f"{escape(help)} [dim]({escape(kind)})[/]")
    show(Shown([dict(zip(("option", "type", "default", "help"), row, strict=True)) for row in found], [rows]), as_json)


@click.command(short_help="The recipes that come with the package.")
@JSON
@click.option("-q", "--quiet", is_flag=True, help="Names only.")
def recipes(quiet: bool, as_json: bool) -> None:
    """List the shipped recipes, one line each. RECIPE in other commands takes any of these names."""
    from infoprune.config.recipe import shipped

    lines = {name: path.read_text(encoding="utf-8").splitlines()[0].lstrip("# ") for name, path in shipped().items()}
    said = list(lines) if quiet else [f"{name:22}{first}" for name, first in lines.items()]
    show(Shown(lines, [escape(line) for line in said]), as_json)


@click.command(short_help="Write a recipe to start from.")
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--model", default="cifar_resnet", show_default=True, help="A model family, or package.module:function.")
@click.option("--data", default="cifar10", show_default=True, help="A data set, or package.module:function.")
@click.option("--weights", help="A weights file (.safetensors, .pth).")
@OVERRIDES
@QUIET
def new(path: Path, model: str, data: str, weights: str | None, given: tuple[str, ...], quiet: bool) -> None:
    """Write a recipe for a model and a data set to PATH, with all their options at hand as comments."""
    from infoprune.pipeline.template import starting_recipe

    text = starting_recipe(f"{model} on {data}", model, data, weights, given)
    _write_new(path, text)
    if not quiet:
        name = escape(str(path))
        out.print(f"wrote {name}; infoprune inspect {name} shows what could be cut", soft_wrap=True)


def _write_new(path: Path, text: str) -> None:
    """Writes a file where there is none yet, not even a link to nowhere."""
    try:
        file = path.open("x", encoding="utf-8")
    except FileExistsError as error:
        raise UserError(f"'{path}' is there already; choose another name") from error
    except (OSError, ValueError) as error:  # the latter for names that no file can have
        raise UserError(f"cannot write '{path}': {error}; choose another place") from error
    try:
        with file:
            file.write(text)
    except OSError as error:
        path.unlink()
        raise UserError(f"cannot write '{path}': {error.strerror}; choose another place") from error


@click.command(short_help="Versions, devices and the data found.")
@JSON
@click.option("-q", "--quiet", is_flag=True, help="Problems only.")
@click.pass_context
def doctor(context: click.Context, quiet: bool, as_json: bool) -> None:
    """Show versions, devices, threads and the data found; exit code 1 where something is missing."""
    with Display(quiet or as_json):
        from infoprune.cli import diagnosis

        rows = diagnosis.diagnose()
    table = Table("", "", box=box.SIMPLE, show_header=False)
    for row in rows:
        if row.problem or not quiet:
            table.add_row(row.what, f"[red]{escape(row.found)}[/]" if row.problem else escape(row.found))
    show(Shown(rows, [table] if table.row_count else []), as_json)
    context.exit(int(any(row.problem for row in rows)))


@click.command("check-estimator", short_help="How far the information estimates can be trusted.")
@click.option("--alpha", type=float, default=1.0, show_default=True, help="Rényi order.")
@click.option("--rule", default="standardized", show_default=True, help="Kernel-width rule.")
@click.option("--gamma", type=float, default=1.0, show_default=True, help="Factor of the standardized width.")
@click.option("--h", type=float, default=5.0, show_default=True, help="Factor of the Silverman width.")
@click.option("--share", type=float, default=0.15, show_default=True, help="Share of the median distance.")
@click.option("--samples", type=int, default=128, show_default=True, help="Batch size.")
@click.option("--repeats", type=int, default=5, show_default=True, help="Independent draws per case.")
@click.option("--permutations", type=int, default=20, show_default=True, help="Permutations for the debiased value.")
@click.option("--seed", type=int, default=0, show_default=True, help="Everything random follows from it.")
@JSON
@QUIET
def check_estimator(as_json: bool, quiet: bool, **chosen: Any) -> None:
    """Run the information estimator, with the settings given, on cases whose truth is known.

    Values are I(A;B) in bits. KSG is an independent nearest-neighbour estimate on the same samples.
    """
    with Display(quiet or as_json) as display:
        from infoprune.information import checking

        try:
            rows = checking.check_estimator(**chosen, on_case=lambda done, total: display.advance("cases", done, total))
        except ValueError as error:
            raise UserError(str(error)) from error
    table = Table("case", "truth", "raw", "debiased", "KSG", "headroom", "", box=box.SIMPLE)
    for column in table.columns[1:6]:
        column.justify = "right"
    for row in rows:
        truth = "∞" if row.truth is None else f"{row.truth:.3f}"
        neighbour = "" if row.nearest_neighbour is None else f"{row.nearest_neighbour:.3f}"
        remark = "[red]saturated[/]" if row.saturated else escape(row.remark)
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
    show(Shown(rows, [table]), as_json)


@click.command(short_help="The script by which a shell completes commands and recipes.")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print the script that makes SHELL complete commands, options and recipes.

    \b
    bash: infoprune completion bash > ~/.local/share/bash-completion/completions/infoprune
    zsh:  infoprune completion zsh > DIRECTORY_IN_FPATH/_infoprune
    fish: infoprune completion fish > ~/.config/fish/completions/infoprune.fish
    """
    kind = get_completion_class(shell)
    assert kind is not None
    script = kind(context.find_root().command, {}, "infoprune", "_INFOPRUNE_COMPLETE")
    click.echo(script.source_template % script.source_vars())

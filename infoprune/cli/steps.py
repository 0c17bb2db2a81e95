"""The commands that do the job: `run`, `train`, and one per step."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from infoprune.cli import tables
from infoprune.cli.runner import Shown, on_recipe, recipe_options, show
from infoprune.errors import UserError

if TYPE_CHECKING:
    from infoprune.pipeline.context import Context

STEPS = {
    "analyze": "Run the analyses; write findings/.",
    "plan": "Choose the channels to keep, and say why; write plan.json.",
    "prune": "Remove channels, prove the result; write pruned.safetensors.",
    "repair": "Bring accuracy back without training; write repaired.safetensors.",
    "finetune": "Train the smaller network; write finetuned.safetensors.",
    "evaluate": "Measure all stages on the test split; write metrics.json.",
    "export": "Write the fine-tuned network in other formats under export/.",
    "report": "Write report.html; with --compare, two runs side by side.",
}


@click.command(short_help="Do the whole job: all of the steps below.")
@on_recipe
def run(job: "Context") -> Shown:
    """Do the whole job: all of the steps below."""
    from infoprune.pipeline.run import run_until

    run_until(job, "report")
    return _measured(job)


@click.command(short_help="Train the recipe's model from scratch; write trained.safetensors.")
@click.option("--replace", is_flag=True, help="Train again where weights lie there that came from other options.")
@on_recipe
def train(job: "Context", replace: bool) -> Shown:
    """Train the recipe's model from scratch; write trained.safetensors."""
    from infoprune.evaluation.metrics import Metrics
    from infoprune.pipeline.run import train_from_scratch

    measured = Metrics({"trained": train_from_scratch(job, replace=replace)})
    return Shown(measured, [measured])


@click.command(help=STEPS["plan"], short_help=STEPS["plan"])
@click.option("--explain", metavar="GROUP", help="Say all that is known of one channel group, or of a layer's.")
@on_recipe
def plan(job: "Context", explain: str | None) -> Shown:
    from infoprune.pipeline.run import run_until
    from infoprune.pipeline.steps.plan import planned

    run_until(job, "plan")
    if explain is None:
        return Shown(planned(job), [planned(job)])
    name, rows = tables.explained(job, explain)
    return Shown({"group": name, "known": rows}, [tables.explained_table(name, rows)])


@on_recipe
def _report(job: "Context") -> Shown:
    from infoprune.pipeline.run import run_until

    run_until(job, "report")
    return _measured(job)


@click.command(short_help=STEPS["report"])
@click.option("--compare", "first", metavar="RUN", help="A run to set beside that of RECIPE: --compare RUN RUN.")
@recipe_options
def report(first: str | None, recipe: str, folder: str | None, **options: Any) -> None:
    """Write report.html, one self-contained page: what was decided, why, and what it cost.

    report --compare RUN RUN sets two runs side by side, and runs nothing. A RUN is a run directory that has a report,
    or a recipe, which stands for runs/RECIPE; --out names the page (compared.html if not given).
    """
    if first is None:
        _report(recipe=recipe, folder=folder, **options)
        return
    from infoprune.pipeline import report_contents
    from infoprune.reporting import report as reporting

    page = Path(folder or "compared.html")
    if page.suffix != ".html" and page.exists() and not page.is_dir():
        raise UserError(f"--out '{page}' is a file; name a page that ends in .html, or a folder")
    page = page if page.suffix == ".html" else page / "compared.html"
    runs = report_contents.side_by_side([_run_directory(name) for name in (first, recipe)])
    reporting.report_side_by_side(page, runs)
    show(Shown({"page": str(page)}, [f"wrote {page}"]), options["as_json"])


def _run_directory(name: str) -> Path:
    """A run directory as it is named, or that of a recipe."""
    if not name.strip():
        raise UserError("--compare has an empty RUN; name a run directory that has a report, or a recipe")
    return Path(name) if Path(name).is_dir() else Path("runs") / Path(name).stem


def step_commands() -> list[click.Command]:
    """One command per step, in their order."""
    own = {"plan": plan, "report": report}
    return [own.get(name) or _step(name, help) for name, help in STEPS.items()]


def _step(step: str, help: str) -> click.Command:
    def command(job: "Context") -> Shown:
        from infoprune.pipeline.run import run_until

        run_until(job, step)
        return SHOWN[step](job)

    return click.command(step, help=help, short_help=help)(on_recipe(command))


def _findings(job: "Context") -> Shown:
    from infoprune.pipeline.steps.analyze import findings as findings_of

    findings = findings_of(job)
    return Shown({each.analysis: each for each in findings}, [tables.findings_table(findings)])


def _proof(job: "Context") -> Shown:
    from infoprune.io import checkpoint
    from infoprune.pipeline.steps.plan import planned

    plan = planned(job)
    proof = checkpoint.proof_of(job.out / "pruned.safetensors")
    value = {"macs_before": plan.macs_before, "macs_after": plan.macs_after, "verification": proof}
    said = f"{plan.macs_before:,} → {plan.macs_after:,} MACs; equals its masked reference model within "
    return Shown(value, [said + f"{proof.max_rel_difference:.1e} of the largest output"])


def _file(job: "Context") -> Shown:
    path = job.out / "repaired.safetensors"
    return Shown({"file": str(path), "bytes": path.stat().st_size})


def _history(job: "Context") -> Shown:
    from infoprune.training.history import read_history

    history = read_history(job.out / "history.csv")
    return Shown(history, [tables.history_table(history)] if history else ["no epochs were asked for"])


def _measured(job: "Context") -> Shown:
    from infoprune.pipeline.steps.evaluate import metrics as metrics_of

    metrics = metrics_of(job)
    return Shown(metrics, [metrics])


def _exported(job: "Context") -> Shown:
    from infoprune.pipeline.steps.export import exports as exports_of

    files = exports_of(job)
    return Shown(files, [files])


SHOWN: dict[str, Callable[["Context"], Shown]] = {
    "analyze": _findings,
    "prune": _proof,
    "repair": _file,
    "finetune": _history,
    "evaluate": _measured,
    "export": _exported,
}

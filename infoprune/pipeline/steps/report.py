"""Writes `report.html`; with the cells of `compare.json`, where there is one."""

from collections.abc import Mapping

from infoprune.io import storage
from infoprune.io.encoding import to_json
from infoprune.pipeline import fit
from infoprune.pipeline.artifacts import Origin, finding_name, origin, versions, write_json
from infoprune.pipeline.context import Context
from infoprune.pipeline.report_contents import About, gather, layer_changes
from infoprune.pipeline.step import Step
from infoprune.pipeline.steps import evaluate, export
from infoprune.pipeline.steps import plan as planning
from infoprune.reporting.report import report

FILE, PAGE, COMPARED = "report.json", "report.html", "compare.json"


def origins(context: Context) -> dict[str, Origin]:
    """The page shows what all steps before it found."""
    inputs = [*map(finding_name, context.analyses), planning.FILE, evaluate.FILE, export.FILE]
    inputs += [COMPARED] if context.directory.state(COMPARED) == "whole" else []
    return {FILE: origin(context, {"recipe": context.settings.recipe.text}, *inputs)}


def make(context: Context, stale: Mapping[str, Origin]) -> None:
    """Writes the page, and what it says that no other artifact does."""
    plan, recipe = planning.planned(context), context.settings.recipe
    about = About(
        title=recipe.name,
        recipe=recipe.text,
        findings=tuple(map(finding_name, context.analyses)),
        planes=fit.FINETUNE.planes if context.settings.plane.points else "",
        layers=tuple(layer_changes(context.graph, context.graph_without(plan.removed), plan)),
        versions=versions(),
    )
    contents, fingerprint = gather(context.out, about), storage.value_fingerprint(stale[FILE])
    context.directory.write(PAGE, lambda path: report(path, contents), FILE, fingerprint)
    write_json(context, FILE, stale[FILE], {"page": PAGE, "about": to_json(about)})


STEP = Step("report", origins, make)

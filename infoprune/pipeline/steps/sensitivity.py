"""Measures what each group costs at several widths, for every ranking that a plan may go by."""

from collections.abc import Mapping, Sequence
from typing import Any

from infoprune.analyses.base import Finding
from infoprune.errors import UserError
from infoprune.graph.channels import ChannelGroup
from infoprune.io import storage
from infoprune.io.encoding import from_json
from infoprune.pipeline.artifacts import Origin, finding_name, origin, write_json
from infoprune.pipeline.choose import RANKED, PlanOptions, by_sensitivity, candidates, ranking_of
from infoprune.pipeline.context import Context
from infoprune.pipeline.step import Step
from infoprune.pipeline.steps import depth
from infoprune.pipeline.steps.analyze import findings
from infoprune.planning.constraints import Constraints
from infoprune.planning.sensitivity import measure_sensitivities

FILE = "sensitivity.json"
# Activations of all of them are kept at once, and losses of single groups need no more.
BATCHES = 4

Losses = Mapping[str, Mapping[str, Mapping[int, float]]]


def measure(
    context: Context, options: Sequence[PlanOptions], found: Sequence[Finding], removed: Sequence[str]
) -> tuple[Losses, str]:
    """Losses per ranking, group and width, and why there are none where the model cannot be traced.

    Args:
        context: the run.
        options: of plans; they differ in their ranking.
        found: what the rankings go by.
        removed: blocks that are left out.

    Raises:
        UserError: where the model cannot be traced, and the options ask for measured widths.
    """
    graph, free = context.graph_without(removed), free_groups(context, options[0], removed)
    scores = {(ranking := ranking_of(found, each)).key: ranking.of(free) for each in options}
    few, how = context.calibration[:BATCHES], context.settings.tables["sensitivity"]
    try:
        return measure_sensitivities(context.model, graph, scores, few, context.counter("sensitivity"), **how), ""
    except UserError as error:
        if options[0]["allocation"] is not None:
            raise
        # Not every model can be traced, and nobody asked for it: widths are uniform then.
        return {}, str(error)


def free_groups(context: Context, options: PlanOptions, removed: Sequence[str]) -> list[ChannelGroup]:
    """The groups that a plan with these options may cut."""
    graph = context.graph_without(removed)
    refused = Constraints(protect=options["protect"], only=options["only"]).refused(graph)
    return [group for group in graph.groups if group.name not in refused]


def _options(context: Context) -> list[PlanOptions]:
    tables = context.settings.tables
    return list(candidates(tables["plan"], tables["choose"]["among"]).values())


def wanted(context: Context) -> bool:
    """Whether the plan goes by sensitivity and there is something to measure."""
    measured = by_sensitivity(context.settings.tables["plan"])
    return measured and any(not group.refusal for group in context.graph_without(depth.removed(context)).groups)


def origins(context: Context) -> dict[str, Origin]:
    """The losses come from the findings that rank."""
    options, removed, found = _options(context), depth.removed(context), findings(context)
    rankings = [ranking_of(found, each) for each in options]
    used = dict.fromkeys(finding.analysis for each in rankings for finding in (*each.main, *each.more))
    given: dict[str, Any] = {
        **context.settings.tables["sensitivity"],
        "rankings": [{name: each[name] for name in RANKED} for each in options],
        "removed": removed,
        "groups": [group.name for group in free_groups(context, options[0], removed)],
    }
    return {FILE: origin(context, given, *map(finding_name, used))}


def make(context: Context, stale: Mapping[str, Origin]) -> None:
    """Writes the losses, or why there are none."""
    losses, refused = measure(context, _options(context), findings(context), depth.removed(context))
    write_json(context, FILE, stale[FILE], {"losses": losses, **({"refused": refused} if refused else {})})


def measured(context: Context) -> tuple[Losses, str]:
    """What was measured for the plan, and why nothing was; both empty where the plan needs none."""
    path = context.out / FILE
    if not wanted(context):
        return {}, ""
    content = storage.read_json(path)
    losses = from_json(content.get("losses"), dict[str, dict[str, dict[int, float]]], str(path))
    return losses, from_json(content.get("refused", ""), str, str(path))


STEP = Step("sensitivity", origins, make, wanted)

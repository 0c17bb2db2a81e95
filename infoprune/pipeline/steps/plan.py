"""Chooses the channels to keep and writes `plan.json`, which may be edited by hand afterwards."""

import logging
import math
from collections.abc import Mapping
from typing import Any

from infoprune.errors import UserError
from infoprune.io import checkpoint, storage
from infoprune.io.encoding import from_json, to_json
from infoprune.pipeline.artifacts import MADE_FROM, Origin, finding_name, origin, write_json
from infoprune.pipeline.choose import Candidates, Evidence, best_plan, candidates, plan_for, smallest_plan
from infoprune.pipeline.context import Context
from infoprune.pipeline.step import Step
from infoprune.pipeline.steps import depth, sensitivity, timings
from infoprune.pipeline.steps.analyze import findings
from infoprune.pipeline.trials import remembered
from infoprune.planning.masks import read_masks
from infoprune.planning.plan import Plan
from infoprune.planning.planner import LIMITS, check_fit, recount
from infoprune.pruning.prune import check_kept, check_plan

LOGGER = logging.getLogger(__name__)
FILE = "plan.json"


def options_of(context: Context) -> dict[str, Any]:
    """The options of `[plan]`, with the masks of a file in place of its name."""
    options = dict(context.settings.tables["plan"])
    if isinstance(options["masks"], str):
        options["masks"] = read_masks(checkpoint.find_file(options["masks"], context.settings.folder))
    return options


def _candidates(context: Context) -> Candidates:
    return candidates(options_of(context), context.settings.tables["choose"]["among"])


def check(context: Context) -> None:
    """Refuses what does not fit the network before anything is analysed.

    Raises:
        UserError: for masks, patterns and budgets that do not fit, or a ranking by an analysis that is left out.
    """
    options, tables = options_of(context), context.settings.tables
    if options["masks"] is not None:
        check_fit(context.graph, **options)
        return
    for name, option in context.settings.asked.items():
        if name in context.left_out:
            raise UserError(f"{option} goes by '{name}', which is left out: {context.left_out[name]}")
    if tables["search"]["max_loss"] is not None or depth.advised(context):
        options = {**options, **dict.fromkeys(LIMITS)}  # what can be reached is only known later
    check_fit(context.graph_without(tables["depth"]["remove"]), **options)


def evidence(context: Context) -> Evidence:
    """What the steps before have found out."""
    losses, unmeasured = sensitivity.measured(context)
    return Evidence(findings(context), depth.removed(context), losses, unmeasured, timings.measured(context))


def origins(context: Context) -> dict[str, Origin]:
    """A plan comes from all findings, from what was measured, and from the trials that it asks for."""
    tables, options = context.settings.tables, options_of(context)
    inputs = [finding_name(name) for name in context.analyses]
    inputs += [step.FILE for step in (depth, sensitivity, timings) if step.wanted(context)]
    if tables["search"]["max_loss"] is not None:
        options["search"] = tables["search"]
    if "" not in _candidates(context):
        options["choose"] = tables["choose"]
    if "search" in options or "choose" in options:
        options["repair"] = tables["repair"]
    return {FILE: origin(context, options, *inputs)}


def make(context: Context, stale: Mapping[str, Origin]) -> None:
    """Writes the plan."""
    tried, found, made_from = _candidates(context), evidence(context), stale[FILE]
    how = context.settings.tables["search"]
    if how["max_loss"] is not None:
        halvings = math.ceil(math.log2(max(1.0, (1 - how["least"]) / max(how["tolerance"], 1e-6))))
        base, known, remember = remembered(context, "search.json", made_from, 1 + halvings, FILE)
        chosen = smallest_plan(context, tried, found, base, known, remember, how)
    elif "" not in tried:
        _, known, remember = remembered(context, "choice.json", made_from, len(tried), FILE)
        chosen, _ = best_plan(context, tried, found, known, remember)
    else:
        chosen = plan_for(context, next(iter(tried.values())), found)
    groups = {group.name: group for group in context.graph_without(chosen.removed).groups}
    for name, kept in chosen.kept().items():
        check_kept(groups[name], kept)
    write_json(context, FILE, made_from, to_json(chosen))


def accept_edits(context: Context, origins: Mapping[str, Origin]) -> None:
    """Takes a plan that was edited by hand, its figures counted again, as long as what it came from is the same."""
    path = context.out / FILE
    if context.directory.state(FILE) != "changed" or context.directory.damaged(FILE) != [FILE]:
        return
    content = storage.read_json(path, "correct it, or remove it to have a plan made again")
    if content.get(MADE_FROM) != origins[FILE]:
        return  # a plan is made again, and the edited one put aside
    edited = from_json(content, Plan, str(path))
    chosen = recount(edited, context.graph_without(edited.removed), str(path))
    check_plan(chosen, context.graph_without(chosen.removed), str(path))
    write_json(context, FILE, origins[FILE], to_json(chosen))
    LOGGER.warning("%s was edited by hand: it is used as it is, with widths and MACs counted again", path)


def planned(context: Context) -> Plan:
    """The plan as its file says, checked against the model."""
    path = context.out / FILE
    chosen = from_json(storage.read_json(path), Plan, str(path))
    check_plan(chosen, context.graph_without(chosen.removed), str(path))
    return chosen


def losses_of(context: Context) -> Mapping[str, Mapping[int, float]]:
    """Per group, width -> loss, as measured for the plan's ranking; empty where it needed none."""
    losses, _ = sensitivity.measured(context)
    by = context.settings.tables["plan"]["rank_by"]
    return losses.get(planned(context).ranked_by or (by if isinstance(by, str) else "+".join(by)), {})


STEP = Step("plan", origins, make, before=accept_edits)

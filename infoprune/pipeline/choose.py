"""From what was measured of a network to a plan: by one ranking, by the best of several, or within a loss."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from infoprune.analyses.base import Finding
from infoprune.errors import UserError
from infoprune.evaluation.profile import measure_latency
from infoprune.pipeline.context import Context
from infoprune.pipeline.trials import Remember, accuracy_after_repair
from infoprune.planning.latency import CLOSE, Timings, plan_within
from infoprune.planning.plan import Plan
from infoprune.planning.planner import plan
from infoprune.planning.ranking import BEST, Ranking
from infoprune.planning.search import choose_ranking, search
from infoprune.pruning.prune import prune

PlanOptions = Mapping[str, Any]
# Plan options by the name of their ranking; the name is empty where there is nothing to choose.
Candidates = Mapping[str, PlanOptions]
BUDGETS = ("macs", "parameters", "bytes", "latency", "latency_ms")
# The plan options that say how channels are ranked.
RANKED = ("rank_by", "redundancy_by", "redundancy_weight", "reduce", "scale")


@dataclass(frozen=True)
class Evidence:
    """What a plan goes by.

    Attributes:
        findings: of the analyses.
        removed: blocks that are left out.
        losses: per ranking, per group, width -> loss; empty where sensitivity was not measured.
        unmeasured: why it could not be; empty where it was, or nobody asked.
        timings: what layers take at several widths; `None` without a latency budget.
    """

    findings: Sequence[Finding]
    removed: Sequence[str] = ()
    losses: Mapping[str, Mapping[str, Mapping[int, float]]] = field(default_factory=dict)
    unmeasured: str = ""
    timings: Timings | None = None


def by_sensitivity(options: PlanOptions) -> bool:
    """Whether a plan with these options goes by measured sensitivity, where there is any."""
    asked = options["allocation"] in ("sensitivity", None) and options["width_as"] != "prior"
    return asked and options["masks"] is None


def candidates(options: PlanOptions, among: Sequence[str]) -> Candidates:
    """The plan options of every ranking that is to be tried; one entry, as they are, where nothing is to choose.

    Args:
        options: of the plan.
        among: the rankings to try where `rank_by` is "best".
    """
    if options["rank_by"] != BEST or options["masks"] is not None:
        return {"": options}
    return {name: {**options, "rank_by": name.split("+")} for name in among}


def ranking_of(findings: Sequence[Finding], options: PlanOptions) -> Ranking:
    """How a plan with these options ranks channels."""
    return Ranking(findings, *(options[name] for name in RANKED))


def plan_for(context: Context, options: PlanOptions, evidence: Evidence) -> Plan:
    """A plan with these options; for a latency, corrected by what the pruned network really takes."""
    if options["latency"] is None and options["latency_ms"] is None:
        return _planned(context, options, evidence)
    timings = evidence.timings
    if timings is None:
        raise UserError("a latency budget needs the times of layers; measure them first")
    graph = context.graph_without(evidence.removed)
    images = context.calibration[0][0][: timings.batch]
    whole = measure_latency(context.model, images).median
    asked = min(options["latency"] or 1.0, (options["latency_ms"] or whole) / whole)

    def within(target: float) -> Plan:
        limit = {**options, "latency": target, "latency_ms": None}
        return _planned(context, limit, evidence, lambda widths: timings.predict(graph, widths))

    def time_of(found: Plan) -> float:
        return measure_latency(prune(context.model, found), images).median

    found, taken = plan_within(asked, whole, within, time_of)
    note = f"measured: {taken:.3g} ms of {whole:.3g} ms ({taken / whole:.1%}) for a batch of {timings.batch}"
    if taken > CLOSE * asked * whole:
        note += f"; {asked:.1%} was asked for and not reached, since what layers take is not all that takes time"
    return replace(found, notes=(*found.notes, note))


def _planned(
    context: Context,
    options: PlanOptions,
    evidence: Evidence,
    predict: Callable[[Mapping[str, int]], float] | None = None,
) -> Plan:
    """A plan with these options, with a note where it lacks the sensitivities that it should have gone by."""
    by = options["rank_by"]
    measured = by_sensitivity(options)
    losses = evidence.losses.get(by if isinstance(by, str) else "+".join(by), {}) if measured else {}
    found = plan(evidence.findings, context.graph_without(evidence.removed), losses, predict, **options)
    if not measured or not evidence.unmeasured:
        return found
    note = f"widths are uniform, since sensitivity could not be measured: {evidence.unmeasured}"
    return replace(found, notes=(*found.notes, note))


def best_plan(
    context: Context,
    tried: Candidates,
    evidence: Evidence,
    known: Mapping[str, float] | None = None,
    remember: Remember | None = None,
) -> tuple[Plan, float]:
    """The plan of these that keeps most accuracy on validation data after repair, and that accuracy.

    Args:
        context: the run.
        tried: plan options per ranking.
        evidence: what plans go by.
        known: accuracies of rankings that were tried before.
        remember: told all accuracies after each trial.
    """
    plans: dict[str, Plan] = {}

    def attempt(name: str) -> float:
        plans[name] = plan_for(context, tried[name], evidence)
        return accuracy_after_repair(context, plans[name])

    found = choose_ranking(attempt, known, remember, among=list(tried))
    chosen = plans.get(found.best) or plan_for(context, tried[found.best], evidence)
    if len(tried) > 1:
        others = ", ".join(f"{name} {found.tried[name]:.2%}" for name in tried if name != found.best)
        note = f"ranked by {found.best}: {found.tried[found.best]:.2%} on validation after repair ({others})"
        chosen = replace(chosen, notes=(*chosen.notes, note))
    return chosen, found.tried[found.best]


def smallest_plan(
    context: Context,
    tried: Candidates,
    evidence: Evidence,
    base: float,
    known: Mapping[str, float],
    remember: Remember,
    how: Mapping[str, Any],
) -> Plan:
    """The smallest budget's plan that loses no more on validation data than asked for.

    Args:
        context: the run.
        tried: plan options per ranking.
        evidence: what plans go by.
        base: validation accuracy of the unpruned model, 0..1.
        known: accuracies of budgets that were tried before.
        remember: told all accuracies after each trial.
        how: options of `[search]`.
    """
    plans: dict[float, Plan] = {}

    def limited(share: float) -> Candidates:
        return {name: {**each, **dict.fromkeys(BUDGETS), how["budget"]: share} for name, each in tried.items()}

    def attempt(share: float) -> float:
        try:
            plans[share], accuracy = best_plan(context, limited(share), evidence)
        except UserError:  # out of reach; the next share up is tried
            return math.nan
        return accuracy

    found = search(attempt, base, known, remember, **how)
    # Of a search that went on, the plan is made again; where nothing is to choose, its accuracy is known.
    chosen = plans.get(found.share) or best_plan(context, limited(found.share), evidence, {"": found.accuracy})[0]
    note = (
        f"the smallest share of {how['budget']} tried that loses at most {how['max_loss']:g} points on validation is "
        f"{found.share:.1%} ({base:.2%} before, {found.accuracy:.2%} after repair; {len(found.tried)} tried)"
    )
    return replace(chosen, notes=(*chosen.notes, note))

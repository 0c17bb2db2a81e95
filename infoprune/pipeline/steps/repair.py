"""Brings accuracy back without training and writes `repaired.safetensors`."""

import copy
from collections.abc import Mapping

from infoprune.pipeline.artifacts import Origin, origin, weights_name
from infoprune.pipeline.context import Context
from infoprune.pipeline.networks import network, save_network
from infoprune.pipeline.step import Step
from infoprune.pipeline.steps.plan import planned
from infoprune.repairing.repair import repair
from infoprune.utils import distributed

FILE = weights_name("repaired")


def origins(context: Context) -> dict[str, Origin]:
    """The repaired network comes from the pruned one."""
    return {FILE: origin(context, context.settings.tables["repair"], weights_name("pruned"))}


def shared(context: Context) -> bool:
    """Whether processes share the work: gradient steps and running statistics are no sums, so the first does them."""
    options = context.settings.tables["repair"]
    return options["method"] == "compensate" and not options["match"]


def make(context: Context, stale: Mapping[str, Origin]) -> None:
    """Writes the repaired network."""
    model, plan = copy.deepcopy(network(context, "pruned")), planned(context)
    batches = distributed.Share(context.calibration) if shared(context) else context.calibration
    graph, options = context.graph_without(plan.removed), context.settings.tables["repair"]
    repair(model, context.model, graph, plan.kept(), batches, context.counter("repair"), context.views, **options)
    save_network(context, "repaired", model, stale[FILE], plan)


STEP = Step("repair", origins, make, together=shared)

"""Removes the channels, proves the result against the masked reference model, and writes `pruned.safetensors`."""

from collections.abc import Mapping

from infoprune.io.encoding import to_json
from infoprune.pipeline.artifacts import Origin, origin, weights_name
from infoprune.pipeline.context import Context
from infoprune.pipeline.networks import save_network
from infoprune.pipeline.step import Step
from infoprune.pipeline.steps.plan import FILE as PLAN
from infoprune.pipeline.steps.plan import planned
from infoprune.pruning.prune import prune
from infoprune.pruning.verify import verify

FILE = weights_name("pruned")


def origins(context: Context) -> dict[str, Origin]:
    """The pruned network comes from the plan."""
    return {FILE: origin(context, {}, PLAN)}


def make(context: Context, stale: Mapping[str, Origin]) -> None:
    """Writes the pruned network with its proof."""
    plan = planned(context)
    smaller = prune(context.model, plan)
    graph, images = context.graph_without(plan.removed), context.calibration[0][0]
    proof = verify(context.model, smaller, graph, plan.kept(), images)
    save_network(context, "pruned", smaller, stale[FILE], plan, verification=to_json(proof))


STEP = Step("prune", origins, make)

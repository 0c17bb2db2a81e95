"""Measures, if the plan has a latency budget, what layers take at several widths; `timings.json` keeps it."""

from collections.abc import Mapping

from torch import nn

from infoprune.io import storage
from infoprune.io.encoding import from_json, to_json
from infoprune.pipeline.artifacts import Origin, origin, write_json
from infoprune.pipeline.context import Context
from infoprune.pipeline.step import Step
from infoprune.planning.latency import Timings, measure_timings
from infoprune.planning.planner import first_channels
from infoprune.pruning.prune import prune

FILE = "timings.json"


def wanted(context: Context) -> bool:
    """Whether the plan, or the search for one, has a latency budget."""
    tables = context.settings.tables
    limits = {tables["plan"]["latency"], tables["plan"]["latency_ms"]}
    return limits != {None} or tables["search"]["budget"] == "latency"


def origins(context: Context) -> dict[str, Origin]:
    """Times belong to the device."""
    return {FILE: origin(context, {**context.settings.tables["timings"], "device": str(context.device)})}


def make(context: Context, stale: Mapping[str, Origin]) -> None:
    """Writes the times."""

    def narrowed(share: float) -> tuple[nn.Module, Mapping[str, int]]:
        chosen = first_channels(context.graph, share)
        return prune(context.model, chosen), {group.group: group.width_after for group in chosen.groups}

    images, options = context.calibration[0][0], context.settings.tables["timings"]
    found = measure_timings(context.model, images, context.graph, narrowed, context.counter("timings"), **options)
    write_json(context, FILE, stale[FILE], to_json(found))


def measured(context: Context) -> Timings | None:
    """What was measured for the plan; `None` where it needs none."""
    path = context.out / FILE
    return from_json(storage.read_json(path), Timings, str(path)) if wanted(context) else None


STEP = Step("timings", origins, make, wanted)

"""Decides, if analyses name any or the recipe does, which blocks go; `depth.json` keeps what was tried."""

from collections.abc import Mapping

from infoprune.io import storage
from infoprune.io.encoding import from_json, to_json
from infoprune.pipeline.artifacts import Origin, finding_name, origin, write_json
from infoprune.pipeline.context import Context
from infoprune.pipeline.step import Step
from infoprune.pipeline.steps.analyze import findings
from infoprune.pipeline.trials import accuracy_after_repair, remembered
from infoprune.planning.plan import Plan
from infoprune.planning.search import DEPTH, choose_blocks

FILE, TRIALS = "depth.json", "depth-trials.json"


def advised(context: Context) -> bool:
    """Whether an analysis of this recipe may name blocks, as far as can be told before anything is analysed."""
    by = context.settings.tables["depth"]["depth_by"]
    return any(name in context.analyses for name in (DEPTH if by is None else by))


def possible(context: Context) -> bool:
    """Whether a plan of this recipe may leave blocks out."""
    return advised(context) or bool(context.settings.tables["depth"]["remove"])


def wanted(context: Context) -> bool:
    """Whether there are blocks to decide about."""
    options = context.settings.tables["depth"]
    if context.settings.tables["plan"]["masks"] is not None:
        return False
    named = options["depth_by"] != [] and any(finding.removable for finding in findings(context))
    return named or bool(options["remove"])


def origins(context: Context) -> dict[str, Origin]:
    """The decision comes from all findings and from repair."""
    tables = context.settings.tables
    return {
        FILE: origin(context, {**tables["depth"], "repair": tables["repair"]}, *map(finding_name, context.analyses))
    }


def make(context: Context, stale: Mapping[str, Origin]) -> None:
    """Writes the decision."""
    found, made_from = findings(context), stale[FILE]
    named = {block for finding in found for block in finding.removable}
    base, known, remember = remembered(context, TRIALS, made_from, 2 * len(named), FILE)

    def attempt(blocks: tuple[str, ...]) -> float:
        graph = context.graph_without(blocks)
        plan = Plan((), {}, graph.unpruned.macs, graph.macs({}), graph.input_shape, removed=blocks)
        return accuracy_after_repair(context, plan)

    chosen = choose_blocks(found, attempt, base, known, remember, **context.settings.tables["depth"])
    write_json(context, FILE, made_from, {"base": base, **to_json(chosen)})
    context.directory.remove(TRIALS)


def removed(context: Context) -> tuple[str, ...]:
    """The blocks that go, once the step is done or not wanted."""
    return decided(context)[1] if wanted(context) else ()


def decided(context: Context) -> tuple[dict[str, float], tuple[str, ...], float]:
    """What validation says of the blocks that analyses name: accuracies tried, blocks that go, and the base's."""
    path = context.out / FILE
    content = storage.read_json(path)
    tried = from_json(content.get("tried"), dict[str, float], str(path))
    gone = from_json(content.get("removed"), tuple[str, ...], str(path))
    base: float = from_json(content.get("base"), float, str(path))
    return tried, gone, base


STEP = Step("depth", origins, make, wanted)

"""Widths and depth as advice: what each analysis says, what to make of it, and how to build that network."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from infoprune.analyses.base import Finding, Measure
from infoprune.evaluation.metrics import ModelReference
from infoprune.graph.channels import ChannelGraph
from infoprune.io.encoding import to_json
from infoprune.pipeline.architecture import narrowed
from infoprune.pipeline.context import Context
from infoprune.pipeline.step import run_step
from infoprune.pipeline.steps import analyze, depth
from infoprune.planning.constraints import Constraints, Feasibility, feasibility
from infoprune.planning.recommend import Recommendation, recommend


@dataclass(frozen=True)
class WidthAdvice:
    """Recommended widths of a network.

    Attributes:
        groups: one row per channel group.
        macs, parameters: of the network, before and after all of it.
        model: how to build the narrower network, to be trained from scratch; `None` where the family cannot.
        left_out: analyses that did not take part, with the reason.
    """

    groups: tuple[Recommendation, ...]
    macs: tuple[int, int]
    parameters: tuple[int, int]
    model: ModelReference | None
    left_out: Mapping[str, str]


@dataclass(frozen=True)
class BlockAdvice:
    """What is known of one block that could give way to the identity.

    Attributes:
        block: its name.
        named_by: the analyses that would remove it.
        figures: what they measured of it.
        accuracy: on validation data without it, after repair, 0..1; `None` where it was not tried.
        recommended: whether to remove it.
        reason: why, in words.
        saves_macs, saves_parameters: what the network saves without it alone.
    """

    block: str
    named_by: tuple[str, ...]
    figures: Mapping[str, Measure]
    accuracy: float | None
    recommended: bool
    reason: str
    saves_macs: int
    saves_parameters: int


@dataclass(frozen=True)
class DepthAdvice:
    """Recommended depth of a network.

    Attributes:
        blocks: one row per block that could be removed.
        base: validation accuracy of the unpruned network; `None` where nothing was tried.
        macs, parameters: of the network, before and after all of it.
        model: how to build the shallower network; `None` where the family cannot.
        notes: what analyses say of the network as a whole.
        left_out: analyses that did not take part, with the reason.
    """

    blocks: tuple[BlockAdvice, ...]
    base: float | None
    macs: tuple[int, int]
    parameters: tuple[int, int]
    model: ModelReference | None
    notes: tuple[str, ...]
    left_out: Mapping[str, str]


def prunable_groups(context: Context) -> list[Feasibility]:
    """What could be cut of a recipe's model, before anything is analysed."""
    return feasibility(context.graph, _constraints(context))


def advise_widths(context: Context) -> WidthAdvice:
    """Recommends a width for every channel group of a recipe's model and writes `widths.json`."""
    run_step(context, analyze.STEP)
    graph = context.graph
    groups = tuple(recommend(analyze.findings(context), graph, _constraints(context)))
    widths = {row.group: row.recommended for row in groups}
    per_layer = {layer: own for layer, (_, own) in graph.layer_widths(widths).items()}
    before, after = graph.cost({}), graph.cost(widths)
    advice = WidthAdvice(
        groups,
        (before.macs, after.macs),
        (before.parameters, after.parameters),
        narrowed(context.settings.model, context.model, per_layer),
        context.left_out,
    )
    context.directory.write_json("widths.json", to_json(advice))
    return advice


def advise_depth(context: Context, confirm: bool = True) -> DepthAdvice:
    """Recommends which blocks of a recipe's model to leave out and writes `depth_advice.json`.

    Args:
        context: the recipe and its run directory.
        confirm: remove the blocks that analyses name, alone and together, repair, and look at validation accuracy.
    """
    run_step(context, analyze.STEP)
    findings = analyze.findings(context)
    tried: Mapping[str, float] = {}
    removed: tuple[str, ...] = ()
    base: float | None = None
    if confirm:
        run_step(context, depth.STEP)
        tried, removed, base = depth.decided(context)
    blocks = dict.fromkeys(block for finding in findings for block in (*finding.removable, *_judged(finding)))
    whole = context.graph.unpruned
    rows = []
    for block in blocks:
        left = context.graph_without([block]).cost({})
        named = tuple(finding.analysis for finding in findings if block in finding.removable)
        figures = {name: each for finding in findings for name, each in _judged(finding).get(block, {}).items()}
        accuracy = tried.get(block)
        advised = block in removed if confirm else bool(named)
        reason = _why(named, advised, accuracy, base)
        saved = whole.macs - left.macs, whole.parameters - left.parameters
        rows.append(BlockAdvice(block, named, figures, accuracy, advised, reason, *saved))
    gone = tuple(row.block for row in rows if row.recommended)
    graph: ChannelGraph = context.graph_without(gone)
    after = graph.cost({})
    advice = DepthAdvice(
        tuple(rows),
        base,
        (whole.macs, after.macs),
        (whole.parameters, after.parameters),
        narrowed(context.settings.model, context.model, {}, gone),
        _of_the_network(findings),
        context.left_out,
    )
    context.directory.write_json("depth_advice.json", to_json(advice))
    return advice


def _constraints(context: Context) -> Constraints:
    names = ("round_to", "min_width", "min_share", "protect", "only")
    return Constraints(**{name: context.settings.tables["plan"][name] for name in names})


def _judged(finding: Finding) -> dict[str, dict[str, Measure]]:
    """Per block, what an analysis measured between its two ends."""
    found = {}
    for name, measures in finding.measures.items():
        own = {figure: measure for figure, measure in measures.items() if figure.startswith("block: ")}
        if own:
            found[name] = own
    return found


def _why(named: Sequence[str], advised: bool, accuracy: float | None, base: float | None) -> str:
    who = f"named by {', '.join(named)}" if named else "no analysis would remove it"
    if accuracy is None or base is None:
        return who
    lost = f"{100 * (base - accuracy):+.2f} points of validation accuracy lost without it, after repair"
    verdict = "removed" if advised else "kept: more would be lost than [depth] max_loss allows"
    return f"{who}; {lost}; {verdict}"


def _of_the_network(findings: Sequence[Finding]) -> tuple[str, ...]:
    """Figures of depth that belong to no block."""
    notes = []
    for finding in findings:
        for name, measures in finding.measures.items():
            if "depth for the share" in measures:
                depth = float(measures["depth for the share"].value)
                said = f"after {depth:.0f} layers" if depth == depth else "after no number of its layers"
                notes.append(f"{finding.analysis}: most of the energy is gone {said} ({name})")
    return tuple(notes)

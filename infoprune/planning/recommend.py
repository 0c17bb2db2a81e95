"""Widths that analyses recommend, from layers to channel groups."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median_high
from typing import Literal

from infoprune.analyses.base import Finding
from infoprune.errors import UserError, did_you_mean
from infoprune.graph.channels import ChannelGraph, ChannelGroup
from infoprune.planning.constraints import Constraints, up

WidthAs = Literal["floor", "ceiling", "prior"]
# Whose widths are heeded wherever it ran, unless the recipe says otherwise.
WIDTHS = ("cmi_permutation",)


@dataclass(frozen=True)
class Advice:
    """What analyses recommend for one channel group.

    Attributes:
        width: their median (the upper one of an even number).
        by: each analysis's own recommendation.
        flags: analyses whose figures there are not to be trusted, with the reason; they are not in `by`.
    """

    width: int
    by: dict[str, int]
    flags: dict[str, str]


def advising(findings: Sequence[Finding], width_by: Sequence[str] | None) -> list[Finding]:
    """The findings whose widths are asked for.

    Args:
        findings: what the analyses found.
        width_by: names of analyses; `None` for those of `WIDTHS` that ran.

    Raises:
        UserError: for an analysis that did not run, or recommends no widths at all.
    """
    known = {finding.analysis: finding for finding in findings}
    if width_by is None:
        return [known[name] for name in WIDTHS if name in known]
    for name in width_by:
        if name not in known:
            raise UserError(f"[plan] width_by names '{name}', but no such analysis ran{did_you_mean(name, known)}")
        if not known[name].widths and not known[name].flags:
            able = [finding.analysis for finding in findings if finding.widths]
            raise UserError(f"'{name}' recommends no widths; analyses that do: {', '.join(able) or 'none ran'}")
    return [known[name] for name in width_by]


def advise(findings: Sequence[Finding], group: ChannelGroup) -> Advice | None:
    """What analyses recommend for a group; `None` where none has anything to say.

    A group that several layers put out (a residual stream) has to serve the one that needs most, so it gets the largest
    of their widths. A flagged layer (saturated, undefined) recommends nothing.
    """
    by: dict[str, int] = {}
    flags: dict[str, str] = {}
    for finding in findings:
        doubts = {flag.layer: flag.reason for flag in finding.flags}
        widths = []
        for member in group.members:
            if member.side == "out" and member.layer in doubts:
                flags[finding.analysis] = doubts[member.layer]
            elif member.side == "out" and member.layer in finding.widths:
                # Several filters may go with one channel (after a flatten).
                widths.append(-(-finding.widths[member.layer] // len(member.channels[0])))
        if widths:
            by[finding.analysis] = max(1, min(group.width, max(widths)))
            flags.pop(finding.analysis, None)
    if not by:
        return Advice(group.width, {}, flags) if flags else None
    return Advice(median_high(by.values()), by, flags)


@dataclass(frozen=True)
class Opinion:
    """The width that one analysis recommends for a channel group.

    Attributes:
        analysis: its name.
        width: number of channels; `None` where it recommends none.
        low, high: ends of the interval over mini-batches, where it measures one.
        flag: why not to trust it; empty where there is no doubt.
    """

    analysis: str
    width: int | None
    low: float | None = None
    high: float | None = None
    flag: str = ""


@dataclass(frozen=True)
class Recommendation:
    """What to make of one channel group, with all that was said about it.

    Attributes:
        group: its name.
        layers: the layers that put out its channels, which can only change together.
        width: as it is.
        recommended: the width to go on with; the present one where the group cannot be cut or nobody recommends any.
        reason: who decided, in words.
        opinions: one per analysis that recommends widths.
        saves_macs, saves_parameters: what the network saves if this group alone changes.
    """

    group: str
    layers: tuple[str, ...]
    width: int
    recommended: int
    reason: str
    opinions: tuple[Opinion, ...]
    saves_macs: int
    saves_parameters: int


def recommend(findings: Sequence[Finding], graph: ChannelGraph, constraints: Constraints) -> list[Recommendation]:
    """A width for every channel group, from all analyses that recommend one.

    The recommendation is the median of those that are not flagged, kept within the constraints. It is a starting point
    for training a narrower network, not a promise: no budget is asked for and nothing is measured.

    Args:
        findings: what the analyses found.
        graph: channel groups and costs.
        constraints: what may be cut.

    Raises:
        UserError: for a pattern that matches no layer.
    """
    refused, whole = constraints.refused(graph), graph.cost({})
    advisers = [
        finding for finding in findings if finding.widths or any("width" in m for m in finding.measures.values())
    ]
    weighted = {cost.layer for cost in graph.costs if cost.macs}
    rows = []
    for group in graph.groups:
        opinions = tuple(opinion for finding in advisers if (opinion := _opinion(finding, group)) is not None)
        given = advise(advisers, group)
        width, reason = group.width, refused.get(group.name, "")
        if not reason and (given is None or not given.by):
            reason = "no analysis recommends a width here"
        elif not reason and given is not None:
            width = min(group.width, max(constraints.floor(group), up(given.width, constraints.step(group))))
            reason = f"median of {len(given.by)}" if len(given.by) > 1 else f"as {next(iter(given.by))} says"
            if width != given.width:
                reason += f" ({given.width}), brought to what the constraints allow"
        less = graph.cost({group.name: width})
        layers = tuple(member.layer for member in group.members if member.side == "out" and member.layer in weighted)
        rows.append(
            Recommendation(
                group.name,
                layers or (group.name,),
                group.width,
                width,
                reason,
                opinions,
                whole.macs - less.macs,
                whole.parameters - less.parameters,
            )
        )
    return rows


def _opinion(finding: Finding, group: ChannelGroup) -> Opinion | None:
    """What one analysis says of the layer of a group that needs most."""
    own = [member.layer for member in group.members if member.side == "out"]
    flags = {flag.layer: flag.reason for flag in finding.flags}
    widths = {layer: finding.widths[layer] for layer in own if layer in finding.widths}
    if not widths:
        doubts = [flags[layer] for layer in own if layer in flags]
        return Opinion(finding.analysis, None, flag=doubts[0]) if doubts else None
    layer = max(widths, key=lambda name: widths[name])
    measured = finding.measures.get(layer, {}).get("width")
    low, high = (
        (None, None)
        if measured is None or measured.low is None or measured.high is None
        else (float(measured.low), float(measured.high))
    )
    return Opinion(finding.analysis, widths[layer], low, high, flags.get(layer, ""))

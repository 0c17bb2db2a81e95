"""Widths that analyses recommend, from layers to channel groups."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median_high
from typing import Literal

from infoprune.artifacts import ChannelGroup, Finding
from infoprune.errors import UserError, did_you_mean

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

"""The widths that each group may have, from constraints and recommendations, and which of them decided."""

from collections.abc import Mapping, Sequence

from infoprune.graph.channels import ChannelGroup
from infoprune.planning.allocation import Span
from infoprune.planning.budget import Budget
from infoprune.planning.constraints import Constraints, up
from infoprune.planning.recommend import Advice, WidthAs


def spans_of(
    free: Sequence[ChannelGroup],
    constraints: Constraints,
    advice: Mapping[str, Advice],
    width_as: WidthAs,
    budget: Budget,
) -> tuple[list[Span], tuple[str, ...]]:
    """The widths that each group may have; recommended floors give way, all in one proportion, to the budget."""
    hard = {group.name: constraints.floor(group) for group in free}
    recommended = {
        group.name: min(group.width, up(advice[group.name].width, constraints.step(group)))
        for group in free
        if group.name in advice and advice[group.name].by
    }
    tops = {group.name: group.width for group in free}
    floors = dict(hard)
    notes: tuple[str, ...] = ()
    if width_as == "ceiling":
        tops |= {name: max(hard[name], width) for name, width in recommended.items()}
    elif width_as == "floor" and recommended:
        floors, share = _reachable(free, constraints, hard, recommended, budget)
        if share < 1:
            notes = (
                f"the budget lies below the recommended widths: floors keep {share:.0%} of the way from the least "
                "width to the recommended one",
            )
    return [Span(g, floors[g.name], tops[g.name], constraints.step(g)) for g in free], notes


def _reachable(
    free: Sequence[ChannelGroup],
    constraints: Constraints,
    hard: Mapping[str, int],
    wanted: Mapping[str, int],
    budget: Budget,
) -> tuple[dict[str, int], float]:
    """Floors as far up from the hard ones to the recommended ones as the budget allows, and how far that is, 0..1."""

    def at(share: float) -> dict[str, int]:
        floors = dict(hard)
        for group in free:
            low, high, step = hard[group.name], wanted.get(group.name, 0), constraints.step(group)
            between = int(low + share * (high - low)) // step * step
            floors[group.name] = max(low, high if share == 1 else between)
        return floors

    low, high = 0.0, 1.0
    if budget.met(at(high)):
        return at(high), high
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (middle, high) if budget.met(at(middle)) else (low, middle)
    return at(low), low


def decided_by(span: Span, width: int, advice: Advice | None, width_as: WidthAs, allocation: str) -> str:
    """Which signal decided about a group's width, in words."""
    group = span.group
    of = f"{width} of {group.width}"
    if advice is None or not advice.by:
        doubt = "; ".join(f"{name} has no say: {reason}" for name, reason in advice.flags.items()) if advice else ""
        return f"{allocation} width {of}" + (f" ({doubt})" if doubt else "")
    who = ", ".join(f"{name} {own}" for name, own in advice.by.items())
    if width_as == "prior" and allocation == "uniform":
        return f"width {of} in proportion to the recommended {advice.width} ({who})"
    if width_as == "floor" and width == span.floor:
        return f"width {of}, held up by the recommended {advice.width} ({who})"
    if width_as == "ceiling" and width == span.top < group.width:
        return f"width {of}, held down to the recommended {advice.width} ({who})"
    return f"{allocation} width {of} (recommended: {who})"

"""Widths from measured sensitivity: the cheapest marginal loss per multiply-accumulate goes first."""

import heapq
from collections.abc import Mapping
from itertools import pairwise

from infoprune.artifacts import ChannelGraph
from infoprune.errors import UserError

Table = Mapping[str, Mapping[int, float]]


def allocate(
    table: Table, graph: ChannelGraph, budget: float, *, round_to: int = 1, floor: Mapping[str, int] | None = None
) -> dict[str, int]:
    """Widths of least total loss under a budget of multiply-accumulates.

    Losses of groups are taken to add up. Each group's loss is made convex in its width (lower hull of the measured
    points, straight between them), so that taking the step of least marginal loss per saved multiply-accumulate is
    optimal up to the last step.

    >>> from infoprune.artifacts import ChannelGroup, LayerCost, Member
    >>> def group(name, reader):
    ...     channels = tuple((i,) for i in range(4))
    ...     return ChannelGroup(name, 4, (Member(name, "out", channels), Member(reader, "in", channels)))
    >>> costs = tuple(LayerCost(name, 4, 4, 16) for name in "abc")
    >>> graph = ChannelGraph((group("a", "b"), group("b", "c")), costs, (4,))
    >>> allocate({"a": {4: 0.0, 1: 0.3}, "b": {4: 0.0, 1: 3.0}}, graph, 32)
    {'a': 2, 'b': 4}

    Args:
        table: per group, width -> loss, with an entry for the full width; from `measure_sensitivity`.
        graph: channel groups and costs.
        budget: multiply-accumulates per sample: a share of the unpruned network's up to 1, above that a number.
        round_to: widths are multiples of this, or a group's own.
        floor: least width per group; by default the least that was measured, below which nothing is known.

    Returns:
        A width for every group of the table; the budget is met from below.

    Raises:
        UserError: for an empty table, a group without its full width, or a budget out of reach.
    """
    hulls = {name: _hull(name, losses) for name, losses in table.items()}
    lows = {name: max(hull[0][0], (floor or {}).get(name, 1)) for name, hull in hulls.items()}
    widths = {name: hull[-1][0] for name, hull in hulls.items()}
    limit = budget * graph.macs({}) if 0 < budget <= 1 else budget
    macs = graph.macs(widths)
    heap = [(_price(name, widths, hulls, lows, graph, macs, round_to), name) for name in hulls]
    heapq.heapify(heap)
    while macs > limit:
        price, name = heapq.heappop(heap) if heap else (float("inf"), "")
        if price == float("inf"):
            raise UserError(
                f"a budget of {limit:.4g} MACs is out of reach: the least widths measured leave {macs}; "
                "measure smaller shares, or raise the budget"
            )
        # Other groups' cuts have changed what this step saves, so it is priced anew, and taken if still the cheapest.
        price = _price(name, widths, hulls, lows, graph, macs, round_to)
        if not heap or price <= heap[0][0]:
            widths[name] = _lower(widths[name], round_to)
            macs = graph.macs(widths)
            price = _price(name, widths, hulls, lows, graph, macs, round_to)
        heapq.heappush(heap, (price, name))
    return widths


def _lower(width: int, round_to: int) -> int:
    return (width - 1) // round_to * round_to


def _price(
    name: str,
    widths: Mapping[str, int],
    hulls: Mapping[str, list[tuple[int, float]]],
    lows: Mapping[str, int],
    graph: ChannelGraph,
    macs: int,
    round_to: int,
) -> float:
    """Loss per saved multiply-accumulate of a group's next step; infinite where there is none."""
    lower = _lower(widths[name], round_to)
    if lower < max(lows[name], 1):
        return float("inf")
    saved = macs - graph.macs({**widths, name: lower})
    rise = _loss(hulls[name], lower) - _loss(hulls[name], widths[name])
    return rise / saved if saved > 0 else float("inf")


def _loss(hull: list[tuple[int, float]], width: int) -> float:
    for (left, high), (right, low) in pairwise(hull):
        if left <= width <= right:
            return high + (low - high) * (width - left) / (right - left)
    return hull[-1][1]


def _hull(name: str, losses: Mapping[int, float]) -> list[tuple[int, float]]:
    """Lower convex hull of (width, loss), from the least width to the full one (Andrew's monotone chain)."""
    points = sorted(losses.items())
    if not points:
        raise UserError(f"'{name}' has no measured width; measure its sensitivity first")
    hull: list[tuple[int, float]] = []
    for x, y in points:
        while len(hull) > 1 and (hull[-1][1] - hull[-2][1]) * (x - hull[-2][0]) >= (y - hull[-2][1]) * (
            hull[-1][0] - hull[-2][0]
        ):
            hull.pop()
        hull.append((x, y))
    return hull

"""Widths from measured sensitivity: the cheapest marginal loss per unit of the budget goes first."""

import heapq
import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

from infoprune.errors import UserError
from infoprune.graph.channels import ChannelGraph
from infoprune.planning.allocation import Span, widen
from infoprune.planning.budget import Budget, budget_of

Table = Mapping[str, Mapping[int, float]]
# A group goes down in at most about this many steps, so that a plan's time does not grow with its widths.
STEPS = 64


def allocate(
    table: Table, graph: ChannelGraph, budget: float, *, round_to: int = 1, floor: Mapping[str, int] | None = None
) -> dict[str, int]:
    """Widths of least total loss under a budget of multiply-accumulates.

    >>> from infoprune.graph.channels import ChannelGroup, Member
    >>> from infoprune.graph.costs import LayerCost
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
    groups = [group for group in graph.groups if group.name in table]
    spans = [
        Span(group, (floor or {}).get(group.name, 1), group.width, math.lcm(round_to, group.partitions))
        for group in groups
    ]
    return cheapest(table, budget_of(graph, macs=budget), spans)


def cheapest(table: Table, budget: Budget, spans: Sequence[Span]) -> dict[str, int]:
    """Widths of least total loss under a budget.

    Losses of groups are taken to add up. Each group's loss is made convex in its width (lower hull of the measured
    points, straight between them), so that taking the step of least marginal loss per saved share of the budget is
    optimal up to the last step.

    Args:
        table: per group, width -> loss, with an entry for the full width.
        budget: the limits.
        spans: the widths that each group may have.

    Raises:
        UserError: for a group without a measurement, or a budget out of reach.
    """
    lacking = [span.group.name for span in spans if not table.get(span.group.name)]
    if lacking:
        raise UserError(
            f"[plan] allocation = 'sensitivity', but none was measured for {', '.join(lacking[:3])}; measure it, or "
            "use another allocation"
        )
    descent = _Descent(table, budget, spans)
    descent.run()
    # Large steps may have gone further than needed: the dearest groups get the rest back.
    widen(budget, spans, lambda span: -descent.price_up(span), descent.widths)
    return descent.widths


def reaches(table: Table, budget: Budget, spans: Sequence[Span]) -> bool:
    """Whether a budget can be met with every group at the least width that was measured, or at its floor."""
    measured = {span.group.name: table.get(span.group.name) or {span.group.width: 0.0} for span in spans}
    return budget.met({span.group.name: max(span.floor, min(measured[span.group.name])) for span in spans})


class _Descent:
    """Takes the cheapest step down until the budget is met."""

    def __init__(self, table: Table, budget: Budget, spans: Sequence[Span]) -> None:
        self.budget, self.spans = budget, {span.group.name: span for span in spans}
        self.hulls = {name: _hull(table[name]) for name in self.spans}
        self.lows = {name: max(hull[0][0], self.spans[name].floor) for name, hull in self.hulls.items()}
        self.widths = {name: span.top for name, span in self.spans.items()}
        self.excess = budget.excess(self.widths)

    def run(self) -> None:
        heap = [(self._price(name), name) for name in self.spans]
        heapq.heapify(heap)
        while self.excess > 0:
            price, name = heapq.heappop(heap) if heap else (math.inf, "")
            if price == math.inf:
                least = "; ".join(self.budget.notes(self.widths)[: len(self.budget.limits)])
                raise UserError(
                    f"the budget is out of reach: the least widths measured leave {least}; measure smaller shares "
                    "([sensitivity] shares), or raise the budget"
                )
            # Other groups' cuts have changed what this step saves, so it is priced again, and taken if still cheapest.
            price = self._price(name)
            if not heap or price <= heap[0][0]:
                self.widths[name] = self._lower(name)
                self.excess = self.budget.excess(self.widths)
                price = self._price(name)
            heapq.heappush(heap, (price, name))

    def _lower(self, name: str) -> int:
        """The next width down: a large step where there is room for one, else a small one."""
        span, width, low = self.spans[name], self.widths[name], self.lows[name]
        large = max(1, span.group.width // (STEPS * span.step)) * span.step
        below = (width - 1) // span.step * span.step
        return max(below - (large - span.step), min(below, -(-low // span.step) * span.step))

    def _price(self, name: str) -> float:
        """Loss per saved share of the budget of a group's next step; infinite where there is none."""
        lower = self._lower(name)
        if lower < max(self.lows[name], 1):
            return math.inf
        saved = self.excess - self.budget.excess({**self.widths, name: lower})
        rise = _loss(self.hulls[name], lower) - _loss(self.hulls[name], self.widths[name])
        return rise / saved if saved > 0 else math.inf

    def price_up(self, span: Span) -> float:
        """Loss that one step up would save, per channel."""
        width = self.widths[span.group.name]
        wider, hull = span.wider(width), self.hulls[span.group.name]
        return (_loss(hull, width) - _loss(hull, wider)) / max(1, wider - width)


def _loss(hull: list[tuple[int, float]], width: int) -> float:
    for (left, high), (right, low) in pairwise(hull):
        if left <= width <= right:
            return high + (low - high) * (width - left) / (right - left)
    return hull[-1][1]


def _hull(losses: Mapping[int, float]) -> list[tuple[int, float]]:
    """Lower convex hull of (width, loss), from the least width to the full one (Andrew's monotone chain)."""
    hull: list[tuple[int, float]] = []
    for x, y in sorted(losses.items()):
        while len(hull) > 1 and (hull[-1][1] - hull[-2][1]) * (x - hull[-2][0]) >= (y - hull[-2][1]) * (
            hull[-1][0] - hull[-2][0]
        ):
            hull.pop()
        hull.append((x, y))
    return hull

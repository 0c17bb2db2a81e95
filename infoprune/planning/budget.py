"""What a plan may cost at most."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from infoprune.errors import UserError
from infoprune.graph.channels import ChannelGraph

Widths = Mapping[str, int]


@dataclass(frozen=True)
class Limit:
    """One bound on the cost of a plan.

    Attributes:
        option: its name in a recipe.
        asked: what the recipe says.
        most: the bound, in `unit`.
        total: what the unpruned model costs.
        cost: what given widths cost.
        unit: "MACs", "parameters", "bytes" or "ms".
    """

    option: str
    asked: float
    most: float
    total: float
    cost: Callable[[Widths], float]
    unit: str

    def amount(self, value: float) -> str:
        """A cost in words."""
        return f"{value:.3g} ms" if self.unit == "ms" else f"{value:,.0f} {self.unit}"


class Budget:
    """All limits that a plan has to keep.

    Args:
        limits: at least one.
    """

    def __init__(self, limits: list[Limit]) -> None:
        self.limits = limits

    def met(self, widths: Widths) -> bool:
        """Whether every limit is kept."""
        return all(limit.cost(widths) <= limit.most for limit in self.limits)

    def excess(self, widths: Widths) -> float:
        """How far the limits are overstepped: the sum of what is over, each relative to its bound; 0 where met."""
        return sum(max(0.0, limit.cost(widths) / limit.most - 1) for limit in self.limits)

    def check(self, least: Widths) -> None:
        """Makes sure that the least widths keep every limit.

        Raises:
            UserError: with the smallest that can be reached, where they do not.
        """
        for limit in self.limits:
            cost = limit.cost(least)
            if cost > limit.most:
                raise UserError(
                    f"[plan] {limit.option} = {limit.asked:g} asks for {limit.amount(limit.most)}, but the smallest "
                    f"reachable is {limit.amount(cost)} ({cost / limit.total:.1%}); raise {limit.option}, or lower "
                    "min_width and min_share, or protect less"
                )

    def notes(self, widths: Widths) -> tuple[str, ...]:
        """How each limit is kept, in words; where none is used to within 1 %, that no closer plan was found."""
        costs = {limit.option: limit.cost(widths) for limit in self.limits}
        notes = [
            f"{limit.amount(costs[limit.option])} of {limit.amount(limit.total)} "
            f"({costs[limit.option] / limit.total:.1%}); asked for at most {limit.amount(limit.most)}"
            for limit in self.limits
        ]
        if all(costs[limit.option] < 0.99 * limit.most for limit in self.limits):
            notes.append(
                "no limit is used up to within 1 %: the widths go in steps (round_to, grouped layers) or are held down "
                "(ceilings, what sensitivity measured), and this is the nearest reachable below"
            )
        return tuple(notes)


def budget_of(
    graph: ChannelGraph,
    *,
    macs: float | None = None,
    parameters: float | None = None,
    bytes: float | None = None,
    latency: float | None = None,
    latency_ms: float | None = None,
    predict: Callable[[Widths], float] | None = None,
) -> Budget:
    """The limits that options ask for; half the MACs where they ask for none.

    Args:
        graph: channel groups and costs.
        macs, parameters, bytes: a share of the unpruned model's up to 1, above that a number.
        latency: a share of the unpruned model's measured time.
        latency_ms: milliseconds.
        predict: milliseconds of a forward pass at given widths; needed for a latency.

    Raises:
        UserError: for a latency without a prediction.
    """
    if macs is parameters is bytes is latency is latency_ms is None:
        macs = 0.5
    limits = []
    for option, asked in (("macs", macs), ("parameters", parameters), ("bytes", bytes)):
        if asked is not None:
            total = getattr(graph.unpruned, option)
            most = min(total, round(asked * total) if asked <= 1 else round(asked))
            limits.append(Limit(option, asked, max(most, 1), total, _cost(graph, option), _unit(option)))
    for option, asked in (("latency", latency), ("latency_ms", latency_ms)):
        if asked is not None:
            if predict is None:
                raise UserError(
                    f"[plan] {option} needs the measured times of layers; give plan a `predict` made of them"
                )
            total = predict({})
            limits.append(
                Limit(option, asked, asked if option == "latency_ms" else asked * total, total, predict, "ms")
            )
    return Budget(limits)


def _unit(option: str) -> str:
    return "MACs" if option == "macs" else option


def _cost(graph: ChannelGraph, option: str) -> Callable[[Widths], float]:
    return lambda widths: float(getattr(graph.cost(widths), option))

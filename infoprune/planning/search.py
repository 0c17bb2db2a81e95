"""Found by measuring on validation data: the smallest budget for a loss, the best ranking, blocks that go."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from msgspec import Meta

from infoprune.analyses.base import Finding
from infoprune.config.ranges import Points, ProperShare, in_range
from infoprune.errors import UserError, did_you_mean

BudgetName = Literal["macs", "parameters", "bytes", "latency"]
# Whose removable blocks are tried wherever it ran, unless the recipe says otherwise.
DEPTH = ("data_processing",)
Remember = Callable[[Mapping[str, float]], None]


@dataclass(frozen=True)
class Found:
    """What a search came to.

    Attributes:
        share: the smallest budget tried that loses no more than asked for, as a share of the unpruned model's; 1 where
            none does.
        accuracy: on validation at that share, 0..1.
        tried: share -> accuracy on validation after repair, in the order of trying; NaN where it cannot be reached.
    """

    share: float
    accuracy: float
    tried: Mapping[str, float]


@in_range("[search]")
def search(
    attempt: Callable[[float], float],
    base: float,
    known: Mapping[str, float] | None = None,
    remember: Remember | None = None,
    *,
    max_loss: Points | None = None,
    budget: BudgetName = "macs",
    least: ProperShare = 0.1,
    tolerance: Annotated[float, Meta(ge=0.0001, lt=1)] = 0.02,
) -> Found:
    """Halves the range of budgets until it is as narrow as `tolerance`, measuring each.

    >>> found = search(lambda share: 0.9 if share >= 0.4 else 0.7, 0.905, max_loss=1.0, tolerance=0.05)
    >>> round(found.share, 3), found.accuracy
    (0.409, 0.9)

    Args:
        attempt: plans for a share, prunes, repairs, and gives the accuracy on validation data, 0..1; NaN for a share
            that cannot be reached.
        base: accuracy of the unpruned model there.
        known: what `attempt` gave before, by share, so that an interrupted search goes on.
        remember: told everything that was tried after each attempt.
        max_loss: most points of validation accuracy to lose; without it there is no search.
        budget: what is made small: "macs", "parameters", "bytes" or "latency".
        least: smallest share to try.
        tolerance: width of the last interval, as a share.

    Raises:
        UserError: for options out of range, or where nothing was asked for.
    """
    if max_loss is None:
        raise UserError("[search] max_loss is missing: expected points of accuracy, 0 or more, such as 1.0")
    tried = dict(known or {})

    def holds(share: float) -> bool:
        key = f"{share:.6g}"
        if key not in tried:
            tried[key] = attempt(share)
            if remember is not None:
                remember(tried)
        return 100 * (base - tried[key]) <= max_loss + 1e-9  # False for NaN

    low, high = least, 1.0
    if holds(low):
        high = low
    while high - low > tolerance:
        middle = (low + high) / 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return Found(high, tried.get(f"{high:.6g}", base), tried)


@dataclass(frozen=True)
class Chosen:
    """Which ranking is the best.

    Attributes:
        best: its name.
        tried: ranking -> accuracy on validation after repair, 0..1.
    """

    best: str
    tried: Mapping[str, float]


def choose_ranking(
    attempt: Callable[[str], float],
    known: Mapping[str, float] | None = None,
    remember: Remember | None = None,
    *,
    among: Sequence[str] = ("response_information", "l2", "l2+response_information"),
) -> Chosen:
    """Finds the ranking whose plan keeps most accuracy on validation data; of equal ones, the first.

    >>> choose_ranking({"l2": 0.71, "taylor": 0.68}.__getitem__, among=["taylor", "l2"]).best
    'l2'

    Args:
        attempt: plans by a ranking, prunes, repairs, and gives the accuracy on validation data, 0..1.
        known: what `attempt` gave before, so that an interrupted choice goes on.
        remember: told everything that was tried after each attempt.
        among: the rankings that are tried where `[plan] rank_by` is "best": an analysis that gives importance, or
            several joined by "+", which count alike.

    Raises:
        UserError: where there is nothing to try.
    """
    if not among:
        raise UserError("[choose] among is empty; name the rankings to try, such as 'l2' or 'l2+response_information'")
    tried = dict(known or {})
    for name in among:
        if name not in tried:
            tried[name] = attempt(name)
            if remember is not None:
                remember(tried)
    return Chosen(max(among, key=lambda name: tried[name]), tried)


@dataclass(frozen=True)
class Blocks:
    """Which blocks go.

    Attributes:
        removed: in the order of choosing.
        tried: blocks, joined by " + ", -> accuracy on validation without them, after repair.
    """

    removed: tuple[str, ...]
    tried: Mapping[str, float]


@in_range("[depth]")
def choose_blocks(
    findings: Sequence[Finding],
    attempt: Callable[[tuple[str, ...]], float],
    base: float,
    known: Mapping[str, float] | None = None,
    remember: Remember | None = None,
    *,
    depth_by: list[str] | None = None,
    max_loss: Points = 0.5,
    remove: Sequence[str] = (),
) -> Blocks:
    """Removes the blocks that analyses name, each confirmed on validation data after repair.

    Each is tried alone first; then the harmless ones are taken together, the most harmless first, as long as all of
    them together lose no more than asked for.

    Args:
        findings: what the analyses found.
        attempt: removes blocks, repairs, and gives the accuracy on validation data, 0..1.
        base: accuracy of the unpruned model there.
        known: what `attempt` gave before, so that an interrupted search goes on.
        remember: told everything that was tried after each attempt.
        depth_by: analyses whose removable blocks are tried; if not given, `data_processing` where it ran.
        max_loss: most points of validation accuracy that all of them together may lose.
        remove: blocks to remove without asking.

    Raises:
        UserError: for an analysis that did not run, or a loss out of range.
    """
    named = {finding.analysis: finding for finding in findings}
    for name in depth_by or ():
        if name not in named:
            raise UserError(f"[depth] depth_by names '{name}', but no such analysis ran{did_you_mean(name, named)}")
    asked = [name for name in DEPTH if name in named] if depth_by is None else depth_by
    candidates = list(dict.fromkeys(block for name in asked for block in named[name].removable if block not in remove))
    tried = dict(known or {})

    def accuracy(blocks: tuple[str, ...]) -> float:
        key = " + ".join(blocks)
        if key not in tried:
            tried[key] = attempt(blocks)
            if remember is not None:
                remember(tried)
        return tried[key]

    def harmless(blocks: tuple[str, ...]) -> bool:
        return 100 * (base - accuracy(blocks)) <= max_loss + 1e-9

    always = tuple(remove)
    alone = [block for block in candidates if harmless((*always, block))]
    chosen = always
    for block in sorted(alone, key=lambda block: -accuracy((*always, block))):
        if harmless((*chosen, block)):
            chosen = (*chosen, block)
    return Blocks(chosen, tried)

"""What `compare` measured, as tables: criteria and controls at equal budgets."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from infoprune.evaluation.metrics import Cell
from infoprune.planning.plan import Plan
from infoprune.reporting.wording import milliseconds, percent, seconds, short

STAGES = {"cut": "Cut only", "repaired": "Repaired", "finetuned": "Fine-tuned"}
CONTROLS = {
    "control.random": "random, same widths",
    "uniform.l2": "L2, uniform widths",
    "control.small_dense": "small dense, from scratch",
}
RECIPE = "recipe"
NEAR = 0.02
"""Shares of multiply-accumulates that differ by less stand for the same budget."""


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation over seeds; the deviation is 0 with one."""

    mean: float
    deviation: float
    seeds: int


@dataclass(frozen=True)
class Row:
    """One criterion at one budget.

    Attributes:
        criterion: as the recipe names it.
        share: the budget asked for, of the unpruned network's multiply-accumulates.
        macs, parameters: what is left, on the mean.
        scores: share of correct predictions per stage of `STAGES` that was measured.
        latency: milliseconds.
        seconds: what choosing took.
    """

    criterion: str
    share: float
    macs: float
    parameters: float
    scores: dict[str, Spread]
    latency: Spread
    seconds: float

    @property
    def control(self) -> bool:
        """Whether it is there to be compared with."""
        return self.criterion in CONTROLS


def rows(cells: Sequence[Cell]) -> list[Row]:
    """One row per criterion and budget, means over seeds, in the order of the cells."""
    groups: dict[tuple[float, str], list[Cell]] = {}
    for cell in cells:
        groups.setdefault((cell.share, cell.criterion), []).append(cell)
    found = []
    for (share, criterion), own in groups.items():
        scores = {stage: [getattr(cell, stage) for cell in own if getattr(cell, stage) is not None] for stage in STAGES}
        found.append(
            Row(
                criterion,
                share,
                statistics.fmean(cell.macs for cell in own),
                statistics.fmean(cell.parameters for cell in own),
                {stage: spread(values) for stage, values in scores.items() if values},
                spread([cell.latency_ms for cell in own]),
                statistics.fmean(cell.seconds for cell in own),
            )
        )
    return found


def spread(values: Sequence[float]) -> Spread:
    """Mean and standard deviation of a sample.

    >>> spread([1.0, 3.0])
    Spread(mean=2.0, deviation=1.4142135623730951, seeds=2)
    """
    return Spread(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0, len(values))


def stages(found: Sequence[Row]) -> list[str]:
    """The stages that any row has, in their order."""
    return [stage for stage in STAGES if any(stage in row.scores for row in found)]


def controls(found: Sequence[Row], plan: Plan) -> tuple[list[Row], float]:
    """The recipe's own ranking and the controls at the budget nearest to the plan's, and that budget; or nothing."""
    kept = plan.macs_after / plan.macs_before if plan.macs_before else 1.0
    asked = [row for row in found if row.control]
    if not asked:
        return [], kept
    nearest = min((row.share for row in asked), key=lambda share: abs(share - kept))
    return [row for row in found if row.share == nearest and (row.control or row.criterion == RECIPE)], nearest


def table(found: Sequence[Row], whole: int) -> tuple[list[str], list[tuple[str, list[list[str]]]]]:
    """Headings, and per budget its rows of text.

    Args:
        found: from `rows`.
        whole: multiply-accumulates of the unpruned network.
    """
    known = stages(found)
    columns: list[tuple[str, Callable[[Row], str]]] = [
        *((STAGES[stage], lambda row, stage=stage: accuracy(row.scores.get(stage))) for stage in known),
        ("Latency", lambda row: milliseconds(row.latency.mean)),
        ("Cost", lambda row: seconds(row.seconds)),
        ("MACs", lambda row: f"{whole / row.macs:.2f}× fewer" if row.macs else "0"),
        ("Parameters", lambda row: short(row.parameters)),
    ]
    parts = []
    for share in dict.fromkeys(row.share for row in found):
        own = [row for row in found if row.share == share]
        parts.append((percent(share), [[name(row.criterion), *(cell(row) for _, cell in columns)] for row in own]))
    return [heading for heading, _ in columns], parts


def accuracy(score: Spread | None) -> str:
    """In percent, with its deviation where seeds make a difference.

    >>> accuracy(Spread(0.5, 0.01, 3)), accuracy(Spread(0.5, 0.0, 3)), accuracy(None)
    ('50.0 ± 1.0', '50.0', '')
    """
    if score is None:
        return ""
    return f"{100 * score.mean:.1f}" + (f" ± {100 * score.deviation:.1f}" if score.deviation else "")


def name(criterion: str) -> str:
    """A criterion in words.

    >>> name("torch_pruning.l2"), name("uniform.taylor"), name("recipe")
    ('l2 of torch-pruning', 'taylor, uniform widths', 'this recipe')
    """
    if criterion == RECIPE:
        return "this recipe"
    if criterion in CONTROLS:
        return CONTROLS[criterion]
    head, _, rest = criterion.partition(".")
    if head == "uniform":
        return f"{rest.replace('_', ' ')}, uniform widths"
    return f"{rest} of torch-pruning" if head == "torch_pruning" else criterion.replace("_", " ")

"""Numbers and sentences of the report."""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from infoprune.evaluation.metrics import StageMetrics, Verification
from infoprune.planning.plan import Plan
from infoprune.reporting.vocabulary import STAGES


@dataclass(frozen=True)
class Cell:
    """One figure of one stage.

    Attributes:
        text: the figure with its unit.
        change: its change from the base; empty for the base itself.
        tone: how the change is to be read, "good", "bad" or "".
        detail: what else belongs to the figure.
    """

    text: str
    change: str = ""
    tone: str = ""
    detail: str = ""


def short(number: float) -> str:
    """A count with three significant digits.

    >>> short(999), short(13_140_000), short(4.09e9)
    ('999', '13.1 M', '4.09 G')
    """
    for unit, factor in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= factor * 0.9995:
            return f"{_three(number / factor)} {unit}"
    return f"{number:g}"


def size(number: float) -> str:
    """Bytes in decimal units.

    >>> size(512), size(1_234_567)
    ('512 B', '1.23 MB')
    """
    text = short(number)
    return f"{text}B" if " " in text else f"{text} B"


def percent(share: float, digits: int = 1) -> str:
    """A share 0..1 as a percentage.

    >>> percent(0.5004)
    '50.0 %'
    """
    return f"{100 * share:.{digits}f} %"


def milliseconds(number: float) -> str:
    """A time with three significant digits.

    >>> milliseconds(0.1234), milliseconds(12.34)
    ('0.123 ms', '12.3 ms')
    """
    return f"{number:.3f} ms" if number < 1 else f"{_three(number)} ms"


def seconds(number: float) -> str:
    """A duration.

    >>> seconds(0.004), seconds(12.34), seconds(754.0)
    ('0.00 s', '12.3 s', '12 min 34 s')
    """
    return f"{_three(number)} s" if number < 120 else f"{int(number) // 60} min {int(number) % 60} s"


def _three(number: float) -> str:
    digits = 2 if number < 9.995 else 1 if number < 99.95 else 0
    return f"{number:.{digits}f}"


def scientific(number: float) -> str:
    """A very small or large number, as in print.

    >>> scientific(1.26e-7), scientific(0.0)
    ('1.3×10⁻⁷', '0')
    """
    if not number:
        return "0"
    mantissa, exponent = f"{number:.1e}".split("e")
    return f"{mantissa}×10{str(int(exponent)).translate(str.maketrans('-0123456789', '⁻⁰¹²³⁴⁵⁶⁷⁸⁹'))}"


def signed(number: float, digits: int) -> str:
    """A difference with its sign; a typographic minus, and no sign at zero.

    >>> signed(-1.25, 1), signed(0.5, 1), signed(-0.01, 1)
    ('−1.2', '+0.5', '±0.0')
    """
    text = f"{abs(number):.{digits}f}"
    return ("±" if float(text) == 0 else "−" if number < 0 else "+") + text


def stage_rows(metrics: Mapping[str, StageMetrics]) -> list[tuple[str, str, list[Cell]]]:
    """Rows of the stage table: a name, how it is measured, and one cell per stage in the order of `STAGES`."""
    if not metrics:
        return []
    any_stage = next(iter(metrics.values()))
    latency = any_stage.latency_ms
    threads = f", {latency.threads} thread{'s' * (latency.threads != 1)}" if latency.device == "cpu" else ""
    machine = f"one forward pass, batch {latency.batch}, {latency.device}{threads}"
    spread = [f"± {metrics[stage].latency_ms.iqr / 2:.2g}" for stage in STAGES if stage in metrics]
    return [
        ("Accuracy", "share of correct predictions, test split", _cells(metrics, _accuracy)),
        ("Loss", "mean cross-entropy in nats, test split", _cells(metrics, _loss)),
        ("MACs", "multiply-accumulates per sample", _cells(metrics, _macs)),
        ("Parameters", "without buffers", _cells(metrics, _parameters)),
        ("File", "weights on disk", _cells(metrics, _bytes)),
        (
            "Latency",
            machine,
            [replace(cell, detail=each) for cell, each in zip(_cells(metrics, _latency), spread, strict=True)],
        ),
    ]


Figure = Callable[[StageMetrics], tuple[float, str]]


def _accuracy(row: StageMetrics) -> tuple[float, str]:
    return row.accuracy, percent(row.accuracy, 2)


def _loss(row: StageMetrics) -> tuple[float, str]:
    return row.loss, f"{row.loss:.3f}"


def _macs(row: StageMetrics) -> tuple[float, str]:
    return row.macs, short(row.macs)


def _parameters(row: StageMetrics) -> tuple[float, str]:
    return row.parameters, short(row.parameters)


def _bytes(row: StageMetrics) -> tuple[float, str]:
    return row.bytes, size(row.bytes)


def _latency(row: StageMetrics) -> tuple[float, str]:
    return row.latency_ms.median, milliseconds(row.latency_ms.median)


def _cells(metrics: Mapping[str, StageMetrics], figure: Figure) -> list[Cell]:
    """One row of the table; without a base there are no changes."""
    base = figure(metrics["base"])[0] if "base" in metrics else math.nan
    cells = []
    for stage in STAGES:
        if stage in metrics:
            value, text = figure(metrics[stage])
            change, tone = ("", "") if stage == "base" or math.isnan(base) else _change(figure, base, value)
            cells.append(Cell(text, change, tone))
    return cells


def _change(figure: Figure, base: float, value: float) -> tuple[str, str]:
    """Accuracy changes in percentage points, loss in nats, costs relative to the base."""
    if figure is _accuracy:
        points = 100 * (value - base)
        return f"{signed(points, 2)} pt", "bad" if points < -1 else "good" if points >= 0 else ""
    if figure is _loss:
        return signed(value - base, 3), ""
    change = 100 * (value / base - 1) if base else 0.0
    return f"{signed(change, 1)} %", "good" if change < -0.05 else ""


def decision(plan: Plan, metrics: Mapping[str, StageMetrics], verification: Verification | None) -> list[str]:
    """The paragraph that the page opens with, one sentence each."""
    cut = [group for group in plan.groups if group.width_after < group.width_before]
    before = sum(group.width_before for group in plan.groups)
    removed = sum(group.width_before - group.width_after for group in cut)
    if not cut:
        sentences = ["Nothing was removed: every channel group keeps its width."]
    else:
        saved = 1 - plan.macs_after / plan.macs_before
        sentences = [
            f"{removed:,} of {before:,} channels go, from {len(cut)} of {len(plan.groups) + len(plan.refused)} "
            f"channel groups, and with them {percent(saved)} of the multiply-accumulates "
            f"({short(plan.macs_before)} to {short(plan.macs_after)} per sample)."
        ]
    if plan.removed:
        one = len(plan.removed) == 1
        what = "One block passes" if one else f"{len(plan.removed)} blocks pass"
        sentences.append(f"{what} on what {'it reads' if one else 'they read'}: {', '.join(plan.removed)}.")
    sentences += _outcome(metrics)
    if verification is not None:
        sentences.append(
            "The pruned network puts out what the original does with the same channels zeroed, to within "
            f"{scientific(verification.max_rel_difference)} of the largest output ({verification.dtype})."
        )
    if plan.refused:
        sentences.append(
            "One channel group could not be cut."
            if len(plan.refused) == 1
            else f"{len(plan.refused)} channel groups could not be cut."
        )
    # A figure and its unit stay on one line.
    return [re.sub(r"(\d) (?=%|[kMG]B?\b|B\b)", "\\1\u00a0", sentence) for sentence in sentences]


def _outcome(metrics: Mapping[str, StageMetrics]) -> list[str]:
    """What became of accuracy and latency, at the last stage measured."""
    last = [stage for stage in STAGES if stage in metrics and stage != "base"]
    if "base" not in metrics or not last:
        return []
    base, end = metrics["base"], metrics[last[-1]]
    points = 100 * (end.accuracy - base.accuracy)
    against = (
        "as before"
        if round(points, 2) == 0
        else f"{abs(points):.2f} points {'under' if points < 0 else 'over'} the base"
    )
    speed = base.latency_ms.median / end.latency_ms.median if end.latency_ms.median else 1.0
    pace = f"{speed:.2f} times as fast" if speed >= 1 else f"slower by {percent(1 / speed - 1, 0)}"
    return [
        f"{STAGES[last[-1]]}, it has {percent(end.accuracy, 2)} of the test split right, {against} "
        f"({percent(base.accuracy, 2)}); one forward pass is {pace}, and the file takes {size(end.bytes)} "
        f"in place of {size(base.bytes)}."
    ]

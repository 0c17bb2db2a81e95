"""What a run leaves, as tables for a terminal."""

from typing import TYPE_CHECKING

from rich import box
from rich.table import Table

if TYPE_CHECKING:
    from infoprune.artifacts import StageMetrics
    from infoprune.pipeline import Run


def stage_table(metrics: "dict[str, StageMetrics]") -> Table:
    """One row per stage, relative to the first."""
    table = Table("", "accuracy", "parameters", "MACs", "file", "latency", box=box.SIMPLE)
    first = next(iter(metrics.values()))
    for column in table.columns:
        column.no_wrap = True
        column.justify = "right" if column.header else "left"
    for stage, row in metrics.items():
        time = row.latency_ms
        table.add_row(
            stage,
            f"{row.accuracy:.2%}",
            f"{_short(row.parameters)} {row.parameters / first.parameters:.0%}",
            f"{_short(row.macs)} {row.macs / first.macs:.1%}",
            f"{_short(row.bytes)}B",
            _time(time.median, time.iqr / 2),
        )
    time = first.latency_ms
    table.caption = (
        f"test split; MACs per sample; latency of one forward pass: median ± half the IQR, batch {time.batch}, "
        f"{time.device}, {time.threads} threads"
    )
    return table


def _time(median: float, half: float) -> str:
    """As many decimals as leave three digits or so.

    >>> _time(0.8217, 0.021), _time(304.14, 55.5)
    ('0.82 ± 0.02 ms', '304 ± 56 ms')
    """
    decimals = 2 if median < 10 else 1 if median < 100 else 0
    return f"{median:.{decimals}f} ± {half:.{decimals}f} ms"


def _short(number: float) -> str:
    """Three digits and a unit, so that the table fits a terminal of 80 columns.

    >>> _short(3287116), _short(712)
    ('3.29 M', '712 ')
    """
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number:.0f} "


def plan_table(job: "Run") -> Table:
    """One row per channel group."""
    table = Table("group", "width", "MACs of its layers", "why")
    for group in job.planned.groups:
        table.add_row(
            group.group,
            f"{group.width_before} → {group.width_after}",
            f"{group.macs_before:,} → {group.macs_after:,}",
            group.reason,
        )
    for name, reason in job.planned.refused.items():
        table.add_row(name, "whole", "", reason)
    table.caption = "; ".join(job.planned.notes)
    return table

"""Figures of the report as SVG text that takes its colours and fonts from the page."""

import math
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import StringIO
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from infoprune.artifacts import EpochRecord, Finding, Plan

if TYPE_CHECKING:
    from markupsafe import Markup
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Drawn in these, replaced by the page's variables, so that one figure serves light, dark and print.
INK, FAINT, OLD, NEW, MARK = "#010101", "#020202", "#030303", "#040404", "#050505"
PAGE_COLOURS = {INK: "var(--ink)", FAINT: "var(--line)", OLD: "var(--old)", NEW: "var(--new)", MARK: "var(--mark)"}

STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "infoprune",
    "text.parse_math": False,  # a layer may have dollar signs in its name
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
}
WIDTH = 7.5  # inches; drawn text is then as large as the page's small print

# Up to this many, layers go by their names; beyond, by the numbers of the table beside.
NAMED = 16


@contextmanager
def _style() -> Iterator[None]:
    """Our settings over matplotlib's defaults, not over the user's configuration file; gone afterwards."""
    import matplotlib

    with matplotlib.rc_context(), warnings.catch_warnings():
        # Layers may be named in any script; the browser has the letters that matplotlib's font lacks.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        yield


@_style()
def widths(plan: Plan) -> "Markup | None":
    """Channels of every group before and after, in the order of the forward pass, and the share that stays."""
    if not plan.groups:
        return None
    figure, (top, bottom) = _axes(2, height=4.2, ratios=[2, 1])
    at = range(1, len(plan.groups) + 1)
    before = [group.width_before for group in plan.groups]
    after = [group.width_after for group in plan.groups]
    top.bar(at, before, width=0.86, color=OLD, label="before")
    top.bar(at, after, width=0.5, color=NEW, label="after")
    top.set_ylabel("channels")
    _legend(top)
    kept = [100 * new / old for old, new in zip(before, after, strict=True)]
    bottom.vlines(at, 0, kept, color=FAINT, linewidth=1)
    bottom.plot(at, kept, "o", color=NEW, markersize=5 if len(kept) < 60 else 3)
    bottom.set(ylabel="kept, %", ylim=(0, 108), yticks=[0, 50, 100])
    _label(bottom, [group.group for group in plan.groups], "channel group")
    return _svg(figure, "Channels of every group before and after pruning")


@_style()
def finding_figures(finding: Finding) -> "list[tuple[str, Markup]]":
    """The figures of one analysis, each with its caption."""
    figures = []
    if finding.importance:
        caption = (
            "Importance of the filters, layer by layer: line from the 5th to the 95th percentile, bar over the middle "
            "half, dot at the median. The larger, the more reason to keep a filter."
        )
        figures.append((caption, _spread(finding.importance, "importance", finding.analysis)))
    names = dict.fromkeys(name for measures in finding.measures.values() for name in measures)
    for name in names:
        found = {layer: measures[name] for layer, measures in finding.measures.items() if name in measures}
        unit = next(iter(found.values())).unit
        if any(measure.value.dim() for measure in found.values()):
            caption = f"{name} in {unit}, over the filters of each layer: percentiles as above."
            figures.append(
                (caption, _spread({k: m.value for k, m in found.items()}, unit, f"{finding.analysis} {name}"))
            )
            continue
        intervals = all(measure.low is not None for measure in found.values())
        caption = f"{name} in {unit}, layer by layer" + (
            "; bars are 95 % intervals over mini-batches." if intervals else "."
        )
        values = {k: [v for v in (m.value, m.low, m.high) if v is not None] for k, m in found.items()}
        spread = {k: torch.stack([v.flatten()[0] for v in each]) for k, each in values.items()}
        figures.append((caption, _intervals(spread, unit, f"{finding.analysis} {name}")))
    return figures


@_style()
def curves(history: Sequence[EpochRecord]) -> "Markup | None":
    """Loss and accuracy over the epochs of fine-tuning."""
    from matplotlib.ticker import MaxNLocator

    if not history:
        return None
    figure, (left, right) = _axes(1, 2, height=2.9)
    epochs = [record.epoch for record in history]
    for axes, kind, factor in ((left, "loss", 1), (right, "accuracy", 100)):
        for split, colour, line in (("train", OLD, "s--"), ("validation", NEW, "o-")):
            values = [factor * getattr(record, f"{split}_{kind}") for record in history]
            if any(math.isfinite(value) for value in values):
                axes.plot(epochs, values, line, color=colour, label=split, markersize=4 if len(epochs) < 40 else 0)
        axes.set(xlabel="epoch", ylabel="loss, nats" if kind == "loss" else "accuracy, %")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        _legend(axes)
    return _svg(figure, "Loss and accuracy over the epochs of fine-tuning")


def _spread(values: Mapping[str, Tensor], label: str, title: str) -> "Markup":
    """One column per layer: percentiles of its filters' values; values that are not finite are left out."""
    figure, (axes,) = _axes(1, height=2.9)
    points = torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95], dtype=torch.float64)
    thick = 7 if len(values) <= 30 else 3
    for at, each in enumerate(values.values(), start=1):
        finite = each.detach().double().flatten().cpu()
        finite = finite[finite.isfinite()]
        if len(finite):
            low, lower, middle, upper, high = torch.quantile(finite, points).tolist()
            axes.vlines(at, low, high, color=OLD, linewidth=max(1, thick / 4))
            axes.vlines(at, lower, upper, color=NEW, linewidth=thick)
            axes.plot(at, middle, "o", color=MARK, markersize=max(2.5, thick * 0.6))
    axes.set_ylabel(label)
    _label(axes, list(values), "layer")
    return _svg(figure, f"{title}: {label} per layer")


def _intervals(values: dict[str, Tensor], label: str, title: str) -> "Markup":
    """One point per layer, with its interval where there is one."""
    figure, (axes,) = _axes(1, height=2.9)
    for at, each in enumerate(values.values(), start=1):
        if len(each) == 3:
            axes.vlines(at, float(each[1]), float(each[2]), color=OLD, linewidth=2.5)
    axes.plot(range(1, len(values) + 1), [float(each[0]) for each in values.values()], "o-", color=NEW, markersize=4)
    axes.set_ylabel(label)
    _label(axes, list(values), "layer")
    return _svg(figure, f"{title}: {label} per layer")


def _axes(
    rows: int, columns: int = 1, *, height: float, ratios: "list[int] | None" = None
) -> "tuple[Figure, list[Axes]]":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, sharex="col", height_ratios=ratios)
    return figure, list(axes.flat)


def _label(axes: "Axes", names: list[str], what: str) -> None:
    """Names along the axis as long as they fit, numbers beyond."""
    from matplotlib.ticker import MaxNLocator

    axes.set_xlim(0.3, len(names) + 0.7)
    if len(names) > NAMED:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel(f"{what}, numbered in the order of the forward pass")
        return
    axes.set_xticks(range(1, len(names) + 1), names)
    if sum(map(len, names)) > 80:  # beyond what fits side by side
        for label in axes.get_xticklabels():
            label.set(rotation=35, ha="right", rotation_mode="anchor")


def _legend(axes: "Axes") -> None:
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, borderaxespad=0, labelcolor=INK, frameon=False)


def _svg(figure: "Figure", title: str) -> "Markup":
    """The figure as an element of the page: no date, names of its own, the page's colours and fonts."""
    from markupsafe import Markup, escape

    text = StringIO()
    figure.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    prefix = re.sub(r"\W+", "-", title).lower()
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{prefix}-", svg)
    svg = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", svg)
    for colour, variable in PAGE_COLOURS.items():
        svg = svg.replace(colour, variable)
    return Markup(svg.replace("<svg ", f'<svg role="img" aria-label="{escape(title)}" ', 1))

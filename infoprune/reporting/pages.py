"""From what a report is made of to the text of its page."""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from infoprune import __version__
from infoprune.analyses.base import Finding, Flag, Measure
from infoprune.reporting import figures, grids, wording
from infoprune.reporting.canvas import NARROW_LAYERS, Drawing
from infoprune.reporting.contents import ReportContents
from infoprune.reporting.figures import comparison, informational, network
from infoprune.reporting.vocabulary import FLAG_MEANINGS, STAGES, analysis

if TYPE_CHECKING:
    from markupsafe import Markup


@dataclass(frozen=True)
class Section:
    """One analysis on the page."""

    name: str
    meaning: str
    drawings: list[Drawing]
    numbered: list[str]
    facts: list[tuple[str, str]]
    flags: dict[str, list[Flag]]
    widths: Mapping[str, int]
    removable: Sequence[str]


@dataclass(frozen=True)
class Controls:
    """The controls at the budget nearest to the run's."""

    share: str = ""
    own: str = ""
    away: bool = False
    epochs_apart: bool = False
    stages: list[str] = field(default_factory=list)
    rows: list[tuple[str, bool, list[str]]] = field(default_factory=list)


def single(contents: ReportContents) -> str:
    """The page of one run."""
    kept, full = contents.kept_filters(), {layer.layer: layer.before for layer in contents.layers}
    sections = [_section(finding, kept, full) for finding in contents.findings]
    found = grids.rows(contents.cells)
    columns, parts = grids.table(found, contents.plan.macs_before)
    compared = {
        "columns": columns,
        "parts": parts,
        "drawings": comparison.against(found, contents.plan.macs_before, contents.metrics.get("base")),
    }
    return _environment().get_template("page.html.jinja").render(
        contents=contents,
        plan=contents.plan,
        decision=wording.decision(contents.plan, contents.metrics, contents.verification),
        stages=[STAGES[stage] for stage in STAGES if stage in contents.metrics],
        rows=wording.stage_rows(contents.metrics),
        controls=_controls(contents, found),
        notes=list(dict.fromkeys([*contents.plan.notes, *contents.notes])),
        silhouette=_silhouette(contents),
        findings=sections,
        flags=_flags(sections),
        flag_meanings=FLAG_MEANINGS,
        comparison=compared if found else None,
        curves=_narrow(network.curves([(contents.title, contents.history)])),
        planes=_narrow(informational.planes(contents.planes)),
    )  # fmt: skip


def side_by_side(runs: Sequence[ReportContents]) -> str:
    """The page of several runs."""
    titles = _titles(runs)
    last = [[stage for stage in STAGES if stage in run.metrics][-1:] for run in runs]
    headings = [f"{title}: {STAGES[stage[0]]}" for title, stage in zip(titles, last, strict=True) if stage]
    shown = [
        {
            "title": title,
            "decision": wording.decision(run.plan, run.metrics, run.verification),
            "stages": [STAGES[stage] for stage in STAGES if stage in run.metrics],
            "rows": wording.stage_rows(run.metrics),
            "silhouette": _silhouette(run, title),
            "notes": list(dict.fromkeys([*run.plan.notes, *run.notes])),
        }
        for title, run in zip(titles, runs, strict=True)
    ]
    histories = [(title, run.history) for title, run in zip(titles, runs, strict=True) if run.history]
    names = dict.fromkeys(name for run in runs for name in run.versions)
    return _environment().get_template("pair.html.jinja").render(
        runs=shown,
        headings=headings,
        rows=_last_stages([(run, stage[0]) for run, stage in zip(runs, last, strict=True) if stage]),
        kept=_kept(runs, titles),
        groups=_groups(runs),
        curves=_narrow(network.curves(histories)),
        recipes=_recipes(titles, runs),
        versions=[(name, [run.versions.get(name, "–") for run in runs]) for name in names],
    )  # fmt: skip


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["version"] = __version__
    environment.filters |= {"by_fold": _by_fold, "short": wording.short, "duration": wording.seconds}
    return environment


def _by_fold(drawings: Iterable[Drawing]) -> list[tuple[str, list[tuple[Drawing, str]]]]:
    """Runs of drawings that are seen or folded together, each with its class on the page."""
    return [(folded, _placed(list(own))) for folded, own in groupby(drawings, key=lambda drawing: drawing.folded)]


def _placed(drawings: Sequence[Drawing]) -> list[tuple[Drawing, str]]:
    """Narrow ones stand two in a row; one that is left alone has its caption beside it."""
    found: list[tuple[Drawing, str]] = []
    for narrow, own in groupby(drawings, key=lambda drawing: drawing.narrow):
        run = list(own)
        classes = ["narrow" if narrow else "wide"] * len(run)
        if narrow and len(run) % 2:
            classes[-1] = "lone"
        found += zip(run, classes, strict=True)
    return found


def _section(finding: Finding, kept: Mapping[str, Sequence[int]], full: Mapping[str, int]) -> Section:
    flags: dict[str, list[Flag]] = {}
    for flag in finding.flags:
        flags.setdefault(flag.kind, []).append(flag)
    return Section(
        *analysis(finding.analysis),
        figures.of_finding(finding, kept, full),
        figures.numbered(finding, full),
        [(name, _told(measure)) for own in figures.facts(finding).values() for name, measure in own.items()],
        flags,
        finding.widths,
        finding.removable,
    )


def _told(measure: Measure) -> str:
    return f"{float(measure.value):.4g} {measure.unit}"


def _flags(sections: Sequence[Section]) -> dict[str, list[tuple[int, str, int]]]:
    """Per kind of flag, the analyses that raise it, by their place on the page."""
    found: dict[str, list[tuple[int, str, int]]] = {}
    for index, section in enumerate(sections, start=1):
        for kind, flags in section.flags.items():
            found.setdefault(kind, []).append((index, section.name, len(flags)))
    return found


def _silhouette(contents: ReportContents, title: str = "") -> Drawing | None:
    drawn = network.silhouette(contents.layers, title)
    caption = (
        "Above, every convolution and linear layer from the input on the left to the output on the right, as high as "
        "it has filters, before and after. Below, its share of the multiply-accumulates."
    )
    return None if drawn is None else Drawing(caption, drawn, narrow=len(contents.layers) <= NARROW_LAYERS)


def _kept(runs: Sequence[ReportContents], titles: Sequence[str]) -> Drawing | None:
    drawn = network.kept([(title, run.plan) for title, run in zip(titles, runs, strict=True)])
    caption = "The share of channels that stays in every group, in the order of the forward pass."
    return None if drawn is None else Drawing(caption, drawn)


def _narrow(drawn: "Iterable[Markup]") -> list[Drawing]:
    return [Drawing("", each, narrow=True) for each in drawn]


def _controls(contents: ReportContents, found: Sequence[grids.Row]) -> Controls:
    """What stands beside the run at the top of the page."""
    rows, share = grids.controls(found, contents.plan)
    if not rows:
        return Controls()
    kept = contents.plan.macs_after / contents.plan.macs_before
    known = grids.stages(rows)
    return Controls(
        wording.percent(share),
        wording.percent(kept),
        abs(share - kept) > grids.NEAR,
        "finetuned" in known,
        [grids.STAGES[stage] for stage in known],
        [
            (grids.name(row.criterion), row.control, [grids.accuracy(row.scores.get(stage)) for stage in known])
            for row in rows
        ],
    )


def _titles(runs: Sequence[ReportContents]) -> list[str]:
    """Names that tell the runs apart."""
    titles = [run.title for run in runs]
    return [f"{title} ({i})" if titles.count(title) > 1 else title for i, title in enumerate(titles, start=1)]


def _last_stages(
    measured: Sequence[tuple[ReportContents, str]],
) -> list[tuple[str, str, list[wording.Cell]]]:
    """Rows of the stage table with the last stage of each run as columns."""
    tables = [wording.stage_rows(run.metrics) for run, _ in measured]
    places = [[stage for stage in STAGES if stage in run.metrics].index(last) for run, last in measured]
    return [
        (name, how, [table[row][2][place] for table, place in zip(tables, places, strict=True)])
        for row, (name, how, _) in enumerate(tables[0] if tables else [])
    ]


def _groups(runs: Sequence[ReportContents]) -> list[tuple[str, int, list[int | None], str]]:
    """Per group: its width, its width in each plan, and how many channels all keep."""
    plans = [{group.group: group for group in run.plan.groups} for run in runs]
    found = []
    for name in dict.fromkeys(name for plan in plans for name in plan):
        own = [plan.get(name) for plan in plans]
        known = [group for group in own if group is not None]
        shared = set.intersection(*(set(group.kept) for group in known))
        text = str(len(shared)) if len(known) == len(own) else "–"
        found.append(
            (name, known[0].width_before, [None if group is None else group.width_after for group in own], text)
        )
    return found


def _recipes(titles: Sequence[str], runs: Sequence[ReportContents]) -> list[tuple[str, list[tuple[str, str]]]]:
    """The first recipe whole, the others as what is gone from it and what is new."""
    first = runs[0].recipe_text
    found: list[tuple[str, list[tuple[str, str]]]] = [(titles[0], [("", line) for line in first.splitlines()])]
    for title, run in zip(titles[1:], runs[1:], strict=True):
        lines = list(
            difflib.unified_diff(first.splitlines(), run.recipe_text.splitlines(), titles[0], title, lineterm="", n=2)
        )
        kinds = {"-": "gone", "+": "new"}
        found.append((title, [(kinds.get(line[:1], ""), line) for line in lines]))
    return found

"""Results as text, as rich tables and as HTML: complete, and nothing that a user named can be more than text."""

import html
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from io import StringIO
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from rich.console import Console

import infoprune
from infoprune.analyses.base import Finding, Flag, Measure
from infoprune.evaluation.metrics import Latency, Metrics, StageMetrics
from infoprune.exporting.results import ExportResult, Exports
from infoprune.io import encoding
from infoprune.planning.plan import GroupPlan, Plan
from infoprune.utils import notebook
from infoprune.utils.tables import Table, Tabular

EVIL = "<script>alert(1)</script>[bold]&amp;"


def plan(name: str) -> Plan:
    groups = (GroupPlan(name, (0, 2), 4, 2, 1000, 250, name),)
    return Plan(groups, {f"{name}2": name}, 2000, 1250, (3, 8, 8), notes=(name,), removed=(name,))


def finding(name: str) -> Finding:
    return Finding(
        name,
        importance={name: torch.tensor([1.0, 2.0, 9.0])},
        widths={name: 2},
        removable=(name,),
        measures={
            name: {
                name: Measure(torch.tensor(0.5), torch.tensor(0.25), torch.tensor(0.75), name),
                "per filter": Measure(torch.tensor([1.0, float("nan"), 3.0])),
            }
        },
        flags=(Flag(name, "saturated", name),),
    )


def stage(accuracy: float, macs: int) -> StageMetrics:
    return StageMetrics(accuracy, 0.1, 1_500_000, macs, 6_000_000, Latency(12.34, 1.0, 8, "cpu", 2))


def exported(name: str) -> ExportResult:
    return ExportResult("state_dict", "float16", Path(f"export/{name}"), 712, 0.1, 0.0123, (4,), 0.875)


SHOWN: dict[str, Callable[[str], Tabular]] = {
    "plan": plan,
    "finding": finding,
    "metrics": lambda name: Metrics({name: stage(0.93, 2000), f"{name}2": stage(0.9, 1000)}),
    "stage": lambda name: stage(0.93, 2000),
    "export": lambda name: exported(name.replace("/", "")),
    "exports": lambda name: Exports([exported(name.replace("/", "")), exported("other")]),
}


class Cells(HTMLParser):
    """The tags of a page, and the text of its cells."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.cells: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.add(tag)
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_data(self, data: str) -> None:
        if self.cells:
            self.cells[-1] += data


def rich_text(shown: Any) -> str:
    out = StringIO()
    Console(file=out, width=300).print(shown)
    return out.getvalue()


@pytest.mark.parametrize("kind", SHOWN)
def test_names_are_text_in_every_form(kind: str) -> None:
    shown = SHOWN[kind](EVIL)
    page = Cells()
    page.feed(shown._repr_html_())
    assert page.tags <= {"table", "caption", "thead", "tbody", "tr", "th", "td", "p"}
    table = shown.table()
    cells = [cell for row in (table.columns, *table.rows) for cell in row]
    assert "".join(page.cells).startswith("".join(cells))
    drawn = rich_text(shown)
    for row in table.rows:
        assert all(cell in drawn for cell in row)  # brackets are no markup
        assert all(cell in str(shown) for cell in row)
    printed: list[str] = []
    shown._repr_pretty_(type("Printer", (), {"text": printed.append}), False)
    assert printed == [str(shown)]


def test_a_plan_says_what_stays_and_what_cannot_be_cut() -> None:
    lines = str(plan("conv")).splitlines()
    assert lines[0] == "Plan: 2,000 → 1,250 multiply-accumulates per sample (62.5%)"
    assert lines[1].split() == ["group", "channels", "MACs", "of", "its", "layers", "why"]
    assert lines[4:] == ["removed blocks: conv", "conv"]
    rows = plan("conv").table().rows
    assert rows == [("conv", "4 → 2", "1,000 → 250", "conv"), ("conv2", "whole", "", "conv")]
    assert repr(plan("conv")).startswith("Plan(groups=")


def test_a_finding_shows_intervals_medians_widths_and_flags() -> None:
    table = finding("a").table()
    assert table.columns == ("layer", "importance", "width", "a, a", "per filter, bits", "flag")
    assert table.rows == [("a", "2", "2", "0.5 [0.25, 0.75]", "2", "saturated: a")]
    assert "would remove a" in table.notes
    assert Finding("nothing").table().rows == []
    assert "<table>" in Finding("nothing")._repr_html_()


def test_stages_are_shares_of_the_first() -> None:
    (first, second) = Metrics({"base": stage(0.93, 2000), "pruned": stage(0.9, 1000)}).table().rows
    assert first == ("base", "93.00%", "1.5 M 100%", "2 k 100.0%", "6 MB", "12.3 ± 0.5 ms")
    assert second[3] == "1 k 50.0%"
    assert str(Metrics()).startswith("Nothing measured")
    # Still what they are made of: JSON and dictionaries take them as such.
    assert encoding.to_json(Metrics({"base": stage(0.5, 10)}))["base"]["macs"] == 10
    assert encoding.from_json(encoding.to_json(exported("a")), ExportResult, "x") == exported("a")


def test_numbers_stand_to_the_right() -> None:
    table = Table("", ("name", "count", "empty"), (("a", "10", ""), ("b", "9", "")))
    assert str(table).splitlines() == ["", "name  count  empty", "a        10", "b         9"]
    assert table._repr_html_().count("text-align: right") == 3


def test_a_finding_is_plotted_by_the_reports_own_figures(tmp_path: Path) -> None:
    figures = finding("conv <b>").plot()
    page = figures._repr_html_()
    assert len(figures) >= 2
    assert page.count("<svg ") == page.count("<figcaption>") == len(figures)
    assert "<b>" not in page
    assert ".infoprune-figures {" in page
    assert ":root" not in page
    for drawing in figures.drawings:
        assert html.escape(drawing.caption) in page
    assert page in figures.save(tmp_path / "page.html").read_text(encoding="utf-8")
    assert infoprune.plot(plan("conv"))._repr_html_().count("<svg ") == 1
    assert len(infoprune.plot(Plan((), {}, 0, 0, ()))) == 0


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What a notebook's output holds, writing by writing; IPython is none of our dependencies."""
    writings: list[str] = []

    class Output:
        def update(self, page: str) -> None:
            writings.append(page)

    display = ModuleType("IPython.display")
    display.HTML = str  # type: ignore[attr-defined]
    display.display = lambda page, display_id: Output()  # type: ignore[attr-defined]
    ipython = ModuleType("IPython")
    ipython.display = display  # type: ignore[attr-defined]
    ipython.get_ipython = lambda: type("Shell", (), {"kernel": object()})()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    return writings


def test_bars_show_steps_and_the_time_left(written: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([0.0, 100.0, 100.0, 110.0, 110.0, 110.1, 150.0, 150.0, 160.0])
    monkeypatch.setattr("time.monotonic", lambda: next(now))
    bars = notebook.Bars()
    bars.step("<analyze>", "up to date")
    bars.advance("finetune", 0, 60)
    bars.advance("finetune", 10, 60)
    bars.advance("finetune", 11, 60)  # too soon after the last
    bars.of("finetune")(60, 60)
    assert len(written) == 4
    assert "✓ &lt;analyze&gt; (up to date)" in written[0]
    assert "finetune 10 of 60, 0:50 left" in written[2]
    assert '<progress value="10" max="60">' in written[2]
    assert "finetune 60 of 60, 0:00 left" in written[3]


def test_a_run_draws_bars_in_a_notebook_alone(written: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(notebook.bars_in_notebook(), notebook.Bars)
    sys.modules["IPython"].get_ipython = lambda: object()  # IPython in a terminal has no kernel
    assert notebook.bars_in_notebook() is None
    monkeypatch.delitem(sys.modules, "IPython")
    assert notebook.bars_in_notebook() is None


@pytest.mark.parametrize("kind", SHOWN)
def test_ipython_finds_the_table_before_the_repr(kind: str) -> None:
    """It walks the classes for the first with either, and prefers `_repr_pretty_` within one."""
    first = next(each for each in type(SHOWN[kind]("a")).__mro__ if {"_repr_pretty_", "__repr__"} & set(vars(each)))
    assert "_repr_pretty_" in vars(first)

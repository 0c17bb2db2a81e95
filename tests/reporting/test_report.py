"""The page holds together with much, little and hostile content, stays in one file, and fits a phone."""

import dataclasses
import math
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch

from infoprune.analyses.base import Finding, Flag, Measure
from infoprune.errors import UserError
from infoprune.evaluation.metrics import EpochRecord, Latency, StageMetrics, Verification
from infoprune.planning.plan import GroupPlan, Plan
from infoprune.reporting import wording
from infoprune.reporting.contents import LayerChange, ReportContents
from infoprune.reporting.report import report, report_side_by_side
from infoprune.reporting.vocabulary import FLAG_MEANINGS
from tests.reporting.test_figures import cells, found

HOSTILE = '<script>alert("$x^2$ & layer")</script>'


def stage(accuracy: float, cost: int, latency: float) -> StageMetrics:
    return StageMetrics(accuracy, 0.1, 1000 * cost, 10_000 * cost, 4000 * cost, Latency(latency, 0.02, 1, "cpu", 2))


def contents(layers: int, hostile: str = "conv") -> ReportContents:
    torch.manual_seed(0)
    names = [f"layer{index}.{hostile}" for index in range(layers)]
    groups = tuple(GroupPlan(name, tuple(range(8)), 16, 8, 2000, 1000, f"because {hostile}") for name in names)
    vector, scalar = torch.rand(16), torch.tensor(0.5)
    measures = {
        name: {"I(X;T)": Measure(vector, vector, vector), "redundancy": Measure(scalar, scalar - 0.1, scalar + 0.1)}
        for name in names
    }
    finding = Finding(
        "information_bottleneck",
        importance={name: torch.tensor([math.nan, math.inf, 0.5, 1.0]) for name in names},
        widths={names[0]: 7},
        removable=(hostile,),
        measures=measures,
        flags=(Flag(names[0], "saturated", f"reason {hostile}"), Flag(names[0], "undefined", "constant filter")),
    )
    return ReportContents(
        title=f"job {hostile}",
        recipe_text=f'[model]\nname = "{hostile}"\n# ' + "long " * 80,
        plan=Plan(
            groups, {f"head {hostile}": "the network's output"}, 40_000, 20_000, (1, 8, 8), ("half was asked for",)
        ),
        metrics={"finetuned": stage(0.97, 2, 0.5), "base": stage(0.98, 4, 1.0), "pruned": stage(0.5, 2, 0.5)},
        verification=Verification(1e-6, 1.26e-7, "float32"),
        findings=(finding, Finding("l1", importance={name: torch.rand(16) for name in names})),
        history=[EpochRecord(epoch, 0.1, 0.5, 0.8, math.nan, 0.9 if epoch else math.nan, 2.0) for epoch in range(3)],
        versions={"torch": "2.15"},
        notes=("half was asked for", "measured twice"),
    )


class Page(HTMLParser):
    """What a browser would make of the page."""

    VOID = frozenset({"meta", "br", "hr", "img", "link", "input"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


@pytest.mark.parametrize("layers", [3, 150])
def test_the_page_has_every_part(tmp_path: Path, layers: int) -> None:
    page = Page(report(tmp_path / "new" / "report.html", contents(layers)).read_text(encoding="utf-8"))
    assert page.open == []
    ids = [value for name, value in page.attributes if name == "id"]
    assert {"network", "refused", "finding-1", "finding-2", "finetuning", "recipe", "versions"} <= set(ids)
    targets = {value[1:] for name, value in page.attributes if name == "href" and value and value.startswith("#")}
    assert targets <= set(ids)
    assert page.tags.count("svg") == 6  # widths; importance and two measures; importance; curves
    assert page.tags.count("tbody") == 2 + layers
    text = " ".join(" ".join(page.text).split())
    assert text.count("half was asked for") == 1
    assert f"{8 * layers:,} of {16 * layers:,} channels go" in text
    for expected in ("measured twice", "the network's output", "because conv", ": reason conv", "2.15"):
        assert expected in text
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["report.html"]


def test_what_users_name_is_text_never_markup(tmp_path: Path) -> None:
    text = report(tmp_path / "report.html", contents(3, HOSTILE)).read_text(encoding="utf-8")
    page = Page(text)
    assert "script" not in page.tags
    assert "<script" not in text
    assert any(HOSTILE in part for part in page.text)


def test_the_page_needs_no_network_and_no_script(tmp_path: Path) -> None:
    page = Page(report(tmp_path / "report.html", contents(20)).read_text(encoding="utf-8"))
    assert not {"script", "link", "img", "iframe", "image"} & set(page.tags)
    fetched = [value for name, value in page.attributes if name in {"src", "href", "xlink:href"}]
    assert all(value and value.startswith("#") for value in fetched)
    assert not any(name.startswith("on") for name, _ in page.attributes)


def test_equal_contents_make_equal_pages(tmp_path: Path) -> None:
    layers = [LayerChange("stem", 6, 3, 10, 5)]
    given = dataclasses.replace(
        contents(3),
        findings=[found()[name] for name in ("redundancy", "information_plane")],
        cells=cells(),
        layers=layers,
    )
    first, second = (report(tmp_path / name, given).read_bytes() for name in ("a.html", "b.html"))
    assert first == second


def test_a_script_would_not_run_even_if_one_got_in(tmp_path: Path) -> None:
    text = report(tmp_path / "report.html", contents(3)).read_text(encoding="utf-8")
    assert """http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'\"""" in text


def test_controls_stand_at_the_top_or_how_to_measure_them(tmp_path: Path) -> None:
    def words(given: ReportContents) -> str:
        page = Page(report(tmp_path / "report.html", given).read_text(encoding="utf-8"))
        return " ".join(" ".join(page.text).split())

    assert "No controls stand beside it yet: infoprune compare" in words(contents(3))
    text = words(dataclasses.replace(contents(3), cells=cells()))
    top = text[: text.index("The network, layer by layer")]
    assert "At 50.0 % of the MACs Cut only Repaired Fine-tuned this recipe 20.0 85.0 91.0 ± 1.4" in top
    assert "random, same widths 20.0 85.0 91.0 ± 1.4" in top
    assert "L2, uniform widths" in top
    assert "nearest budget" not in top
    assert "25.0 % of the MACs" in text[text.index("Criteria at equal budgets") :]
    plan = dataclasses.replace(contents(3).plan, macs_after=12_000)
    assert "This run keeps 30.0 %; 25.0 % is the nearest budget" in words(
        dataclasses.replace(contents(3), cells=cells(), plan=plan)
    )


def test_flags_are_gathered_with_what_they_mean(tmp_path: Path) -> None:
    text = report(tmp_path / "report.html", contents(3)).read_text(encoding="utf-8")
    section = text[text.index('id="flags"') : text.index('id="finding-1"')]
    for kind, meaning in FLAG_MEANINGS.items():
        assert f"{kind.capitalize()}.</strong> {meaning}" in section
    assert section.count('<a href="#finding-1">Information bottleneck</a>: 1 layer') == 2


def test_two_runs_side_by_side(tmp_path: Path) -> None:
    one, two = contents(3), contents(3)
    groups = (dataclasses.replace(one.plan.groups[0], kept=(5, 6, 7, 8), width_after=4), *one.plan.groups[1:])
    two = dataclasses.replace(
        two,
        title="other",
        plan=dataclasses.replace(two.plan, groups=groups),
        recipe_text=one.recipe_text + "\nmore = 1",
    )
    page = Page(report_side_by_side(tmp_path / "pair.html", [one, two]).read_text(encoding="utf-8"))
    text = " ".join(" ".join(page.text).split())
    assert page.open == []
    assert "job conv and other" in text
    assert "layer0.conv 16 8 4 3 layer1.conv 16 8 8 8" in text  # before, after in each, kept by both
    assert "+more = 1" in text
    assert "job conv: Fine-tuned other: Fine-tuned Accuracy" in text
    with pytest.raises(UserError, match="1 run to set side by side; name two or more"):
        report_side_by_side(tmp_path / "pair.html", [one])


def test_figures_take_the_pages_colours(tmp_path: Path) -> None:
    text = report(tmp_path / "report.html", contents(3)).read_text(encoding="utf-8")
    for figure in re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL):
        assert "var(--" in figure
        assert set(re.findall(r"(?:fill|stroke): (#\w+)", figure)) <= {"#ffffff"}
        assert "DejaVu" not in figure


def test_a_bare_plan_makes_a_page(tmp_path: Path) -> None:
    plan = Plan((), {}, 100, 100, (1, 8, 8))
    text = report(tmp_path / "report.html", ReportContents(title="bare", plan=plan)).read_text(encoding="utf-8")
    assert "Nothing was removed" in text
    assert "<svg" not in text


def test_names_in_any_script_are_drawn(tmp_path: Path) -> None:
    text = report(tmp_path / "report.html", contents(3, "層")).read_text(encoding="utf-8")
    assert "layer0.層" in text


def test_the_decision_in_words() -> None:
    given = contents(3)
    sentences = wording.decision(given.plan, given.metrics, given.verification)
    text = " ".join(sentences).replace("\u00a0", " ")
    assert text.startswith("24 of 48 channels go, from 3 of 4 channel groups, and with them 50.0 % of the")
    assert "Fine-tuned, it has 97.00 % of the test split right, 1.00 points under the base (98.00 %)" in text
    assert "2.00 times as fast, and the file takes 8.00 kB in place of 16.0 kB" in text
    assert "1.3×10⁻⁷ of the largest output (float32)" in text
    assert text.endswith("One channel group could not be cut.")
    shorter = dataclasses.replace(given.plan, removed=("layer1.1", "layer3.2"))
    assert "2 blocks pass on what they read: layer1.1, layer3.2." in wording.decision(shorter, {}, None)


def test_a_network_that_got_slower_is_not_praised() -> None:
    given = contents(3)
    metrics = {"base": given.metrics["base"], "pruned": stage(0.98, 2, 1.25)}
    text = " ".join(wording.decision(given.plan, metrics, None))
    assert "right, as before" in text
    assert "slower by 25\u00a0%" in text


def test_the_stage_table_is_in_order_and_relative_to_the_base() -> None:
    rows = {name: cells for name, _, cells in wording.stage_rows(contents(3).metrics)}
    assert [cell.text for cell in rows["Accuracy"]] == ["98.00 %", "50.00 %", "97.00 %"]
    assert [cell.change for cell in rows["Accuracy"]] == ["", "−48.00 pt", "−1.00 pt"]
    assert [cell.tone for cell in rows["Accuracy"]][:2] == ["", "bad"]
    assert [cell.change for cell in rows["MACs"]] == ["", "−50.0 %", "−50.0 %"]
    assert rows["Latency"][0] == wording.Cell("1.00 ms", detail="± 0.01")
    without_base = {"finetuned": stage(0.97, 2, 0.5)}
    assert all(cells[0].change == "" for _, _, cells in wording.stage_rows(without_base))


def test_an_unknown_stage_is_named(tmp_path: Path) -> None:
    given = dataclasses.replace(contents(3), metrics={"tuned": stage(0.9, 1, 1.0)})
    with pytest.raises(UserError, match=r"stages \['tuned'\]; the report knows base, pruned"):
        report(tmp_path / "report.html", given)
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(UserError, match=r"cannot write .*taken.*choose another place"):
        report(tmp_path / "taken" / "report.html", contents(3))


def test_importing_the_package_does_not_import_matplotlib() -> None:
    code = "import sys, infoprune.reporting.report; sys.exit('matplotlib' in sys.modules or 'jinja2' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])

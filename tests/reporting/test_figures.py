"""Every analysis has its own figures, they show what it found, and nothing it measured is missing."""

import re
from collections.abc import Sequence
from functools import cache

import pytest
import torch
from torch import nn

from infoprune.analyses.base import Curve, Finding, Measure
from infoprune.analyses.runner import analyze
from infoprune.config import registry
from infoprune.evaluation.metrics import Cell
from infoprune.io.encoding import from_json, to_json
from infoprune.reporting import figures, grids, pages
from infoprune.reporting.canvas import Drawing
from infoprune.reporting.contents import LayerChange
from infoprune.reporting.figures import comparison, informational, layerwise, network

ANALYSES = (*figures.OWN, "information_bottleneck", "taylor", "l2")
FULL = {"stem": 6, "body.conv": 6, "body.more": 6, "last": 8, "head": 3}


class Small(nn.Module):
    """A stem, a residual block, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 6, 3, padding=1)
        self.body = nn.ModuleDict({"conv": nn.Conv2d(6, 6, 3, padding=1), "more": nn.Conv2d(6, 6, 1), "act": nn.ReLU()})
        self.last, self.act = nn.Conv2d(6, 8, 3, padding=1, stride=2), nn.ReLU()
        self.head = nn.Linear(8, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        maps = self.stem(images)
        maps = self.body["act"](maps + self.body["more"](self.body["conv"](maps)))
        return self.head(self.act(self.last(maps)).mean((2, 3)))


@cache
def found() -> dict[str, Finding]:
    """What all analyses say of the small network."""
    torch.manual_seed(0)
    batches = [(torch.rand(24, 1, 12, 12), torch.arange(24) % 3) for _ in range(2)]
    analyses = [registry.find("analyses", name)() for name in ANALYSES]
    return {finding.analysis: finding for finding in analyze(Small(), batches, analyses)}


def stretched(finding: Finding, names: Sequence[str]) -> Finding:
    """The same finding for as many layers as there are names."""
    own = figures.layers_of(finding)
    of = {name: own[i % len(own)] for i, name in enumerate(names)}
    kept = {name: measures for name, measures in finding.measures.items() if name not in own}
    return Finding(
        finding.analysis,
        {name: finding.importance[layer] for name, layer in of.items() if layer in finding.importance},
        {name: finding.widths[layer] for name, layer in of.items() if layer in finding.widths},
        finding.removable,
        {**{name: finding.measures[layer] for name, layer in of.items() if layer in finding.measures}, **kept},
        finding.flags,
        {name: finding.curves[layer] for name, layer in of.items() if layer in finding.curves},
    )


def cells() -> list[Cell]:
    """Two criteria and the controls at two budgets with two seeds."""
    names = ("recipe", "torch_pruning.l2", *grids.CONTROLS)
    return [
        Cell(
            name, share, seed, int(4000 * share), 100, 2 * share + seed, 0.2, 0.8 + share / 10, 0.9 + seed / 50, 0.9,
            seconds=0.5 + len(name),
        )
        for name in names
        for share in (0.5, 0.25)
        for seed in (0, 1)
    ]  # fmt: skip


def titles(drawings: Sequence[Drawing]) -> list[str]:
    return [re.search(r'aria-label="([^"]*)"', drawing.svg).group(1) for drawing in drawings]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("analysis", "expected"),
    [
        ("information_bottleneck", ["importance: importance", "I(X;T): bits", "I(T;Y): bits"]),
        ("redundancy", ["all layers", "MMI, bits, 1", "redundancy–synergy trade-off"]),
        ("cmi_permutation", ["importance", "CMI, bits, 1"]),
        ("response_information", ["importance", "all layers", "response lost, 1", "explained", "recommended widths"]),
        ("data_processing", ["inequalities", "blocks"]),
        ("information_plane", ["I(X;T) and I(T;Y)", "non-redundant X and non-redundant Y"]),
        ("spectral_rolloff", ["importance", "profile"]),
        ("energy_propagation", ["importance", "decay"]),
        ("information_scaling", ["ranks", "entropies"]),
        ("taylor", ["importance"]),
        ("l2", ["importance"]),
    ],
)
def test_every_analysis_has_its_figures(analysis: str, expected: list[str]) -> None:
    drawn = figures.of_finding(found()[analysis], {"stem": (0, 1)}, FULL)
    at_once = titles([drawing for drawing in drawn if not drawing.folded])
    for title in expected:
        assert any(title in each for each in at_once), (title, at_once)
    assert len(set(titles(drawn))) == len(drawn)  # titles name the parts of an SVG, which share one page
    assert all(drawing.caption for drawing in drawn)


@pytest.mark.parametrize("analysis", figures.OWN)
def test_no_measure_is_lost(analysis: str) -> None:
    """What an own figure claims to show exists under that name, and the rest is drawn as any measure is."""
    finding = found()[analysis]
    layers = figures.layers_of(finding)
    known = {name for measures in finding.measures.values() for name in measures}
    assert set(figures.OWN[analysis][1]) <= known
    rest = {name for layer in layers for name in finding.measures.get(layer, {})} - {*figures.OWN[analysis][1]}
    folded = titles([drawing for drawing in figures.of_finding(finding) if drawing.folded])
    assert all(any(f" {name}: " in title or title.endswith(f": {name}") for title in folded) for name in rest)


def test_a_users_analysis_is_drawn_by_its_measures() -> None:
    value = torch.tensor([0.1, 0.4])
    finding = Finding("mine", {"a": value}, measures={"a": {"heat": Measure(value, unit="K")}})
    assert titles(figures.of_finding(finding)) == ["mine importance: importance per layer", "mine heat: K per layer"]


def test_layers_seen_from_the_last_to_the_first_are_turned_round() -> None:
    assert figures.layers_of(found()["taylor"], FULL) == [name for name in FULL if name in found()["taylor"].importance]


def test_blocks_and_the_network_as_a_whole_are_no_layers() -> None:
    processing, energy = found()["data_processing"], found()["energy_propagation"]
    assert "body" in processing.measures
    assert "body" not in figures.layers_of(processing)
    assert "network" not in figures.layers_of(energy)
    assert "exponential rate" in figures.facts(energy)["network"]


def test_the_cmi_curve_has_a_band_for_every_tested_filter() -> None:
    for curves in found()["cmi_permutation"].curves.values():
        curve = curves["CMI"]
        assert curve.low is not None
        assert curve.high is not None
        assert len(curve.x) == len(curve.y) == len(curve.low)
        assert (curve.low <= curve.high).all()


def test_the_mmi_curve_ends_at_the_layers_own() -> None:
    finding = found()["redundancy"]
    for layer, curves in finding.curves.items():
        curve = curves["MMI"]
        assert int(curve.x[-1]) == len(finding.importance[layer])
        assert float(curve.y[-1]) == pytest.approx(float(finding.measures[layer]["MMI"].value))


def test_a_response_curve_loses_all_where_nothing_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Curve] = {}
    monkeypatch.setattr(informational, "_panels", lambda finding, named, *_: seen.update(named) or [])
    gone = Measure(torch.tensor([0.7, 0.1, 0.3]))
    informational.response(Finding("response_information", measures={"a": {"error once gone": gone}}), ["a"])
    assert seen["a"].x.tolist() == [3, 2, 1, 0]
    assert seen["a"].y.tolist() == pytest.approx([0, 0.1, 0.3, 0.7])


def test_many_layers_go_by_number_in_folded_sheets() -> None:
    names = [f"features.{i}.conv" for i in range(60)]
    drawn = figures.of_finding(stretched(found()["redundancy"], names))
    sheets = [drawing.folded for drawing in drawn if drawing.folded.startswith("Layers")]
    assert sheets == ["Layers 1 to 24", "Layers 25 to 48", "Layers 49 to 60"]
    assert [folded for folded, _ in pages._by_fold(drawn)].count("Layers 25 to 48") == 1
    assert figures.numbered(stretched(found()["redundancy"], names)) == names


def test_a_narrow_figure_that_is_left_alone_has_its_caption_beside_it() -> None:
    def drawing(narrow: bool) -> Drawing:
        return Drawing("", found_svg, narrow)

    found_svg = figures.of_finding(found()["l2"])[0].svg
    placed = pages._placed([drawing(True), drawing(True), drawing(True), drawing(False), drawing(True)])
    assert [kind for _, kind in placed] == ["narrow", "narrow", "lone", "wide", "lone"]


def test_the_silhouette_shows_old_and_new_widths_and_what_is_gone() -> None:
    layers = [LayerChange("stem", 6, 3, 10, 5), LayerChange("body.conv", 6, 0, 10, 0), LayerChange("head", 3, 3, 1, 1)]
    drawn = network.silhouette(layers)
    assert drawn is not None
    for text in ("→3", "→0", "removed", "body.conv"):
        assert text in drawn
    many = network.silhouette([LayerChange(f"layer{i}", 64, 32, 10, 5) for i in range(150)])
    assert many is not None
    assert "layer7" not in many


def test_dots_give_way_where_there_are_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    finding = found()["l2"]
    assert "stays" in figures.of_finding(finding, {"stem": (0, 1)})[0].svg
    monkeypatch.setattr(layerwise, "DOTS", 3)
    assert "stays" not in figures.of_finding(finding, {"stem": (0, 1)})[0].svg


def test_a_comparison_is_drawn_by_stage_with_a_key() -> None:
    rows = grids.rows(cells())
    drawn = comparison.against(rows, 4000, None)
    assert titles(drawn)[:2] == ["Key to the comparison", "Seconds to choose the filters"]
    assert titles(drawn)[2:4] == [
        "Cut only: accuracy against multiply-accumulates",
        "Cut only: accuracy against measured latency",
    ]
    assert len(drawn) == 2 + 3 * 2
    assert "small dense, from scratch" in drawn[0].svg


def test_one_untrained_network_does_not_press_the_others_into_a_line() -> None:
    own = [Cell("recipe", 0.5, seed, 2000, 100, 1.0, None, 0.98 + seed / 100, None, 0.9, 1.0) for seed in (0, 1)]
    wild = Cell("control.random", 0.5, 0, 2000, 100, 1.0, None, 0.1, None, 0.9, 1.0)
    more = Cell("l2", 0.5, 0, 2000, 100, 1.0, None, 0.99, None, 0.9, 1.0)
    assert "off the scale: 10" in comparison.against(grids.rows([*own, more, wild]), 4000, None)[2].svg


def test_findings_read_back_are_drawn_alike() -> None:
    finding = found()["redundancy"]
    again = from_json(to_json(finding), Finding, "test")
    assert [drawing.svg for drawing in figures.of_finding(again)] == [
        drawing.svg for drawing in figures.of_finding(finding)
    ]

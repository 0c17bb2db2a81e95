"""What a run directory holds comes together for its report, and nothing that belongs to another run."""

from pathlib import Path
from typing import Any

import pytest

from infoprune.errors import UserError
from infoprune.evaluation.metrics import EpochRecord
from infoprune.graph.channels import ChannelGraph, ChannelGroup, Member
from infoprune.graph.costs import LayerCost
from infoprune.io import storage
from infoprune.io.encoding import to_json
from infoprune.pipeline.report_contents import About, gather, layer_changes, side_by_side
from infoprune.pipeline.run_directory import RunDirectory
from infoprune.planning.plan import GroupPlan, Plan
from infoprune.reporting.contents import LayerChange
from infoprune.reporting.report import report_side_by_side
from infoprune.training.history import write_history
from tests.cli.test_cli import call
from tests.reporting.test_figures import cells, found
from tests.reporting.test_report import stage

ORIGIN = {"made_from": {"origin": {"model": "mine"}}}


def run_directory(folder: Path, title: str = "job", **compared: Any) -> Path:
    """A run directory as a run leaves it."""
    plan = Plan((GroupPlan("stem", (0, 2), 6, 2, 100, 40, "because"),), {}, 100, 40, (1, 8, 8))
    layers = (LayerChange("stem", 6, 2, 100, 40),)
    about = About(title, "[run]\nseed = 0\n", ("findings/l2.json",), "", layers, {"torch": "2"})
    files = {
        "plan.json": {**ORIGIN, **to_json(plan)},
        "metrics.json": {
            **{name: to_json(stage(0.9, 2, 1.0)) for name in ("base", "finetuned")},
            "verification": {"max_abs_difference": 1e-6, "max_rel_difference": 1e-7, "dtype": "float32"},
        },
        "findings/l2.json": to_json(found()["l2"]),
        "report.json": {"page": "report.html", "about": to_json(about)},
        "compare.json": {**ORIGIN, "cells": to_json(cells()), **compared},
    }
    directory = RunDirectory(folder)
    directory.claim()
    for name, value in files.items():
        directory.write_json(name, value)
    history = [EpochRecord(0, 0.1, 0.5, 0.8, 0.4, 0.9, 2.0)]
    directory.write("history.csv", lambda path: write_history(path, history))
    return folder


def test_everything_is_there(tmp_path: Path) -> None:
    contents = gather(run_directory(tmp_path))
    assert contents.title == "job"
    assert contents.recipe_text == "[run]\nseed = 0\n"
    assert [finding.analysis for finding in contents.findings] == ["l2"]
    assert list(contents.metrics) == ["base", "finetuned"]
    assert len(contents.cells) == len(cells())
    assert len(contents.history) == 1
    assert contents.layers[0].after == 2
    assert contents.versions == {"torch": "2"}


def test_what_was_compared_on_another_model_is_left_out(tmp_path: Path) -> None:
    other = {"made_from": {"origin": {"model": "another"}}}
    assert gather(run_directory(tmp_path, **other)).cells == []


def test_a_directory_without_a_report_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no run with a report; write it first: infoprune report RECIPE"):
        gather(tmp_path)


def test_a_damaged_report_file_is_named(tmp_path: Path) -> None:
    run_directory(tmp_path)
    RunDirectory(tmp_path).write_json("report.json", {"about": {"title": 3}})
    with pytest.raises(UserError, match=r"report\.json' is no valid about"):
        gather(tmp_path)


@pytest.mark.parametrize("name", ["plan.json", "metrics.json", "findings/l2.json", "history.csv", "report.json"])
def test_a_file_changed_by_hand_is_not_shown(tmp_path: Path, name: str) -> None:
    path = run_directory(tmp_path) / name
    path.write_text(path.read_text().replace("0", "1"))
    with pytest.raises(UserError, match=rf"{name} changed after the run wrote it; bring the run up to date"):
        gather(tmp_path)


def test_a_report_of_another_plan_is_not_shown(tmp_path: Path) -> None:
    directory = RunDirectory(run_directory(tmp_path))
    inputs = {name: directory.fingerprint(name) for name in ("plan.json", "metrics.json")}
    content = storage.read_json(tmp_path / "report.json")
    directory.write_json("report.json", {**content, "made_from": {"inputs": inputs}})
    assert gather(tmp_path).title == "job"
    plan = storage.read_json(tmp_path / "plan.json")
    directory.write_json("plan.json", {**plan, "macs_after": 39})
    with pytest.raises(UserError, match=r"the report was made from another plan\.json; bring the run up to date"):
        gather(tmp_path)


@pytest.mark.parametrize("change", ["", "<!-- my notes -->"])
def test_a_page_is_replaced_unless_it_was_changed(tmp_path: Path, change: str) -> None:
    runs = side_by_side([run_directory(tmp_path / "a"), run_directory(tmp_path / "b")])
    page = report_side_by_side(tmp_path / "page.html", runs)
    page.write_text(page.read_text() + change)
    before = page.read_text()
    if change:
        with pytest.raises(UserError, match="or was changed since; name another file"):
            report_side_by_side(page, runs)
    else:
        report_side_by_side(page, runs)
    assert page.read_text() == before
    own = tmp_path / "own.html"  # as a run's report: this package's, but no page of two runs
    own.write_text('<meta name="generator" content="infoprune 0.1.0">')
    with pytest.raises(UserError, match="is no page of this command"):
        report_side_by_side(own, runs)


def test_runs_of_one_recipe_go_by_their_directories(tmp_path: Path) -> None:
    one, two = run_directory(tmp_path / "first"), run_directory(tmp_path / "second")
    assert [contents.title for contents in side_by_side([one, two])] == ["first", "second"]
    three = run_directory(tmp_path / "third", "another")
    assert [contents.title for contents in side_by_side([one, three])] == ["job", "another"]


def test_the_command_sets_two_runs_side_by_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run_directory(tmp_path / "elsewhere")
    run_directory(tmp_path / "runs" / "mine", "mine")
    result = call("report", "--compare", "elsewhere", "mine.toml", "--out", "both")
    assert result.exit_code == 0, result.output
    page = (tmp_path / "both" / "compared.html").read_text(encoding="utf-8")
    assert "job and mine" in page
    assert call("report", "--compare", "elsewhere", "mine", "--out", "page.html", "--json").exit_code == 0
    assert (tmp_path / "page.html").exists()
    result = call("report", "--compare", "elsewhere", "nowhere")
    assert result.exit_code == 2
    assert "runs/nowhere" in result.output


def test_layers_before_and_after() -> None:
    """Twelve channels to three, a depthwise layer on them, and a layer that goes with its block."""
    costs = (
        LayerCost("a", 2, 12, 240),
        LayerCost("a.norm", 12, 12, 0),
        LayerCost("b", 12, 12, 120, depthwise=True),
        LayerCost("c", 12, 5, 600),
        LayerCost("d", 5, 5, 50),
    )
    one = tuple((i,) for i in range(12))
    sides = [Member("a", "out", one), Member("b", "out", one), Member("b", "in", one), Member("c", "in", one)]
    groups = (ChannelGroup("a", 12, tuple(sides)),)
    whole, left = ChannelGraph(groups, costs, (2, 4, 4)), ChannelGraph(groups, costs[:-1], (2, 4, 4))
    plan = Plan((GroupPlan("a", (0, 1, 2), 12, 3, 0, 0, ""),), {}, 1010, 240, (2, 4, 4))
    assert layer_changes(whole, left, plan) == [
        LayerChange("a", 12, 3, 240, 60, "a"),
        LayerChange("b", 12, 3, 120, 30, "a"),
        LayerChange("c", 5, 5, 600, 150),
        LayerChange("d", 5, 0, 50, 0),
    ]
    assert sum(change.macs_after for change in layer_changes(whole, left, plan)) == left.macs({"a": 3})

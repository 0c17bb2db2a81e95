"""Advice on widths and depth, as a user asks for it: tables, JSON, and the arguments that build it."""

import json
from pathlib import Path

import pytest
import torch

from infoprune.analyses.base import Finding, Flag, Measure
from infoprune.config import recipe
from infoprune.evaluation.metrics import ModelReference
from infoprune.evaluation.profile import count_macs
from infoprune.io import checkpoint, storage
from infoprune.pipeline import advise
from infoprune.pipeline.context import Context, open_run
from infoprune.pipeline.steps import analyze, depth
from infoprune.planning.constraints import Constraints
from infoprune.planning.recommend import recommend
from tests.cli.test_cli import QUICK, call
from tests.planning.test_planner import line

CHEAP = ["--set", "analyses.information_scaling={}", "--set", "analyses.energy_propagation={grid=0}", *QUICK]


def job(out: Path, *overrides: str) -> Context:
    return open_run(recipe.read("digits", ["calibration.batches=2", "calibration.batch_size=64", *overrides]), out)


def test_inspect_shows_what_could_go(tmp_path: Path) -> None:
    result = call("inspect", "digits", "--out", tmp_path, "--json", *QUICK)
    rows = {row["group"]: row for row in json.loads(result.stdout)}
    assert rows["linear"]["refusal"] == "its channels are the network's output"
    assert rows["layer3.0.conv1"]["floor"] == 4
    assert rows["layer3.0.conv1"]["saves_macs"] > 0
    shown = call("inspect", "digits", "--out", tmp_path, *QUICK, "--set", "plan.protect=['layer1*']").output
    assert "protected by the recipe" in " ".join(shown.split())


def test_widths_can_be_built_and_trained(tmp_path: Path) -> None:
    result = call("widths", "digits", "--out", tmp_path, "--json", *CHEAP)
    assert result.exit_code == 0, result.output
    advice = json.loads(result.stdout)
    assert advice == storage.read_json(tmp_path / "widths.json")
    rows = {row["group"]: row for row in advice["groups"]}
    said = {opinion["analysis"]: opinion for opinion in rows["layer2.0.conv1"]["opinions"]}
    assert said.keys() == {"response_information", "information_scaling", "energy_propagation"}
    assert said["energy_propagation"]["low"] <= said["energy_propagation"]["width"]
    assert any(row["recommended"] < row["width"] for row in rows.values())
    assert rows["conv1"]["layers"][0] == "conv1"
    built = checkpoint.build(ModelReference(advice["model"]["name"], advice["model"]["arguments"]))
    assert count_macs(built, torch.zeros(1, 1, 16, 16)) == advice["macs"][1] < advice["macs"][0]
    table = call("widths", "digits", "--out", tmp_path, *CHEAP).output
    assert "energy_propagation" in table
    assert 'name = "cifar_resnet"' in table


def test_what_needs_labels_is_left_out_without_them(tmp_path: Path) -> None:
    advice = advise.advise_widths(job(tmp_path, "calibration.labels=false", "analyses.information_scaling={}"))
    assert advice.left_out == {"information_bottleneck": "it needs labels, and [calibration] labels = false"}
    assert any(row.opinions for row in advice.groups)


def test_recommendations_are_medians_within_constraints() -> None:
    graph = line(16, 16, 2)
    interval = {"conv0": {"width": Measure(torch.tensor(6.5), torch.tensor(5.0), torch.tensor(8.0), "filters")}}
    findings = [
        Finding("a", widths={"conv0": 7, "conv1": 3}, measures=interval),
        Finding("b", widths={"conv0": 12}),
        Finding("c", widths={"conv0": 9}, flags=(Flag("conv1", "saturated", "at its ceiling"),)),
    ]
    rows = {row.group: row for row in recommend(findings, graph, Constraints(min_width=5))}
    assert rows["conv0"].recommended == 9
    assert rows["conv0"].saves_macs == graph.macs({}) - graph.macs({"conv0": 9})
    assert (rows["conv0"].opinions[0].low, rows["conv0"].opinions[0].high) == (5, 8)
    assert rows["conv1"].recommended == 5
    assert "brought to what the constraints allow" in rows["conv1"].reason
    assert [(o.analysis, o.width, o.flag) for o in rows["conv1"].opinions] == [
        ("a", 3, ""),
        ("c", None, "at its ceiling"),
    ]
    assert (rows["conv2"].recommended, rows["conv2"].reason) == (2, "its channels are the network's output")


def test_depth_is_advised_and_confirmed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = job(tmp_path, "repair.method=batch_norm", "depth.max_loss=40.0", "analyses.energy_propagation={grid=0}")
    figures = {"block: loss of I(X;T)": Measure(torch.tensor(0.01)), "elsewhere": Measure(torch.tensor(1.0))}
    named = Finding(
        "data_processing", removable=("layer1.1", "layer3.1"), measures=dict.fromkeys(("layer1.1", "layer2.1"), figures)
    )
    original = analyze.findings
    for module in (analyze, depth):
        monkeypatch.setattr(module, "findings", lambda context: [*original(context), named])
    advice = advise.advise_depth(made)
    rows = {row.block: row for row in advice.blocks}
    assert rows.keys() == {"layer1.1", "layer3.1", "layer2.1"}
    assert rows["layer2.1"].reason == "no analysis would remove it"
    assert not rows["layer2.1"].recommended
    assert list(rows["layer1.1"].figures) == ["block: loss of I(X;T)"]
    assert rows["layer1.1"].accuracy is not None
    assert "points of validation accuracy lost without it" in rows["layer1.1"].reason
    gone = [row.block for row in advice.blocks if row.recommended]
    assert gone, "40 points are allowed"
    assert advice.model is not None
    assert sum(advice.model.arguments["blocks"]) == 6 - len(gone)
    assert advice.macs[1] == made.graph_without(gone).macs({})
    assert any("energy_propagation" in note for note in advice.notes)
    unconfirmed = advise.advise_depth(made, confirm=False)
    assert [row.block for row in unconfirmed.blocks if row.recommended] == ["layer1.1", "layer3.1"]
    assert unconfirmed.base is None


def test_depth_as_a_command(tmp_path: Path) -> None:
    fast = [*QUICK, "--set", "analyses.data_processing={permutations=2}", "--set", "repair.method=none"]
    result = call("depth", "digits", "--out", tmp_path, "--no-confirm", "--json", *fast)
    assert result.exit_code == 0, result.output
    advice = json.loads(result.stdout)
    assert {"layer1.0", "layer1.1", "layer2.1", "layer3.1"} <= {row["block"] for row in advice["blocks"]}
    assert all({"block: loss of I(X;T)", "block: gain of I(T;Y)"} == row["figures"].keys() for row in advice["blocks"])
    shown = call("depth", "digits", "--out", tmp_path, "--no-confirm", *fast).output
    assert "layer1.1" in shown


def test_a_group_is_explained(tmp_path: Path) -> None:
    result = call("plan", "digits", "--out", tmp_path, "--explain", "layer1.0.conv2", *CHEAP)
    shown = " ".join(result.output.split())
    assert "ranked highest by response_information" in shown
    assert "layer1.1.conv2" in shown, "layers that are coupled to it"
    assert "effective rank" in shown
    wrong = call("plan", "digits", "--out", tmp_path, "--explain", "layer1.0.conv9", *CHEAP)
    assert wrong.exit_code == 2
    assert "no channel group or layer 'layer1.0.conv9'; did you mean 'layer1.0.conv" in " ".join(wrong.output.split())

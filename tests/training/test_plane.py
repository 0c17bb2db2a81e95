"""The information plane while a network is fine-tuned: collected, kept, gone on with, and drawn."""

from pathlib import Path
from typing import Any

import pytest
import torch

from infoprune.analyses.base import Finding, Measure
from infoprune.analyses.information_plane import trajectories
from infoprune.config import recipe
from infoprune.errors import UserError
from infoprune.io import storage
from infoprune.pipeline.context import Context, open_run
from infoprune.pipeline.options import PlaneOptions
from infoprune.pipeline.run import run_until
from infoprune.reporting.figures import informational
from infoprune.training.plane import PlaneFile, read_planes
from tests.cli.test_cli import user_files


def job(folder: Path, *overrides: str) -> Context:
    path = user_files(folder)
    return open_run(recipe.read(path, [f"model.name={folder / 'nets.py'}:net", *overrides]), folder / "run")


def test_points_are_taken_while_training_and_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    plain = job(tmp_path, "finetune.epochs=2", "run.batch_size=32")
    run_until(plain, "finetune")
    expected = storage.read_tensors(tmp_path / "run" / "finetuned.safetensors")
    watched = job(tmp_path, "finetune.epochs=2", "run.batch_size=32", "plane.points=4")
    run_until(watched, "finetune")
    got = storage.read_tensors(tmp_path / "run" / "finetuned.safetensors")
    assert all(torch.equal(got[name], value) for name, value in expected.items())
    planes = read_planes(tmp_path / "run" / "plane-finetuned.json")
    assert list(planes) == [0, 1, 2, 6], "two epochs of three steps, evenly in the logarithm"
    assert all(path.shape == (4, 3) for path in trajectories(planes).values())
    run_until(watched, "report")
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert 'id="planes"' in page
    assert "Information planes while training" in page


def test_points_known_are_not_taken_again() -> None:
    model, batches = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3)), [(torch.randn(8, 1, 4, 4), torch.arange(8) % 2)]
    wanted = PlaneOptions(points=3)
    saved: dict[str, Any] = {}
    first = PlaneFile(saved, saved.update, {"a": 1}, wanted.steps, {})
    for step in range(4):
        first.look(model, batches, step, 3)
    assert list(first.points) == ["0", "1", "3"]
    again = PlaneFile(saved, saved.update, {"a": 1}, wanted.steps, {})
    again.look(model, [], 3, 3)  # with no batches there would be nothing to analyse
    assert list(again.points) == ["0", "1", "3"]
    assert PlaneFile(saved, saved.update, {"a": 2}, wanted.steps, {}).points == {}
    with pytest.raises(UserError, match="points = 1: expected 0, or 2 or more"):
        PlaneOptions(points=1)


def test_one_point_is_no_way() -> None:
    point = {"I(X;T)": Measure(torch.tensor(2.0)), "I(T;Y)": Measure(torch.tensor(1.0))}
    assert not informational.planes({0: Finding("information_plane", measures={"conv": point})})
    assert not informational.planes({})


def test_the_colour_scale_is_in_steps() -> None:
    found = {}
    for step in (0, 10, 100):
        point = {"I(X;T)": Measure(torch.tensor(2.0 + step)), "I(T;Y)": Measure(torch.tensor(1.0))}
        found[step] = Finding("information_plane", measures={"conv": point})
    drawn = "".join(informational.planes(found))
    for step in found:
        assert f">step {step}</text>" in drawn
    assert "mathdefault" not in drawn

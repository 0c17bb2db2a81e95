"""A recipe to start from, and the state of the installation."""

import json
import tomllib
from pathlib import Path

import pytest

from infoprune.config import recipe
from infoprune.config.registry import names
from infoprune.pipeline.settings import bind_recipe
from infoprune.pipeline.template import starting_recipe
from tests.cli.test_cli import QUICK, call

REQUIRED = {"torchvision": ["model.architecture=resnet18"], "timm": ["model.architecture=resnet10t"]}


@pytest.mark.parametrize("family", names("models"))
def test_every_family_has_a_recipe_to_start_from(family: str) -> None:
    text = starting_recipe("new", family, "digits", None, REQUIRED.get(family, []))
    assert tomllib.loads(text)["model"]["name"] == family
    for line in text.splitlines():  # every default in a comment is TOML of its own
        if line.startswith("# ") and " = " in line:
            tomllib.loads(line.removeprefix("# "))


def test_a_new_recipe_runs(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    made = ["--set", "model.depth=14", "--set", "model.input_channels=1", "--set", "model.shortcut=projection"]
    result = call("new", path, "--data", "digits", "--weights", "digits_resnet.safetensors", *made)
    assert result.exit_code == 0, result.output
    assert bind_recipe(recipe.read(path)).weights == "digits_resnet.safetensors"
    assert call("inspect", path, "--out", tmp_path / "run", *QUICK).exit_code == 0
    again = call("new", path, "--data", "digits")
    assert again.exit_code == 2
    assert "is there already" in again.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "torchvision"], "needs 'architecture'"),
        (["--model", "resnet"], "no model 'resnet'"),
        (["--data", "cifar"], "no data set 'cifar'"),
        (["--set", "model.depht=3"], "did you mean 'depth'"),
        (["--set", "plan.macs=half"], "[plan] macs = 'half'"),
    ],
)
def test_wrong_starts_write_nothing(tmp_path: Path, arguments: list[str], message: str) -> None:
    result = call("new", tmp_path / "mine.toml", *arguments)
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())
    assert not (tmp_path / "mine.toml").exists()


def test_doctor_finds_what_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INFOPRUNE_DATA", str(tmp_path))
    (tmp_path / "cifar10").mkdir()
    result = call("doctor", "--json")
    assert result.exit_code == 0, result.output
    rows = {row["what"]: row["found"] for row in json.loads(result.stdout)}
    assert rows["INFOPRUNE_DATA"].endswith(": cifar10")
    assert "digits" in rows["recipes"]
    monkeypatch.setenv("INFOPRUNE_DATA", str(tmp_path / "gone"))
    wrong = call("doctor")
    assert wrong.exit_code == 1
    assert "is no folder" in " ".join(wrong.output.split())

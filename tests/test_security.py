"""What strangers' files may do: nothing. And no connection is opened that nobody asked for."""

import ast
import os
import socket
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from infoprune import checkpoint, cli, store
from infoprune.artifacts import ModelReference
from infoprune.errors import UserError
from infoprune.models import lenet

PACKAGE = Path(__file__).parent.parent / "infoprune"
QUICK = ["finetune.epochs=0", "evaluate.latency_repeats=1", "calibration.batches=2", "plan.allocation=uniform"]
QUICK = [part for each in (*QUICK, 'export.formats=["state_dict"]') for part in ("--set", each)]


def call(*arguments: str | Path) -> tuple[int, str]:
    result = CliRunner().invoke(cli.main, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
    return result.exit_code, " ".join(result.output.split())


class Bomb:
    """Would make a folder when unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".th", ".bin", ".safetensors", ""])
@pytest.mark.parametrize("old", [False, True])
def test_a_hostile_pickle_is_refused_whatever_its_name(tmp_path: Path, suffix: str, old: bool) -> None:
    weights = tmp_path / f"weights{suffix}"
    torch.save({"weight": Bomb(tmp_path / "ran")}, weights, _use_new_zipfile_serialization=not old)
    code, said = call("plan", "digits", "--out", tmp_path / "run", "--set", f"model.weights='{weights}'", *QUICK)
    assert code == 2, said
    assert not (tmp_path / "ran").exists()


def test_a_hostile_pickle_among_a_runs_own_files(tmp_path: Path) -> None:
    assert call("prune", "digits", "--out", tmp_path, *QUICK)[0] == 0
    for name in ("pruned.safetensors", "base.safetensors", ".infoprune/finetuned.epochs.safetensors"):
        torch.save({"weight": Bomb(tmp_path / "ran")}, tmp_path / name)
    code, said = call("evaluate", "digits", "--out", tmp_path, *QUICK)
    assert code == 2, said
    assert not (tmp_path / "ran").exists()


def test_a_checkpoint_names_code_but_does_not_run_it(tmp_path: Path) -> None:
    (tmp_path / "evil.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'ran')!r})\ndef net():\n    pass\n")
    model = lenet.build()
    for name in (f"{tmp_path}/evil.py:net", "os:system", "evil:net"):
        checkpoint.save(tmp_path / "model.safetensors", model, ModelReference(name, {}))
        with pytest.raises(UserError, match="trust_code=True"):
            checkpoint.load(tmp_path / "model.safetensors")
    checkpoint.save(tmp_path / "model.safetensors", model, ModelReference("../../evil", {}))
    with pytest.raises(UserError, match="no model"):
        checkpoint.load(tmp_path / "model.safetensors", trust_code=True)
    assert not (tmp_path / "ran").exists()


def test_weights_of_a_recipe_run_no_code_that_they_name(tmp_path: Path) -> None:
    """The recipe says how to build the network; a checkpoint given as weights does not."""
    (tmp_path / "evil.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'ran')!r})\ndef net():\n    pass\n")
    checkpoint.save(tmp_path / "w.safetensors", lenet.build(), ModelReference(f"{tmp_path}/evil.py:net", {}))
    call("plan", "digits", "--out", tmp_path / "run", "--set", f"model.weights='{tmp_path}/w.safetensors'", *QUICK)
    assert not (tmp_path / "ran").exists()


def test_names_in_artifacts_are_no_paths(tmp_path: Path) -> None:
    out = tmp_path / "a" / "run"
    assert call("prune", "digits", "--out", out, *QUICK)[0] == 0
    before = {path for path in tmp_path.rglob("*") if "run" not in path.parts}
    plan = store.read_json(out / "plan.json")
    plan["groups"][0]["group"] = "../../../evil"
    plan["notes"] = ["../../evil"]
    store.write_json(out / "plan.json", plan)
    assert call("prune", "digits", "--out", out, *QUICK)[0] == 2
    code, _ = call("analyze", "digits", "--out", out, "--set", "analyses.'../../evil'.x=1", *QUICK)
    assert code == 2
    assert {path for path in tmp_path.rglob("*") if "run" not in path.parts} == before


def test_a_run_opens_no_connection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every step of the digits recipe, with sockets that do not connect and names that are not looked up."""

    def refused(*arguments: Any, **_: Any) -> Any:
        raise AssertionError(f"a connection to {arguments[1:]} was asked for")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refused)
    monkeypatch.setattr(socket, "getaddrinfo", refused)
    monkeypatch.setattr(socket, "create_connection", refused)
    code, said = call("run", "digits", "--out", tmp_path, *QUICK)
    assert code == 0, said


def test_weights_are_not_downloaded_unless_a_recipe_asks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any, **__: Any) -> Any:
        raise AssertionError("a download was asked for")

    monkeypatch.setattr(torch.hub, "download_url_to_file", refused)
    sets = ["model.name=torchvision", "model.architecture=resnet18", "model.classes=10"]
    arguments = [part for each in sets for part in ("--set", each)]
    call("plan", "digits", "--out", tmp_path, *arguments, *QUICK)


def test_nothing_is_evaluated_as_code() -> None:
    """No eval, exec, pickle.load, yaml or shell in the package; torch.load only with weights_only=True."""
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            name = ast.unparse(node.func)
            assert name not in {"eval", "exec", "compile", "__import__", "os.system", "os.popen"}, f"{path}: {name}"
            assert name.split(".")[0] not in {"pickle", "yaml", "subprocess", "marshal", "dill"}, f"{path}: {name}"
            if name in ("torch.load", "torch.hub.load_state_dict_from_url"):
                only = {word.arg: ast.unparse(word.value) for word in node.keywords}
                assert only.get("weights_only") == "True", f"{path}: {name} would unpickle"


def test_user_code_is_found_where_the_recipe_says_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file beside the run that bears the name of a module of ours or of the library's is not picked up."""
    (tmp_path / "lenet.py").write_text("raise SystemExit('picked up')")
    (tmp_path / "digits.py").write_text("raise SystemExit('picked up')")
    monkeypatch.chdir(tmp_path)
    assert call("plan", "digits", "--out", "run", *QUICK)[0] == 0
    assert "picked up" not in sys.modules

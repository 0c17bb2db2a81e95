"""What strangers' files may do: nothing. And no connection is opened that nobody asked for."""

import ast
import os
import socket
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import nn

from infoprune import cli
from infoprune.errors import RunError, UserError
from infoprune.evaluation.metrics import ModelReference
from infoprune.io import checkpoint, storage
from infoprune.models import lenet
from infoprune.planning.plan import GroupPlan, Plan
from infoprune.pruning.channel_graph import channel_graph
from infoprune.pruning.prune import prune

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


@dataclass
class Seal:
    """What was asked for while no connection could be opened: names of files, and connections."""

    opened: list[str] = field(default_factory=list)
    connections: list[str] = field(default_factory=list)


SEALS: list[Seal] = []


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open" and SEALS:
        SEALS[-1].opened.append(str(arguments[0]))


sys.addaudithook(_watch)  # there is no way to remove one


@pytest.fixture
def sealed(monkeypatch: pytest.MonkeyPatch) -> Iterator[Seal]:
    """No connection can be opened, by any library, and what was tried is noted, since some libraries try again."""
    seal = Seal()

    def refused(*arguments: Any, **_: Any) -> Any:
        seal.connections.append(str(arguments))
        raise OSError(f"a connection was asked for: {arguments}")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refused)
    monkeypatch.setattr(socket, "getaddrinfo", refused)
    monkeypatch.setattr(socket, "create_connection", refused)
    monkeypatch.setattr(urllib.request, "urlopen", refused)
    for name in ("load", "load_state_dict_from_url", "download_url_to_file", "urlopen"):
        monkeypatch.setattr(torch.hub, name, refused)
    SEALS.append(seal)
    yield seal
    SEALS.remove(seal)


# As checkpoints refer to networks whose weights were published: all but the last asks for a download, that for a file.
PUBLISHED = [
    ("timm", {"architecture": "resnet10t", "pretrained": True, "classes": 3}),
    ("timm", {"architecture": "resnet10t.c3_in1k", "pretrained": True}),
    ("torchvision", {"architecture": "squeezenet1_1", "pretrained": "DEFAULT", "classes": 3}),
    ("torchvision", {"architecture": "squeezenet1_1", "pretrained": "SqueezeNet1_1_Weights.IMAGENET1K_V1"}),
    ("torchvision", {"architecture": "squeezenet1_1", "pretrained": "{folder}/other.pth", "classes": 3}),
]


def published(folder: Path, name: str, arguments: dict[str, Any]) -> tuple[ModelReference, nn.Module]:
    """A reference, and its network with random weights; beside them a file that may not be opened."""
    (folder / "other.pth").write_bytes(b"not to be read")
    given = {key: value.format(folder=folder) if isinstance(value, str) else value for key, value in arguments.items()}
    return ModelReference(name, given), checkpoint.without_weights(ModelReference(name, given))


@pytest.mark.parametrize(("name", "arguments"), PUBLISHED)
def test_loading_reads_the_checkpoint_and_nothing_else(
    tmp_path: Path, sealed: Seal, name: str, arguments: dict[str, Any]
) -> None:
    reference, model = published(tmp_path, name, arguments)
    checkpoint.save(tmp_path / "model.safetensors", model, reference)
    assert checkpoint.header_of(tmp_path / "model.safetensors")["reference"]["arguments"] == reference.arguments
    sealed.opened.clear()
    loaded = checkpoint.load(tmp_path / "model.safetensors").state_dict()
    assert all(torch.equal(value, loaded[key]) for key, value in model.state_dict().items())
    # As another run's recipe with the same [model] and these weights has it.
    loaded = checkpoint.build(reference, tmp_path / "model.safetensors").state_dict()
    assert all(torch.equal(value, loaded[key]) for key, value in model.state_dict().items())
    read = {file for file in sealed.opened if Path(file).suffix in (".pth", ".pt", ".bin", ".safetensors")}
    assert read <= {str(tmp_path / "model.safetensors")}
    assert not sealed.connections


@pytest.mark.parametrize(("name", "arguments"), PUBLISHED[2:])
def test_building_for_a_recipe_does_read_them(
    tmp_path: Path, sealed: Seal, name: str, arguments: dict[str, Any]
) -> None:
    """What the test before this one does not see, it would."""
    reference, _ = published(tmp_path, name, arguments)
    with pytest.raises((RunError, UserError)):
        checkpoint.build(reference)
    assert sealed.connections or str(tmp_path / "other.pth") in sealed.opened


def test_timm_is_asked_for_weights_by_a_recipe_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import timm

    asked: list[bool] = []
    create = timm.create_model

    def noted(*arguments: Any, pretrained: bool, **options: Any) -> Any:
        asked.append(pretrained)
        return create(*arguments, pretrained=False, **options)

    monkeypatch.setattr(timm, "create_model", noted)
    reference, model = published(tmp_path, *PUBLISHED[0])
    checkpoint.save(tmp_path / "model.safetensors", model, reference)
    checkpoint.load(tmp_path / "model.safetensors")
    checkpoint.build(reference, tmp_path / "model.safetensors")
    assert not any(asked)
    checkpoint.build(reference)
    assert asked[-1]


def test_pruned_checkpoints_read_nothing_else(tmp_path: Path, sealed: Seal) -> None:
    reference, model = published(tmp_path, *PUBLISHED[2])
    graph = channel_graph(model, torch.zeros(1, 3, 32, 32))
    group = next(group for group in graph.groups if not group.refusal)
    kept = tuple(range(0, group.width, 2))
    plan = Plan((GroupPlan(group.name, kept, group.width, len(kept), 0, 0, ""),), {}, 0, 0, graph.input_shape)
    smaller = prune(model, plan)
    checkpoint.save(tmp_path / "model.safetensors", smaller, reference, plan)
    for loaded in (
        checkpoint.load(tmp_path / "model.safetensors"),
        checkpoint.build(reference, tmp_path / "model.safetensors"),
    ):
        images = torch.randn(2, 3, 32, 32)
        with torch.no_grad():
            assert torch.equal(loaded(images), smaller(images))
    assert not sealed.connections


@pytest.mark.parametrize("architecture", ["hf-hub:timm/resnet10t", "local-dir:/etc", "resnet10t.hf-hub:timm/resnet10t"])
@pytest.mark.parametrize("pretrained", [False, True])
def test_timm_takes_no_addresses(tmp_path: Path, sealed: Seal, architecture: str, pretrained: bool) -> None:
    reference = ModelReference("timm", {"architecture": architecture, "pretrained": pretrained})
    checkpoint.save(tmp_path / "model.safetensors", lenet.build(), reference)
    with pytest.raises(UserError, match="timm has no network"):
        checkpoint.load(tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="timm has no network"):
        checkpoint.build(reference)
    assert not sealed.connections


def test_where_the_weights_alone_say_what_is_computed(tmp_path: Path, sealed: Seal) -> None:
    reference = ModelReference("torchvision", {"architecture": "googlenet", "pretrained": str(tmp_path / "own.pth")})
    checkpoint.save(tmp_path / "model.safetensors", lenet.build(), reference)
    with pytest.raises(UserError, match=r"give the network itself as load\(path, model\)"):
        checkpoint.load(tmp_path / "model.safetensors")
    assert str(tmp_path / "own.pth") not in sealed.opened


def test_a_checkpoint_names_no_data(tmp_path: Path) -> None:
    for name in ("datasets:digits", "digits", "infoprune.datasets.digits:load", "_parts"):
        checkpoint.save(tmp_path / "model.safetensors", lenet.build(), ModelReference(name, {}))
        with pytest.raises(UserError, match=r"no model|trust_code"):
            checkpoint.load(tmp_path / "model.safetensors")


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
    plan = storage.read_json(out / "plan.json")
    plan["groups"][0]["group"] = "../../../evil"
    plan["notes"] = ["../../evil"]
    storage.write_json(out / "plan.json", plan)
    assert call("prune", "digits", "--out", out, *QUICK)[0] == 2
    code, _ = call("analyze", "digits", "--out", out, "--set", "analyses.'../../evil'.x=1", *QUICK)
    assert code == 2
    assert {path for path in tmp_path.rglob("*") if "run" not in path.parts} == before


def test_a_run_opens_no_connection(tmp_path: Path, sealed: Seal) -> None:
    """Every step of the digits recipe, with sockets that do not connect and names that are not looked up."""
    code, said = call("run", "digits", "--out", tmp_path, *QUICK)
    assert code == 0, said
    assert not sealed.connections


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

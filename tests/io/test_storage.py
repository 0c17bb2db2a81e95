"""Files: whole or not at all, and never any unpickling of code."""

import json
import os
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from infoprune.analyses.base import Finding, Flag, Measure
from infoprune.errors import UserError
from infoprune.io import storage
from infoprune.io.encoding import from_json, to_json


class Bomb:
    """Would make a file when unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> object:
        return os.mkdir, (str(self.path),)


def test_hostile_pickle_is_refused_and_not_run(tmp_path: Path) -> None:
    torch.save({"weight": torch.ones(2), "bomb": Bomb(tmp_path / "ran")}, tmp_path / "bad.pth")
    with pytest.raises(UserError, match="reading it would run its code: refused"):
        storage.read_tensors(tmp_path / "bad.pth")
    assert not (tmp_path / "ran").exists()


def test_whole_model_pickle_is_refused(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "model.pt")
    with pytest.raises(UserError, match="refused"):
        storage.read_tensors(tmp_path / "model.pt")


def test_data_parallel_prefix_and_wrapping(tmp_path: Path) -> None:
    torch.save({"state_dict": {"module.weight": torch.ones(2)}, "epoch": 3}, tmp_path / "a.th")
    assert list(storage.read_tensors(tmp_path / "a.th")) == ["weight"]


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"\xff" * 100, b"PK\x03\x04 torn"])
def test_damaged_files(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"bad{suffix}"
    path.write_bytes(content)
    with pytest.raises(UserError, match="bad"):
        storage.read_tensors(path)


def test_truncated_safetensors(tmp_path: Path) -> None:
    path = tmp_path / "whole.safetensors"
    storage.write_tensors(path, {"weight": torch.randn(100)}, {"a": "b"})
    assert storage.read_metadata(path) == {"a": "b"}
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(UserError, match="cannot read weights"):
        storage.read_tensors(path)


def test_no_state_dict(tmp_path: Path) -> None:
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(UserError, match="holds no state_dict"):
        storage.read_tensors(tmp_path / "list.pth")
    with pytest.raises(UserError, match="no weights file"):
        storage.read_tensors(tmp_path / "missing.pth")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("bias"), "lacks bias"),
        (lambda w: w.update(more=torch.ones(1)), "has unknown more"),
        (lambda w: w.update(bias=torch.ones(3)), r"does not fit: bias is \(3,\), the model's \(2,\)"),
        (lambda w: w["weight"].fill_(torch.nan), "hold NaN or infinity in weight"),
    ],
)
def test_weights_that_do_not_fit_change_nothing(change: object, message: str) -> None:
    model, weights = nn.Linear(3, 2), nn.Linear(3, 2).state_dict()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    change(weights)
    with pytest.raises(UserError, match=message):
        storage.fit_weights(model, weights, "file")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_interrupted_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    storage.write_json(path, {"a": 1})

    def torn(temporary: Path) -> None:
        temporary.write_text("{")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        storage.write_atomically(path, torn)
    assert storage.read_json(path) == {"a": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["plan.json"]


def test_unwritable_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write .*choose another folder with --out"):
        storage.write_json(tmp_path / "file" / "plan.json", {})


@pytest.mark.parametrize("content", [b"{", b"[1]", b"\xff", b"", b"[" * 100_000, b'{"a": ' + b"1" * 5_000 + b"}"])
def test_unreadable_json(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "plan.json").write_bytes(content)
    with pytest.raises(UserError, match=r"plan\.json"):
        storage.read_json(tmp_path / "plan.json")


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.text()),
    lambda inner: st.one_of(st.lists(inner), st.dictionaries(st.text(), inner)),
    max_leaves=20,
)


@given(st.dictionaries(st.text(), JSON))
def test_pretty_json_is_json(value: dict[str, object]) -> None:
    assert json.loads(storage._pretty(value)) == value


@given(st.lists(st.floats(), min_size=1))
def test_findings_survive_json(scores: list[float]) -> None:
    measures = {"layer": {"I": Measure(torch.tensor(1.5), torch.tensor(1.0), torch.tensor(2.0))}}
    importance = {"layer": torch.tensor(scores, dtype=torch.float64)}
    finding = Finding("own", importance, {"layer": 3}, ("block",), measures, (Flag("layer", "undefined", "why"),))
    written = to_json(finding)
    assert json.loads(json.dumps(written, allow_nan=False)) == written
    read = from_json(written, Finding, "file")
    assert to_json(read) == written
    finite = importance["layer"].isfinite()
    assert torch.equal(read.importance["layer"][finite], importance["layer"][finite])


@pytest.mark.parametrize("field", ["analysis", "importance", "flags"])
def test_damaged_findings_are_named(field: str) -> None:
    value = {**to_json(Finding("own")), field: 3}
    with pytest.raises(UserError, match="'file' is no valid finding"):
        from_json(value, Finding, "file")

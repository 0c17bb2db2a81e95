"""Weights that are torn, wrong or absurd: refused in one message, or loaded and right; never half loaded."""

import json
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save
from torch import Tensor

from infoprune import checkpoint, store
from infoprune.errors import UserError

Weights = dict[str, Tensor]
NAMES = ["first.weight", "first.bias", "norm.weight", "norm.bias", "norm.running_mean", "norm.running_var"]
NAMES += ["second.weight", "second.bias", "head.weight", "head.bias"]
TYPES = [
    torch.float64,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int8,
    torch.uint8,
    torch.bool,
    torch.complex64,
]
FINE = (torch.float64, torch.float16, torch.bfloat16)
KINDS = (".safetensors", ".pth")


def write(path: Path, weights: Any) -> None:
    if path.suffix == ".pth":
        torch.save(weights, path)
    else:
        path.write_bytes(save({name: value.contiguous() for name, value in weights.items()}))


@pytest.fixture
def weights(workshop: Any) -> Weights:
    """Those of the workshop's network."""
    return store.read_tensors(workshop.weights)


def given(workshop: Any, path: Path) -> str:
    """What pruning with these weights says that refuses them; empty where it was done."""
    before = path.read_bytes()
    ending = workshop.step("prune", f"model.weights='{path}'")
    assert path.read_bytes() == before
    # The network may run where the file is not to blame in itself: then the message names the layer or the shape.
    assert ending.code == 0 or any(word in ending.said for word in (path.name, "layer", "shape")), ending.said
    return ending.said if ending.code else ""


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [0, 0.001, 0.01, 0.05, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99])
def test_torn(workshop: Any, weights: Weights, tmp_path: Path, kind: str, share: float) -> None:
    path = tmp_path / f"torn{kind}"
    write(path, weights)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    assert given(workshop, path)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("place", range(12))
def test_a_flipped_byte(workshop: Any, weights: Weights, tmp_path: Path, kind: str, place: int) -> None:
    """In the header it is found; in a number it cannot be, and what is made of it is proven all the same."""
    path = tmp_path / f"flipped{kind}"
    write(path, weights)
    content = bytearray(path.read_bytes())
    content[place * len(content) // 12] ^= 0xFF
    path.write_bytes(content)
    given(workshop, path)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NAMES)
def test_missing_and_misshapen(workshop: Any, weights: Weights, tmp_path: Path, kind: str, name: str) -> None:
    value, path = weights.pop(name), tmp_path / f"bad{kind}"
    write(path, weights)
    assert name in given(workshop, path)
    for wrong in (value[:-1], value[None], torch.zeros(0), value.flatten()[0], value.expand(2, *value.shape)):
        write(path, {**weights, name: wrong})
        assert name in given(workshop, path), wrong.shape


@pytest.mark.parametrize("name", NAMES)
def test_not_finite(workshop: Any, weights: Weights, tmp_path: Path, name: str) -> None:
    for number in (torch.nan, torch.inf, -torch.inf):
        value = weights[name].clone()
        value.view(-1)[-1] = number
        write(tmp_path / "bad.safetensors", {**weights, name: value})
        assert "NaN or infinity" in given(workshop, tmp_path / "bad.safetensors")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_types(workshop: Any, weights: Weights, tmp_path: Path, dtype: torch.dtype, kind: str) -> None:
    write(tmp_path / f"typed{kind}", {**weights, "first.weight": weights["first.weight"].to(dtype)})
    said = given(workshop, tmp_path / f"typed{kind}")
    assert bool(said) == (dtype not in FINE), said
    assert not said or "first.weight is of type" in said


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "name", ["more", "", "first", "first.weight.", "../../first.weight", "/etc/passwd", "a\x00b", "ü"]
)
def test_names(workshop: Any, weights: Weights, tmp_path: Path, kind: str, name: str) -> None:
    write(tmp_path / f"named{kind}", {**weights, name: torch.zeros(1)})
    assert given(workshop, tmp_path / f"named{kind}")
    assert {path.name for path in tmp_path.iterdir()} == {f"named{kind}"}  # no name became a path


CONTENTS: dict[str, Any] = {
    "a list": [torch.zeros(1)],
    "a number": 3,
    "nothing": {},
    "no tensors": {"first.weight": "x"},
    "numbers for names": {1: torch.zeros(1)},
    "a state_dict of nothing": {"state_dict": {}},
    "a state_dict of text": {"state_dict": "x"},
    "another network": {"conv.weight": torch.zeros(3, 3, 3, 3)},
    "a prefix alone": {"module.": torch.zeros(1)},
    "integers without a scale": {"first.q": torch.zeros(4, 1, 3, 3, dtype=torch.int8)},
    "a scale that does not fit": {"first.q": torch.zeros(4, 1, 3, 3, dtype=torch.int8), "first.scale": torch.ones(3)},
    "an endless view": {"first.weight": torch.zeros(1).expand(10**6, 10**6)},
    "sparse": {"first.weight": torch.zeros(4, 9).to_sparse()},
}


@pytest.mark.parametrize("name", CONTENTS)
def test_contents(workshop: Any, tmp_path: Path, name: str) -> None:
    torch.save(CONTENTS[name], tmp_path / "content.pth")
    assert given(workshop, tmp_path / "content.pth")


def header(value: Any, length: int | None = None, body: bytes = b"") -> bytes:
    """A safetensors file with any header."""
    text = value if isinstance(value, bytes) else json.dumps(value).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + body


def entry(dtype: str = "F32", shape: Any = (1,), ends: Any = (0, 4)) -> dict[str, Any]:
    return {"first.weight": {"dtype": dtype, "shape": shape, "data_offsets": ends}}


HEADERS = {
    "longer than the file": header({}, 2**40),
    "longer than any file": header({}, 2**64 - 1),
    "as long as the bound": header(b" " * 100, 100_000_001),
    "empty": header(b""),
    "no JSON": header(b"{{{{"),
    "a list": header([]),
    "deep": header(b"[" * 50_000),
    "absurd shape": header(entry(shape=(10**9, 10**9)), body=b"1234"),
    "a shape beyond 64 bits": header(entry(shape=(2**63, 2**63)), body=b"1234"),
    "a shape below zero": header(entry(shape=(-1,)), body=b"1234"),
    "a shape of text": header(entry(shape="x"), body=b"1234"),
    "an unknown type": header(entry(dtype="X9"), body=b"1234"),
    "ends beyond the file": header(entry(ends=(0, 10**12)), body=b"1234"),
    "ends before its start": header(entry(ends=(4, 0)), body=b"1234"),
    "more bytes than tensors": header(entry(), body=b"1234" * 100),
    "no ends": header({"first.weight": {"dtype": "F32", "shape": [1]}}, body=b"1234"),
    "metadata of numbers": header({"__metadata__": {"infoprune": 3}}),
    "a header of ours that is text": header({"__metadata__": {"infoprune": "x"}}),
    "a header of ours that is a list": header({"__metadata__": {"infoprune": "[]"}}),
    "a header of ours that is empty": header({"__metadata__": {"infoprune": "{}"}}),
    "another format": header({"__metadata__": {"infoprune": '{"format": 99}'}}),
}


@pytest.mark.parametrize("name", HEADERS)
def test_headers(workshop: Any, tmp_path: Path, name: str) -> None:
    (tmp_path / "bad.safetensors").write_bytes(HEADERS[name])
    assert given(workshop, tmp_path / "bad.safetensors")


def test_archives_that_unpack_to_more_than_they_are(workshop: Any, weights: Weights, tmp_path: Path) -> None:
    torch.save(weights, tmp_path / "plain.pth")
    with zipfile.ZipFile(tmp_path / "plain.pth") as plain, zipfile.ZipFile(tmp_path / "bomb.pth", "w") as bomb:
        for name in plain.namelist():
            bomb.writestr(name, plain.read(name), zipfile.ZIP_DEFLATED)
        bomb.writestr("archive/data/99", bytes(1 << 24), zipfile.ZIP_DEFLATED)
    assert "unpack to" in given(workshop, tmp_path / "bomb.pth")


def field(*path: str) -> Callable[[Any, Any], None]:
    def put(header: Any, value: Any) -> None:
        for key in path[:-1]:
            header = header[key]
        header[path[-1]] = value

    return put


OWN = [("format",), ("reference",), ("reference", "name"), ("reference", "arguments"), ("plan",), ("plan", "groups")]
OWN += [("plan", "input_shape"), ("plan", "removed"), ("plan", "refused"), ("plan", "macs_before")]
VALUES: list[Any] = [None, -1, 10**30, "x", "../nets.py:net", [], [-1], {}, {"x": 1}, True]


@pytest.mark.parametrize("path", OWN, ids=".".join)
def test_headers_of_our_own(workshop: Any, tmp_path: Path, path: tuple[str, ...]) -> None:
    """`load` builds what a header names: every field changed, it refuses."""
    assert workshop.step("prune").code == 0
    source, file = workshop.out / "pruned.safetensors", tmp_path / "own.safetensors"
    tensors, whole = store.read_tensors(source), checkpoint.header_of(source)
    for value in VALUES:
        changed = json.loads(json.dumps(whole))
        field(*path)(changed, value)
        store.write_tensors(file, tensors, {checkpoint.KEY: json.dumps(changed)})
        given(workshop, file)
        with pytest.raises(UserError):  # since it names code of a user's own, whatever else it says
            checkpoint.load(file)

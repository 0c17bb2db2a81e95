"""Weights that are torn, wrong or absurd: refused in one message, or loaded and right; never half loaded."""

import json
import struct
import time
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save
from torch import Tensor

from infoprune.errors import UserError
from infoprune.evaluation.metrics import ModelReference
from infoprune.io import bounds, checkpoint, storage
from infoprune.planning.plan import GroupPlan, Plan
from infoprune.pruning.channel_graph import channel_graph
from infoprune.pruning.prune import prune

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
    return storage.read_tensors(workshop.weights)


def given(workshop: Any, path: Path) -> str:
    """What pruning with these weights says that refuses them; empty where it was done."""
    before = path.read_bytes()
    ending = workshop.step("prune", f"model.weights='{path}'")
    assert path.read_bytes() == before
    # The network may run where the file is not to blame in itself: then the message names the layer or the shape.
    assert ending.code == 0 or any(word in ending.said for word in (path.name, "layer", "shape")), ending.said
    return ending.said if ending.code else ""


def built(workshop: Any, path: Path) -> Weights:
    """The weights of the workshop's network as it is built with those of a file."""
    return dict(checkpoint.build(ModelReference(f"{workshop.folder}/nets.py:net"), path).state_dict())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [0, 0.001, 0.01, 0.05, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99])
def test_torn(workshop: Any, weights: Weights, tmp_path: Path, kind: str, share: float) -> None:
    path = tmp_path / f"torn{kind}"
    write(path, weights)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    assert given(workshop, path)


def numbers_at(path: Path, weights: Weights) -> dict[str, range]:
    """Where in a file the numbers of each tensor lie."""
    content, found = path.read_bytes(), {}
    for name, value in weights.items():
        raw = value.contiguous().numpy().tobytes()
        assert content.count(raw) == 1, f"the numbers of {name} are no mark of it"
        found[name] = range(content.index(raw), content.index(raw) + len(raw))
    return found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NAMES)
def test_a_flipped_byte_of_a_number(workshop: Any, weights: Weights, tmp_path: Path, kind: str, name: str) -> None:
    """It cannot be told from a number: exactly that number is another one, unless it is none any more."""
    path = tmp_path / f"flipped{kind}"
    weights = {each: torch.rand_like(value) + 0.5 for each, value in weights.items() if value.is_floating_point()}
    write(path, weights)
    for byte in range(4):
        content, place = bytearray(path.read_bytes()), numbers_at(path, weights)[name].start
        content[place + byte] ^= 0xFF
        (other := path.with_stem("other")).write_bytes(content)
        changed = torch.frombuffer(content[place : place + 4], dtype=torch.float32)[0]
        if not changed.isfinite():
            assert f"NaN or infinity in {name}" in given(workshop, other)
            continue
        expected = {**weights, name: weights[name].clone()}
        expected[name].view(-1)[0] = changed
        found = built(workshop, other)
        assert all(torch.equal(found[each], value) for each, value in expected.items())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [each / 40 for each in range(40)])
def test_a_flipped_byte_elsewhere(workshop: Any, weights: Weights, tmp_path: Path, kind: str, share: float) -> None:
    """In a header of safetensors it is found; of an archive not all is read, but then all numbers are as before."""
    path = tmp_path / f"flipped{kind}"
    write(
        path, weights := {each: torch.rand_like(value) for each, value in weights.items() if value.is_floating_point()}
    )
    content, numbers = bytearray(path.read_bytes()), numbers_at(path, weights).values()
    places = [place for place in range(len(content)) if not any(place in own for own in numbers)]
    content[places[int(share * len(places))]] ^= 0xFF
    path.write_bytes(content)
    try:
        found = built(workshop, path)
    except UserError:
        assert given(workshop, path)
    else:
        assert kind == ".pth"
        assert all(torch.equal(found[each], value) for each, value in weights.items())


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
}


@pytest.mark.parametrize("name", CONTENTS)
def test_contents(workshop: Any, tmp_path: Path, name: str) -> None:
    torch.save(CONTENTS[name], tmp_path / "content.pth")
    assert given(workshop, tmp_path / "content.pth")


class Tagged(Tensor):
    """A tensor of another class, which torch would rebuild by calling it."""


def odd(kind: str) -> Tensor:
    """A tensor of the first layer's shape that is not laid out number by number, or of a rare type."""
    plain = torch.rand(4, 1, 3, 3)
    return {
        "float8 e4m3": lambda: plain.to(torch.float8_e4m3fn),
        "float8 e5m2": lambda: plain.to(torch.float8_e5m2),
        "float8 e8m0": lambda: plain.to(torch.float8_e8m0fnu),
        "float4": lambda: torch.zeros(4, 1, 3, 3, dtype=torch.uint8).view(torch.float4_e2m1fn_x2),
        "complex": lambda: plain.to(torch.complex64),
        "no axis": lambda: torch.tensor(1.0),
        "uint64": lambda: torch.zeros(4, 1, 3, 3, dtype=torch.uint64),
        "sparse": lambda: plain.to_sparse(),
        "sparse rows": lambda: plain.flatten(1).to_sparse_csr(),
        "quantized": lambda: torch.quantize_per_tensor(plain, 0.1, 0, torch.qint8),
        "quantized by channel": lambda: torch.quantize_per_channel(
            plain, torch.ones(4), torch.zeros(4, dtype=torch.int64), 0, torch.quint8
        ),
        "without data": lambda: torch.empty(4, 1, 3, 3, device="meta"),
        "beyond float32": lambda: plain.double() * 1e300,
        "conjugate": lambda: plain.to(torch.complex64).conj(),
    }[kind]()


STRIDED = ("float8 e4m3", "float8 e5m2", "float8 e8m0", "float4", "complex", "no axis", "uint64", "beyond float32")
ODD = [*STRIDED, "sparse", "sparse rows", "quantized", "quantized by channel", "without data", "conjugate"]


@pytest.mark.filterwarnings("ignore")  # torch's about sparse and quantized tensors, as they are made here
@pytest.mark.parametrize(
    ("kind", "suffix"), [*((kind, ".pth") for kind in ODD), *((kind, ".safetensors") for kind in STRIDED)]
)
def test_odd_tensors(workshop: Any, weights: Weights, tmp_path: Path, kind: str, suffix: str) -> None:
    """Those of eight bits that stand for floating-point numbers are weights, all others are named and refused."""
    path = tmp_path / f"odd{suffix}"
    write(path, {**weights, "first.weight": (value := odd(kind))})
    if kind.startswith("float8"):
        assert not given(workshop, path)
        assert torch.equal(built(workshop, path)["first.weight"], value.float())
    else:
        assert "first.weight" in given(workshop, path)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", [kind for kind in ODD if not kind.startswith("float8")])
def test_odd_tensors_that_no_weight_is_named_after(workshop: Any, weights: Weights, tmp_path: Path, kind: str) -> None:
    """Also as batch counters, which are no floating-point numbers, and as the two halves of a quantised weight."""
    for name in ("norm.num_batches_tracked", "second.q", "second.scale"):
        write(tmp_path / "odd.pth", {**weights, name: odd(kind)})
        assert given(workshop, tmp_path / "odd.pth")


def quantised(weights: Weights, values: Tensor, scale: Tensor) -> Weights:
    """The weights with those of the first layer as integers times a scale."""
    rest = {name: value for name, value in weights.items() if name != "first.weight"}
    return {**rest, "first.q": values, "first.scale": scale}


INTEGERS = torch.arange(36, dtype=torch.int8).view(4, 1, 3, 3)


@pytest.mark.parametrize(
    ("values", "scale"),
    [
        (torch.tensor(1, dtype=torch.int8), torch.ones(1)),
        (torch.zeros(0, dtype=torch.int8), torch.ones(1)),
        (INTEGERS, torch.ones(4, dtype=torch.int64)),
        (INTEGERS, torch.ones(4, dtype=torch.complex64)),
        (INTEGERS, torch.full((4,), torch.nan)),
        (INTEGERS, torch.ones(0)),
        (torch.zeros(1, dtype=torch.int8).expand(10**6, 10**6), torch.ones(1)),
    ],
    ids=str,
)
def test_integers_and_scales_that_do_not_fit(
    workshop: Any, weights: Weights, tmp_path: Path, values: Tensor, scale: Tensor
) -> None:
    torch.save(quantised(weights, values, scale), tmp_path / "quantised.pth")
    assert given(workshop, tmp_path / "quantised.pth")


def test_integers_and_scales_that_fit(workshop: Any, weights: Weights, tmp_path: Path) -> None:
    scales = torch.tensor([[1.0, 9.0], [2.0, 9.0], [3.0, 9.0], [4.0, 9.0]])[:, 0]  # one that is not contiguous
    for scale in (scales, torch.tensor(0.5), scales.to(torch.float16), scales.to(torch.float8_e4m3fn)):
        torch.save(quantised(weights, INTEGERS, scale), tmp_path / "quantised.pth")
        found = built(workshop, tmp_path / "quantised.pth")["first.weight"]
        assert torch.equal(found, INTEGERS.float() * scale.float().reshape(-1, 1, 1, 1))
    torch.save({**quantised(weights, INTEGERS, scales), "first.weight": torch.zeros(1)}, tmp_path / "both.pth")
    assert "beside 'first.weight'" in given(workshop, tmp_path / "both.pth")


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
    tensors, whole = storage.read_tensors(source), checkpoint.header_of(source)
    for value in VALUES:
        changed = json.loads(json.dumps(whole))
        field(*path)(changed, value)
        storage.write_tensors(file, tensors, {checkpoint.KEY: json.dumps(changed)})
        given(workshop, file)
        with pytest.raises(UserError):  # since it names code of a user's own, whatever else it says
            checkpoint.load(file)


def refused_soon(path: Path, reference: ModelReference, words: str) -> None:
    """A checkpoint of one small tensor and any reference is refused before anything large is made of it."""
    storage.write_tensors(path, {"conv1.weight": torch.ones(1, 1, 1, 1)}, checkpoint.metadata(reference))
    began = time.monotonic()
    with pytest.raises(UserError, match=words):
        checkpoint.load(path)
    assert time.monotonic() - began < 5


LARGE = [
    ("cifar_resnet", {"depth": 1994}),
    ("cifar_resnet", {"depth": 1994, "shortcut": "projection"}),
    ("cifar_resnet", {"widths": [60_000, 60_000, 60_000], "depth": 8}),
    ("vgg", {"widths": [60_000] * 13}),
    ("convac", {"size": 256, "patch": 2, "widths": [60_000] * 8}),
    ("mobilenet_v2", {"classes": 1_000_000}),
    ("torchvision", {"architecture": "resnet50", "classes": 1_000_000}),
    ("torchvision", {"architecture": "regnet_y_128gf"}),
    ("timm", {"architecture": "resnet50", "classes": 1_000_000}),
]


@pytest.mark.parametrize(("name", "arguments"), LARGE, ids=str)
def test_networks_beyond_what_a_file_holds(tmp_path: Path, name: str, arguments: dict[str, Any]) -> None:
    refused_soon(tmp_path / "large.safetensors", ModelReference(name, arguments), "asks for a network of more than")


@pytest.mark.parametrize("levels", [9, 200])
def test_arguments_beyond_reading(tmp_path: Path, levels: int) -> None:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    refused_soon(tmp_path / "deep.safetensors", ModelReference("lenet", {"classes": value}), "damaged header")
    refused_soon(tmp_path / "long.safetensors", ModelReference("lenet", {"x" * 200_000: 1}), "damaged header")


def test_a_header_of_endless_levels(tmp_path: Path) -> None:
    for text in ("[" * 10**6, '{"format": 1, "reference": ' + "[" * 10**6, '{"format": 1' + "0" * 10**6 + "}"):
        storage.write_tensors(tmp_path / "deep.safetensors", {}, {checkpoint.KEY: text})
        with pytest.raises(UserError):
            checkpoint.load(tmp_path / "deep.safetensors")


@pytest.fixture
def small() -> tuple[ModelReference, Any, Weights]:
    """A small network of ours, a plan that cuts it, and the weights that are left."""
    reference = ModelReference("cifar_resnet", {"depth": 8, "input_channels": 1})
    model = checkpoint.build(reference)
    graph = channel_graph(model, torch.zeros(1, 1, 16, 16))
    group = next(group for group in graph.groups if not group.refusal)
    plan = Plan((GroupPlan(group.name, (0, 3), group.width, 2, 0, 0, ""),), {}, 0, 0, graph.input_shape)
    return reference, plan, dict(prune(model, plan).state_dict())


@pytest.mark.parametrize("path", [*OWN, ("plan", "notes"), ("plan", "ranked_by")], ids=".".join)
def test_headers_of_a_network_of_ours(tmp_path: Path, small: Any, path: tuple[str, ...]) -> None:
    """What rebuilding needs is refused where it is anything else; what it does not need changes no number."""
    reference, plan, weights = small
    file, whole = tmp_path / "own.safetensors", json.loads(checkpoint.metadata(reference, plan)[checkpoint.KEY])
    loaded = []
    for value in VALUES:
        changed = json.loads(json.dumps(whole))
        field(*path)(changed, value)
        storage.write_tensors(file, weights, {checkpoint.KEY: json.dumps(changed)})
        try:
            found = checkpoint.load(file).state_dict()
        except UserError:
            continue
        assert all(torch.equal(found[name], value) for name, value in weights.items())
        loaded.append(value)
    harmless = {"macs_before": [10**30], "removed": [[]], "notes": [[]], "ranked_by": ["x", "../nets.py:net"]}
    harmless |= {"refused": [{}], "format": [True]}
    assert loaded == harmless.get(path[-1], [])


SHAPES = [(1, 32_768, 32_768), (1, 8_192, 8_192), (1, 2**40, 2**40), (1,) * 100_000, (1, 0, 16), (1, -1, 16), ()]


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: str(shape)[:30])
def test_inputs_beyond_computing(tmp_path: Path, small: Any, shape: tuple[int, ...]) -> None:
    reference, plan, weights = small
    path = tmp_path / "wide.safetensors"
    storage.write_tensors(path, weights, checkpoint.metadata(reference, replace(plan, input_shape=shape)))
    for take in (lambda: checkpoint.load(path), lambda: checkpoint.build(reference, path)):
        began = time.monotonic()
        with pytest.raises(UserError, match=r"input_shape is|for inputs of shape"):
            take()
        assert time.monotonic() - began < 5


@pytest.mark.parametrize("change", ["missing", "unknown", "larger", "another number of axes"])
def test_weights_that_no_cut_leaves(tmp_path: Path, small: Any, change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are found out before the plan is replayed, which takes long in a deep network."""
    reference, plan, weights = small
    name = "layer1.0.conv1.weight"
    if change == "missing":
        del weights[name]
    else:
        shape = {"larger": (99, 1, 3, 3), "another number of axes": (1, 1)}.get(change, (1,))
        weights["layer9" if change == "unknown" else name] = torch.zeros(shape)
    storage.write_tensors(tmp_path / "rest.safetensors", weights, checkpoint.metadata(reference, plan))
    monkeypatch.setattr(checkpoint, "prune", lambda *_: pytest.fail("the plan was replayed"))
    with pytest.raises(UserError, match=r"lacks layer1|has unknown layer9|more than the unpruned network of layer1"):
        checkpoint.load(tmp_path / "rest.safetensors")


def test_trust_lifts_the_bounds(tmp_path: Path, small: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    reference, plan, weights = small
    path = tmp_path / "small.safetensors"
    storage.write_tensors(path, weights, checkpoint.metadata(reference, plan))
    expected = {name: value.clone() for name, value in checkpoint.load(path).state_dict().items()}
    for name, value in (("OUTPUTS", 10), ("MACS", 10), ("NUMBERS", 10), ("TENSORS", 0)):
        with monkeypatch.context() as patch:
            patch.setattr(bounds, name, value)
            patch.setattr(bounds, f"TIMES_{name}", 0, raising=False)
            with pytest.raises(UserError, match="trust_code=True"):
                checkpoint.load(path)
            found = checkpoint.load(path, trust_code=True).state_dict()
            assert all(torch.equal(value, found[name]) for name, value in expected.items())


def test_a_proof_that_is_missing_or_damaged(workshop: Any, tmp_path: Path) -> None:
    assert workshop.step("prune").code == 0
    source = workshop.out / "pruned.safetensors"
    tensors, header = storage.read_tensors(source), checkpoint.header_of(source)
    assert checkpoint.proof_of(source).max_rel_difference <= 1e-5
    for value in (None, [], {}, "x", {"max_rel_difference": "x"}):
        file = tmp_path / "pruned.safetensors"
        storage.write_tensors(file, tensors, {checkpoint.KEY: json.dumps({**header, "verification": value})})
        with pytest.raises(UserError, match="damaged header"):
            checkpoint.proof_of(file)

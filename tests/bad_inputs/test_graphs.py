"""Graphs that torch-pruning fails at or misreads: each group is cut and proven, or stays whole with the reason."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch_pruning as tp
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence

from infoprune.errors import RunError, UserError
from infoprune.graph import dependency
from infoprune.planning.latency import measure_timings
from infoprune.planning.plan import GroupPlan, Plan
from infoprune.pruning import channel_graph as pruning
from infoprune.pruning.channel_graph import channel_graph
from infoprune.pruning.prune import prune
from infoprune.pruning.verify import verify
from infoprune.repairing.repair import repair

Prove = Callable[..., tuple[nn.Module, dict[str, str]]]
IMAGES = (4, 3, 8, 8)
OUTPUT = "network's output"
TRIAL = "trial cut fails"


class Net(nn.Module):
    """Two convolutions of 8 and 6 filters, and further parts, for a forward that is given."""

    def __init__(self, forward: Callable[[Any, Tensor], object], **parts: nn.Module) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 6, 3, padding=1)
        for name, part in parts.items():
            self.add_module(name, part)
        self.run = forward

    def forward(self, images: Tensor) -> object:
        return self.run(self, images)


def maps(net: Any, images: Tensor) -> Tensor:
    return F.relu(net.two(F.relu(net.one(images))))


def steps(net: Any, images: Tensor) -> Tensor:
    """The maps as a sequence along their columns."""
    return maps(net, images).mean(2).transpose(1, 2)


def packed(net: Any, images: Tensor) -> Tensor:
    lengths = torch.full((len(images),), 8)
    return net.head(net.rnn(pack_padded_sequence(steps(net, images), lengths, batch_first=True))[1][-1])


def by_cells(net: Any, images: Tensor) -> Tensor:
    state = None
    for step in steps(net, images).unbind(1):
        state = net.rnn(step, state)
    return net.head(state[0] if isinstance(state, tuple) else state)


def rows(net: Any, images: Tensor) -> Tensor:
    return net.head(net.rnn(maps(net, images).permute(0, 3, 1, 2).flatten(2))[0][:, -1])


def last(net: Any, images: Tensor) -> Tensor:
    return net.head(net.rnn(steps(net, images))[0][:, -1])


RECURRENT: dict[str, tuple[Callable[[Any, Tensor], Tensor], Callable[[], nn.Module], int]] = {
    "GRU": (last, lambda: nn.GRU(6, 5, batch_first=True), 5),
    "GRU as wide as what it reads": (last, lambda: nn.GRU(6, 6, batch_first=True), 6),
    "GRU over rows": (rows, lambda: nn.GRU(48, 5, batch_first=True), 5),
    "GRU both ways": (last, lambda: nn.GRU(6, 5, batch_first=True, bidirectional=True), 10),
    "GRUCell": (by_cells, lambda: nn.GRUCell(6, 5), 5),
    "LSTM": (last, lambda: nn.LSTM(6, 5, batch_first=True), 5),
    "LSTM both ways, two layers": (last, lambda: nn.LSTM(6, 5, 2, batch_first=True, bidirectional=True), 10),
    "LSTMCell": (by_cells, lambda: nn.LSTMCell(6, 5), 5),
    "RNN": (last, lambda: nn.RNN(6, 5, batch_first=True), 5),
    "GRU of packed sequences": (packed, lambda: nn.GRU(6, 5, batch_first=True), 5),
}


@pytest.mark.parametrize("name", RECURRENT)
def test_what_a_recurrent_layer_reads_stays_whole_and_the_rest_is_cut(name: str, prove: Prove) -> None:
    forward, rnn, width = RECURRENT[name]
    model = Net(forward, rnn=rnn(), head=nn.Linear(width, 4)).eval()
    pruned, refused = prove(model, torch.randn(IMAGES))
    assert refused.pop("two") == f"'rnn' is a {type(model.rnn).__name__}, whose channels cannot be counted"
    assert list(refused) == ["head"]
    assert pruned.one.weight.shape == (4, 3, 3, 3)
    assert pruned.two.weight.shape == (6, 4, 3, 3)


def head(net: Any, channels: Tensor) -> Tensor:
    return net.head(F.relu(net.two(channels)).mean((2, 3)))


def reads(net: Any, channels: Tensor) -> Tensor:
    return net.reader(channels).flatten(2).mean(2)


def one(net: Any, images: Tensor) -> Tensor:
    return F.relu(net.one(images))


def stacked(net: Any, images: Tensor) -> Tensor:
    return net.reader(torch.stack([maps(net, images), net.two(net.one(images))], 2)).mean((2, 3, 4))


def halves(net: Any, images: Tensor) -> Tensor:
    return head(net, torch.cat([part * (1 + i) for i, part in enumerate(one(net, images).split([1, 5, 2], 1))], 1))


def thirds(net: Any, images: Tensor) -> Tensor:
    return head(net, torch.cat([part * (1 + i) for i, part in enumerate(one(net, images).chunk(3, 1))], 1))


def two_sizes(net: Any, images: Tensor) -> Tensor:
    return head(net, one(net, images)) + head(net, one(net, F.avg_pool2d(images, 2)))


def bilinear(net: Any, images: Tensor) -> Tensor:
    pooled = maps(net, images).mean((2, 3))
    return net.pairs(pooled, pooled)


def attended(net: Any, images: Tensor) -> Tensor:
    heads = one(net, images).reshape(len(images), 2, 4, 64).transpose(2, 3)
    mixed = F.scaled_dot_product_attention(heads, heads, heads).transpose(2, 3)
    return head(net, mixed.reshape(len(images), 8, 8, 8))


def lifted(net: Any, images: Tensor) -> Tensor:
    inner = net.deeper(F.relu(net.deep(images.unsqueeze(2))))
    return head(net, inner.squeeze(2) + one(net, images))


def gated(net: Any, images: Tensor) -> Tensor:
    gate = net.bag((images.flatten(1) > 0).long())
    return head(net, one(net, images) * gate[:, :, None, None])


def reader(channels: int) -> dict[str, Callable[[], nn.Module]]:
    return {"reader": lambda: nn.Conv2d(channels, 4, 1)}


HEAD: dict[str, Callable[[], nn.Module]] = {"head": lambda: nn.Linear(6, 4)}
VOLUME: dict[str, Callable[[], nn.Module]] = {
    "deep": lambda: nn.Conv3d(3, 5, (1, 3, 3), padding=(0, 1, 1)),
    "deeper": lambda: nn.Conv3d(5, 8, 1),
    **HEAD,
}
PERMUTATION = torch.tensor([3, 1, 4, 0, 5, 2, 7, 6])
# A forward, further parts, why groups stay whole, and the groups that are cut (and proven by the fixture).
GRAPHS: dict[str, tuple[Callable[[Any, Tensor], object], dict[str, Any], dict[str, str], set[str]]] = {
    "channels last and back": (
        lambda net, x: head(net, one(net, x).permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)),
        HEAD,
        {},
        {"one", "two"},
    ),
    "a convolution over reshaped channels": (
        lambda net, x: head(net, net.mid(one(net, x).reshape(-1, 16, 4, 8)).reshape(-1, 8, 8, 8)),
        {"mid": lambda: nn.Conv2d(16, 16, 1), **HEAD},
        {"one": TRIAL, "mid": "padded, rearranged or mixed"},
        {"two"},
    ),
    "a convolution across channels": (
        lambda net, x: head(net, net.mid(one(net, x).transpose(1, 2)).transpose(1, 2)),
        {"mid": lambda: nn.Conv2d(8, 8, 3, padding=1), **HEAD},
        {"one": TRIAL, "mid": TRIAL},
        {"two"},
    ),
    "index_select": (lambda net, x: head(net, one(net, x).index_select(1, PERMUTATION)), HEAD, {"one": TRIAL}, {"two"}),
    "fancy indices": (lambda net, x: head(net, one(net, x)[:, PERMUTATION]), HEAD, {"one": TRIAL}, {"two"}),
    "a boolean mask": (
        lambda net, x: reads(net, maps(net, x)[:, [True, False] * 3]),
        reader(3),
        {"two": "padded or repeated"},
        {"one"},
    ),
    "sorted channels": (lambda net, x: head(net, one(net, x).sort(1)[0]), HEAD, {"one": TRIAL}, {"two"}),
    "chunks of unequal size": (thirds, HEAD, {"one": "no layer that reads its channels"}, {"two"}),
    "a split into unequal parts": (halves, HEAD, {"one": TRIAL}, {"two"}),
    "a part of the channels": (
        lambda net, x: reads(net, maps(net, x)[:, 1:5]),
        reader(4),
        {"two": "padded, sliced or shared unevenly"},
        {"one"},
    ),
    "the last channels": (
        lambda net, x: reads(net, maps(net, x)[:, -3:]),
        reader(3),
        {"two": "no layer that reads its channels"},
        {"one"},
    ),
    "unbind": (lambda net, x: head(net, torch.stack(one(net, x).unbind(1), 1)), HEAD, {}, {"one", "two"}),
    "unbind, used in part": (
        lambda net, x: reads(net, torch.stack(maps(net, x).unbind(1)[:3], 1)),
        reader(3),
        {"two": "padded or repeated"},
        {"one"},
    ),
    "a stack over a new axis": (stacked, {"reader": lambda: nn.Conv3d(6, 6, 1)}, {}, {"one", "two"}),
    "a concatenation with itself": (
        lambda net, x: reads(net, torch.cat([y := maps(net, x), y], 1)),
        reader(12),
        {},
        {"one", "two"},
    ),
    "a concatenation with images": (
        lambda net, x: reads(net, torch.cat([x, maps(net, x), x], 1)),
        reader(12),
        {"two": TRIAL},
        {"one"},
    ),
    "repeat": (lambda net, x: reads(net, maps(net, x).repeat(1, 2, 1, 1)), reader(12), {"two": TRIAL}, {"one"}),
    "repeat_interleave": (
        lambda net, x: reads(net, maps(net, x).repeat_interleave(2, 1)),
        reader(12),
        {"two": "no layer that reads its channels"},
        {"one"},
    ),
    "expand and flatten": (
        lambda net, x: reads(net, maps(net, x).unsqueeze(2).expand(-1, -1, 2, -1, -1).flatten(1, 2)),
        reader(12),
        {"two": "no layer that reads its channels"},
        {"one"},
    ),
    "unflatten": (
        lambda net, x: reads(net, maps(net, x).unflatten(1, (3, 2))),
        {"reader": lambda: nn.Conv3d(3, 4, 1)},
        {"two": "padded, rearranged or mixed"},
        {"one"},
    ),
    "pixel_shuffle": (
        lambda net, x: reads(net, F.pixel_shuffle(net.mid(maps(net, x)), 2)),
        {"mid": lambda: nn.Conv2d(6, 8, 1), **reader(2)},
        {"mid": "padded or repeated"},
        {"one", "two"},
    ),
    "einsum that mixes channels": (
        lambda net, x: head(net, torch.einsum("nchw,cd->ndhw", one(net, x), torch.ones(8, 8).triu())),
        HEAD,
        {"one": TRIAL},
        {"two"},
    ),
    "attention over heads": (attended, HEAD, {"one": TRIAL}, {"two"}),
    "a bilinear layer": (
        bilinear,
        {"pairs": lambda: nn.Bilinear(6, 6, 4)},
        {"two": "padded or repeated"},
        {"one"},
    ),
    "a gate from an embedding": (gated, {"bag": lambda: nn.EmbeddingBag(2, 8), **HEAD}, {}, {"one", "two"}),
    "layers that run on two sizes": (two_sizes, HEAD, {}, {"one", "two"}),
    "three dimensions": (lifted, VOLUME, {}, {"one", "two", "deep", "deeper"}),
    "a mapping of outputs": (
        lambda net, x: {"logits": head(net, one(net, x)), "more": [x, None]},
        HEAD,
        {},
        {"one", "two"},
    ),
    "an input by keyword": (
        lambda net, x: net.head(F.relu(net.two(input=one(net, x))).mean((2, 3))),
        HEAD,
        {"one": "'two' is called with its input by keyword", "two": "'two' is called with its input by keyword"},
        set(),
    ),
}


@pytest.mark.parametrize("name", GRAPHS)
def test_groups_are_cut_and_proven_or_stay_whole_with_the_reason(name: str, prove: Prove) -> None:
    forward, parts, reasons, cut = GRAPHS[name]
    model = Net(forward, **{part: make() for part, make in parts.items()}).eval()
    pruned, refused = prove(model, torch.randn(IMAGES))
    for layer, reason in reasons.items():
        assert re.search(reason, refused[layer])
    for layer in cut:
        assert layer not in refused
        width = len(model.get_submodule(layer).weight)
        assert len(pruned.get_submodule(layer).weight) == round(width / 2)
    assert all(OUTPUT in refused[layer] for layer in refused if layer not in reasons)


class Several(nn.Module):
    """Two inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 2, 1)

    def forward(self, one: Tensor, other: Tensor) -> Tensor:
        return self.head(self.conv(one) - self.conv(other))


class Tupled(nn.Conv2d):
    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        return super().forward(images), images


class Weightless(nn.Linear):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        del self.weight
        self.own = nn.Parameter(torch.randn(outputs, inputs))

    def forward(self, values: Tensor) -> Tensor:
        return F.linear(values, self.own)


def in_place(net: Any, images: Tensor) -> Tensor:
    net.one.bias.clamp_(-9, 9)
    return head(net, one(net, images))


MODELS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "no parameters": (lambda: nn.Sequential(nn.ReLU(), nn.Flatten()), "runs no convolution or linear layer"),
    "an output that ignores the images": (
        lambda: Net(lambda net, x: torch.ones(len(x), 3)),
        "runs no convolution or linear layer",
    ),
    "two inputs": (Several, r"does not run on an input of shape \(2, 3, 8, 8\): .* positional argument: 'other'"),
    "an empty output": (lambda: Net(lambda net, x: maps(net, x)[:0]), "puts out no number"),
    "an output of other things": (lambda: Net(lambda net, x: [maps(net, x), "x"]), "puts out a str; expected a tensor"),
    "a layer that puts out a tuple": (
        lambda: Net(lambda net, x: head(net, net.own(x)[0]), own=Tupled(3, 8, 1), head=nn.Linear(6, 4)),
        "layer 'own', a Tupled, puts out a tuple; expected",
    ),
    "a layer without its weight": (
        lambda: Net(lambda net, x: net.own(maps(net, x).mean((2, 3))), own=Weightless(6, 4)),
        "layer 'own', a Weightless, has no weight; expected",
    ),
    "parameters changed in place": (
        lambda: Net(in_place, head=nn.Linear(6, 4)),
        "runs without gradients, but not with them .*in-place operation.*; change parameters in place only under",
    ),
    "one layer cut off from the output": (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 8), nn.Flatten(), _Detached()),
        r"torch-pruning cannot trace this model \(no gradient reaches its output\); such an architecture .* Give a",
    ),
    "old weight norm": (
        lambda: nn.Sequential(_run(nn.utils.weight_norm, nn.Conv2d(3, 8, 3)), nn.ReLU(), nn.Conv2d(8, 2, 1)),
        "cannot be copied .*weight_norm",
    ),
}


class _Detached(nn.Module):
    def forward(self, values: Tensor) -> Tensor:
        return values.detach()


def _run(wrap: Any, layer: nn.Module) -> nn.Module:
    """A layer under an old-style normalisation, whose weight has been computed once."""
    wrapped: nn.Module = wrap(layer)
    wrapped(torch.randn(IMAGES))
    return wrapped


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_models_that_no_graph_is_made_of_are_refused_in_words(name: str) -> None:
    make, message = MODELS[name]
    with pytest.raises(UserError, match=message):
        channel_graph(make().eval(), torch.randn(IMAGES))


ERRORS = (IndexError, KeyError, AttributeError, AssertionError, RuntimeError, RecursionError, ValueError, TypeError)
ERRORS += (ZeroDivisionError, NotImplementedError)


def plain() -> nn.Module:
    """Layers that feed each other, the first through a sum, which the library follows, and nothing else does."""

    def forward(net: Any, images: Tensor) -> Tensor:
        return head(net, one(net, images) + net.side(images))

    return Net(forward, side=nn.Conv2d(3, 8, 1), head=nn.Linear(6, 4)).eval()


@pytest.mark.parametrize("error", ERRORS)
def test_what_the_library_raises_on_the_way_refuses_that_group_alone(
    error: type[Exception], monkeypatch: pytest.MonkeyPatch, prove: Prove
) -> None:
    found = tp.DependencyGraph.get_in_channels

    def failing(graph: tp.DependencyGraph, node: Any) -> int | None:
        if getattr(node, "name", "").startswith("two"):
            raise error("its tables")
        width: int | None = found(graph, node)
        return width

    monkeypatch.setattr(tp.DependencyGraph, "get_in_channels", failing)
    pruned, refused = prove(plain(), torch.randn(IMAGES))
    told = re.escape(f"({error.__name__}: ")
    assert re.search(f"torch-pruning cannot count the channels of 'two' {told}.*its tables", refused["one"])
    assert sorted(refused) == ["head", "one"]
    assert pruned.two.out_channels == 3


@pytest.mark.parametrize("error", ERRORS)
def test_what_the_library_raises_while_it_traces_leaves_what_layers_show(
    error: type[Exception], monkeypatch: pytest.MonkeyPatch, prove: Prove
) -> None:
    def failing(*_: object, **__: object) -> None:
        raise error("its tables")

    monkeypatch.setattr(tp.DependencyGraph, "build_dependency", failing)
    pruned, refused = prove(plain(), torch.randn(IMAGES))
    assert "torch-pruning cannot trace this model" in refused["head"]
    assert error.__name__ in refused["head"]
    assert pruned.two.out_channels == 3
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten()).eval()
    with pytest.raises(UserError, match=rf"cannot trace this model \({error.__name__}"):
        channel_graph(model, torch.randn(IMAGES))


@pytest.mark.parametrize("error", ERRORS)
def test_what_the_library_raises_while_it_cuts_is_a_reason(
    error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object) -> None:
        raise error("its tables")

    monkeypatch.setattr(tp.pruner.function.ConvPruner, "prune_in_channels", failing)
    refused = {group.name: group.refusal for group in channel_graph(plain(), torch.randn(IMAGES)).groups}
    assert re.match(rf"a trial cut fails: torch-pruning cannot cut 'two' \({error.__name__}: ", refused["one"])
    assert not refused["two"]  # a linear layer reads it


@pytest.mark.parametrize("where", ["build_dependency", "get_in_channels"])
@pytest.mark.parametrize(
    "error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")]
)
def test_memory_that_runs_out_is_no_property_of_a_graph(
    where: str, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def exhausted(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(tp.DependencyGraph, where, exhausted)
    with pytest.raises(type(error)):
        channel_graph(plain(), torch.randn(IMAGES))


@pytest.mark.parametrize(("module", "name"), [(dependency, "_by_channel"), (pruning, "cut"), (pruning, "verify")])
def test_a_fault_of_our_own_is_not_taken_for_a_property_of_a_graph(
    module: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise KeyError("ours")

    monkeypatch.setattr(module, name, broken)
    with pytest.raises(KeyError, match="ours"):
        channel_graph(plain(), torch.randn(IMAGES))


def test_what_a_trial_finds_is_said_of_the_group(monkeypatch: pytest.MonkeyPatch) -> None:
    def refusing(_: object, __: object, ___: object, kept: dict[str, list[int]], ____: object) -> None:
        if "two" in kept:
            raise RunError("found out")

    monkeypatch.setattr(pruning, "verify", refusing)
    refused = {group.name: group.refusal for group in channel_graph(plain(), torch.randn(IMAGES)).groups}
    assert refused["two"] == "a trial cut fails: found out"
    assert not refused["one"]


@pytest.mark.parametrize("wrap", [nn.utils.spectral_norm, nn.utils.parametrizations.weight_norm])
def test_layers_that_compute_their_weights_stay_whole(wrap: Callable[..., nn.Module], prove: Prove) -> None:
    model = Net(lambda net, x: net.head(F.relu(net.two(one(net, x))).mean((2, 3))), head=nn.Linear(6, 4))
    model.one = wrap(model.one)
    pruned, refused = prove(model.eval(), torch.randn(IMAGES))
    assert refused["one"] == "'one' computes its weights from others; remove the parametrization first"
    assert pruned.two.out_channels == 3


class ByKeyword(nn.Module):
    """Gives all layers but one their input by keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.norm, self.two = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3)
        self.three, self.head = nn.Conv2d(8, 6, 3), nn.Linear(6, 3)

    def forward(self, images: Tensor) -> Tensor:
        inner = self.two(input=self.norm(input=self.one(input=images)).relu()).relu()
        logits: Tensor = self.head(self.three(inner).relu().mean((2, 3)))
        return logits


@pytest.mark.parametrize("method", ["compensate", "reconstruct", "batch_norm"])
def test_inputs_by_keyword_are_found_where_a_network_is_repaired_and_timed(method: str) -> None:
    model, images = ByKeyword().eval(), torch.randn(4, 3, 12, 12)
    graph = channel_graph(model, images)
    kept = {"three": [0, 2, 5]}
    entry = GroupPlan("three", (0, 2, 5), 6, 3, 0, 0, "")
    pruned = prune(model, Plan((entry,), {}, 0, 0, graph.input_shape))
    repair(pruned, model, graph, kept, [(images, torch.tensor([0, 1, 2, 0]))] * 2, method=method)
    assert verify(pruned, pruned, channel_graph(pruned, images), {}, images).max_rel_difference == 0
    timings = measure_timings(model, images, graph, lambda _: (model, {}), shares=[0.5], repeats=1)
    assert set(timings.layers) == {"one", "two", "three", "head"}

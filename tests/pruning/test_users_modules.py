"""Modules as users write them: pruned right, or refused with the reason; never a traceback, never silently wrong."""

import re
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from infoprune.errors import UserError
from infoprune.planning.plan import GroupPlan, Plan
from infoprune.pruning.channel_graph import channel_graph
from infoprune.pruning.prune import prune

Prove = Callable[..., tuple[nn.Module, dict[str, str]]]
IMAGES = (4, 3, 8, 8)


class Net(nn.Module):
    """Three layers whose forward is to be changed."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 6, 3, padding=1)
        self.head = nn.Linear(6, 4)

    def forward(self, images: Tensor) -> Tensor:
        maps = F.relu(self.two(F.relu(self.one(images))))
        return self.head(maps.mean((2, 3)))


class FixedView(Net):
    def forward(self, images: Tensor) -> Tensor:
        maps = F.relu(self.two(F.relu(self.one(images))))
        return self.head(maps.view(-1, 6, 64).mean(2).view(-1, 6))


class MeanOverChannels(Net):
    def forward(self, images: Tensor) -> Tensor:
        maps = F.relu(self.one(images))
        return self.head(self.two(maps - maps.mean(1, keepdim=True)).mean((2, 3)))


class SoftmaxOverChannels(Net):
    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.two(self.one(images).softmax(1)).mean((2, 3)))


class ResponseNorm(Net):
    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.two(F.local_response_norm(self.one(images), 3, alpha=1.0)).mean((2, 3)))


class Flipped(Net):
    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.two(F.relu(self.one(images)).flip(1)).mean((2, 3)))


class FeaturesToo(Net):
    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        maps = self.two(F.relu(self.one(images)))
        return self.head(F.relu(maps).mean((2, 3))), maps


class Functional(Net):
    def forward(self, images: Tensor) -> Tensor:
        maps = F.relu(self.one(images))
        return self.head(F.conv2d(maps, self.two.weight, self.two.bias).mean((2, 3)))


class NoGradient(Net):
    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images)


# What the reason has to say, and of which group: cutting it would be wrong, or has no meaning.
@pytest.mark.parametrize(
    ("kind", "layer", "reason"),
    [
        (FixedView, "two", "trial cut fails"),
        (MeanOverChannels, "one", "trial cut fails: .* differs from its masked reference model .* first at 'two'"),
        (SoftmaxOverChannels, "one", "trial cut fails: .* differs from its masked reference model .* first at 'two'"),
        (ResponseNorm, "one", "trial cut fails: .* differs from its masked reference model .* first at 'two'"),
        (Flipped, "one", "trial cut fails: .* differs from its masked reference model .* first at 'two'"),
        (FeaturesToo, "two", "output"),
        (Functional, "one", "on the way to 'head'"),
    ],
)
def test_what_mixes_or_fixes_channels_is_refused(kind: type[Net], layer: str, reason: str, prove: Prove) -> None:
    _, refused = prove(kind().eval(), torch.randn(IMAGES))
    assert "head" in refused
    assert re.search(reason, refused[layer])
    if kind is not Functional:
        assert ("one" in refused) != ("two" in refused)  # and the other is cut


def gated(net: Net, images: Tensor) -> Tensor:
    left, right = F.relu(net.one(images)).split(4, 1)
    return net.head(net.two(torch.cat([left * right.sigmoid(), right], 1)).mean((2, 3)))


def attended(net: Net, images: Tensor) -> Tensor:
    rows = net.one(images).flatten(2) / 8
    mixed = ((rows @ rows.transpose(1, 2)).softmax(2) @ rows).view(-1, rows.shape[1], 8, 8)
    return net.head(net.two(mixed).mean((2, 3)))


# Forwards, and the groups beside the head that have to be refused.
FORWARDS: dict[str, tuple[Callable[[Net, Tensor], object], set[str]]] = {
    "channels by index": (
        lambda net, images: net.head(net.two(net.one(images)[:, [1, 0, 3, 2, 5, 4, 7, 6]]).mean((2, 3))),
        {"one"},
    ),
    "a constant per channel": (
        lambda net, images: net.head(net.two(net.one(images) - torch.arange(8).view(8, 1, 1)).mean((2, 3))),
        {"one"},
    ),
    "halves that gate each other": (gated, {"one"}),
    "attention over channels": (attended, {"one"}),
    "recomputed in backward": (
        lambda net, images: net.head(net.two(checkpoint(net.one, images, use_reentrant=False)).mean((2, 3))),
        set(),
    ),
    "nothing among the outputs": (
        lambda net, images: {"logits": [net.head(net.two(net.one(images)).mean((2, 3)))], "loss": None},
        set(),
    ),
    "einsum": (
        lambda net, images: net.head(torch.einsum("nchw,hw->nc", net.two(net.one(images)), torch.eye(8))),
        set(),
    ),
}


@pytest.mark.parametrize("name", FORWARDS)
def test_forwards_of_all_kinds(name: str, prove: Prove) -> None:
    run, expected = FORWARDS[name]

    class Own(Net):
        def forward(self, images: Tensor) -> object:  # type: ignore[override]
            return run(self, images)

    _, refused = prove(Own().eval(), torch.randn(IMAGES))
    assert set(refused) == {*expected, "head"}


def test_a_forward_without_gradients_is_cut_where_one_layer_feeds_the_next(prove: Prove) -> None:
    pruned, refused = prove(NoGradient().eval(), torch.randn(IMAGES))
    assert pruned.two.weight.shape == (3, 4, 3, 3)
    assert "torch-pruning cannot trace this model" in refused["head"]


def test_a_layer_used_twice(prove: Prove) -> None:
    class Twice(Net):
        def __init__(self) -> None:
            super().__init__()
            self.again = nn.Conv2d(8, 8, 3, padding=1)

        def forward(self, images: Tensor) -> Tensor:
            maps = F.relu(self.again(F.relu(self.again(F.relu(self.one(images))))))
            return self.head(F.relu(self.two(maps)).mean((2, 3)))

    pruned, refused = prove(Twice().eval(), torch.randn(IMAGES))
    assert list(refused) == ["head"]
    assert pruned.again.weight.shape == (4, 4, 3, 3)


def test_tied_weights_stay_tied() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 1), nn.ReLU())
    model.append(nn.Conv2d(8, 2, 1))
    model[4].weight = model[2].weight
    reasons = {group.name: group.refusal for group in channel_graph(model.eval(), torch.randn(IMAGES)).groups}
    assert reasons["0"] == reasons["2"] == reasons["4"] == "parameters are shared: 2.weight, 4.weight"


@pytest.mark.parametrize(("shape", "cut"), [((1, 8, 1, 1), True), ((8, 8), True), ((1, 1, 8, 8), True)])
def test_parameters_outside_layers(shape: tuple[int, ...], cut: bool, prove: Prove) -> None:
    class Shifted(Net):
        def __init__(self) -> None:
            super().__init__()
            self.shift = nn.Parameter(torch.randn(shape))

        def forward(self, images: Tensor) -> Tensor:
            return self.head(F.relu(self.two(F.relu(self.one(images) + self.shift))).mean((2, 3)))

    _, refused = prove(Shifted().eval(), torch.randn(IMAGES))
    assert "two" not in refused
    assert ("one" not in refused) or "trial cut fails" in refused["one"]


def test_a_branch_that_did_not_run_is_named(prove: Prove) -> None:
    class Branching(Net):
        def __init__(self) -> None:
            super().__init__()
            self.bright = nn.Conv2d(8, 8, 1)

        def forward(self, images: Tensor) -> Tensor:
            maps = F.relu(self.one(images))
            if images.mean() > 10:
                maps = self.bright(maps)
            return self.head(F.relu(self.two(maps)).mean((2, 3)))

    _, refused = prove(Branching().eval(), torch.randn(IMAGES))
    assert "'bright', with as many channels (8), does not take part in the output on the example" in refused["one"]
    assert "two" not in refused
    with pytest.raises(UserError, match="'one' cannot be pruned: 'bright'"):  # a checkpoint has no bright images
        prove(Branching().eval(), torch.randn(IMAGES) + 20)


def test_models_that_cannot_be_proven() -> None:
    class Noisy(Net):
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images + torch.randn_like(images))

    with pytest.raises(UserError, match=r"differs by .* when it runs on the same images again"):
        channel_graph(Noisy().eval(), torch.randn(IMAGES))

    class Wrapped(Net):
        def forward(self, images: Tensor) -> object:  # type: ignore[override]
            return SimpleNamespace(logits=super().forward(images))

    with pytest.raises(UserError, match="puts out a SimpleNamespace; expected a tensor"):
        channel_graph(Wrapped().eval(), torch.randn(IMAGES))
    with pytest.raises(UserError, match="lazy layers without shapes; run it once"):
        channel_graph(nn.Sequential(nn.LazyConv2d(4, 3)), torch.randn(IMAGES))


class ViewOfFour(nn.Module):
    """The second convolution's channels cannot change, the first one's can."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.b(torch.relu(self.a(x))).view(len(x), 4, -1).mean(2)
        logits: Tensor = self.head(y)
        return logits


def test_trials_end_in_time_and_plans_can_be_replayed(monkeypatch: pytest.MonkeyPatch) -> None:
    model, images = ViewOfFour().eval(), torch.randn(2, 3, 4, 4)
    known = {group.name: group.refusal for group in channel_graph(model, images).groups}
    assert not known["a"]
    assert known["b"]
    monkeypatch.setattr("infoprune.pruning.channel_graph.TRIAL_SECONDS", -1.0)
    late = {group.name: group.refusal for group in channel_graph(model, images).groups}
    assert "was not known after -1 s of trials" in late["a"]
    entry = GroupPlan("a", (0, 1, 5), 8, 3, 0, 0, "")
    assert prune(model, Plan((entry,), {}, 0, 0, (3, 4, 4))).a.out_channels == 3

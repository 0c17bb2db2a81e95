"""Models that are not the same from one forward pass to the next: noticed before anything is computed from them."""

import copy
import threading
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from infoprune.errors import UserError
from infoprune.pruning.channel_graph import channel_graph
from infoprune.pruning.repeatability import check_repeatable

IMAGES = (2, 3, 6, 6)
Change = Callable[["Net", Tensor], Tensor]


class Net(nn.Module):
    """A small network that lets a function have its way with what it puts out."""

    def __init__(self, change: Change) -> None:
        super().__init__()
        self.one, self.norm, self.head = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2)
        self.register_buffer("seen", torch.zeros(1))
        self.register_buffer("hidden", torch.full((2,), torch.nan), persistent=False)
        self.calls, self.change = 0, change

    def forward(self, images: Tensor) -> object:
        return self.change(self, self.head(torch.relu(self.norm(self.one(images))).mean((2, 3))))


def counting(net: Net, logits: Tensor) -> Tensor:
    net.calls += 1
    return logits * net.calls


def growing(net: Net, logits: Tensor) -> Tensor:
    net.calls += 1
    return logits.repeat(1, net.calls)


def remembering(net: Net, logits: Tensor) -> Tensor:
    net.seen += 1
    return logits


def forgetting(net: Net, logits: Tensor) -> Tensor:
    del net.seen
    net.register_buffer("seen", None)
    return logits


def replacing(net: Net, logits: Tensor) -> Tensor:
    net.hidden = torch.zeros(2)
    return logits


def decaying(net: Net, logits: Tensor) -> Tensor:
    net.head.weight.data.mul_(0.99)
    return logits


def shrinking(net: Net, logits: Tensor) -> Tensor:
    with torch.no_grad():
        net.one.bias[0] += 1
    return logits


UNSTEADY: dict[str, tuple[Change, str]] = {
    "an attribute": (counting, r"output differs by 1 of its largest number"),
    "a shape": (growing, "puts out 4 numbers, and 8 when"),
    "at random": (lambda net, logits: logits + torch.rand(1), "output differs by .* draws at random"),
    "dropout without a mode": (lambda net, logits: nn.functional.dropout(logits.repeat(1, 50)), "output differs by"),
    "a buffer": (remembering, "changes 'seen' in forward in evaluation mode; do so only where self.training is true"),
    "a buffer replaced": (replacing, "changes 'hidden' in forward"),
    "a buffer removed": (forgetting, "changes 'seen' in forward"),
    "a weight": (decaying, "changes 'head.weight' in forward"),
    "a bias in part": (shrinking, "changes 'one.bias' in forward"),
    "NaN": (lambda net, logits: logits * torch.nan, "puts out NaN or infinity"),
    "infinity": (lambda net, logits: logits / 0, "puts out NaN or infinity"),
    "NaN in one number": (lambda net, logits: logits.index_fill(1, torch.tensor(1), torch.nan), "NaN or infinity"),
    "nothing": (lambda net, logits: logits[logits > 1e9], "puts out no number"),
    "no tensor": (lambda net, logits: None, "puts out no number"),
    "a list": (lambda net, logits: logits.tolist(), "puts out a float; expected a tensor"),
    "an error": (lambda net, logits: logits[:, 7], r"does not run on an input of shape \(2, 3, 6, 6\): index 7"),
}


@pytest.mark.parametrize("name", UNSTEADY)
@pytest.mark.parametrize("check", [check_repeatable, channel_graph])
def test_a_model_that_changes_itself_is_refused_and_left_as_it_was(
    name: str, check: Callable[[nn.Module, Tensor], object]
) -> None:
    change, message = UNSTEADY[name]
    model = Net(change).train()
    model.norm.eval()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(UserError, match=message):
        check(model, torch.randn(IMAGES))
    assert [model.training, model.norm.training, model.head.training] == [True, False, True]
    assert model.calls == 0
    assert model.hidden.isnan().all()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def cached(net: Net, logits: Tensor) -> Tensor:
    if "cache" not in dict(net.named_buffers()):
        net.register_buffer("cache", torch.full((2,), 3.0))
    return logits + net.cache


def on_training(net: Net, logits: Tensor) -> Tensor:
    return remembering(net, logits) + torch.rand(1) if net.training else logits


STEADY: dict[str, Change] = {
    "plain": lambda net, logits: logits,
    "in training alone": on_training,
    "a cache made at the first pass": cached,
    "a counter that nothing depends on": lambda net, logits: counting(net, logits) / net.calls,
    "parts": lambda net, logits: {"logits": logits, "more": [(logits > 0, logits.argmax(1)), None]},  # type: ignore[dict-item, return-value]
    "zero": lambda net, logits: logits * 0,
}


@pytest.mark.parametrize("name", STEADY)
def test_a_model_that_computes_the_same_each_time_passes(name: str) -> None:
    model = Net(STEADY[name])
    check_repeatable(model, torch.randn(IMAGES))
    assert "cache" not in dict(model.named_buffers())
    assert {group.name: bool(group.refusal) for group in channel_graph(model, torch.randn(IMAGES)).groups} == {
        "one": False,
        "head": True,
    }


def test_what_cannot_be_copied_is_said() -> None:
    model = Net(lambda net, logits: logits)
    model.lock = threading.Lock()
    with pytest.raises(UserError, match=r"cannot be copied \(TypeError: cannot pickle '_thread.lock' object\); remove"):
        channel_graph(model, torch.randn(IMAGES))

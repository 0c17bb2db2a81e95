"""The costs of small layers are known by hand; a whole network's is known from the literature."""

import time

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from infoprune.errors import UserError
from infoprune.evaluation.profile import Profile, count_macs, count_parameters, measure_latency, profile


class Functional(nn.Module):
    """A convolution and a matrix product that no module announces."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.ones(4, 3, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.kernel).flatten(1) @ torch.ones(4 * 6 * 6, 5)


class Subclassed(nn.Conv2d):
    """Not exactly an `nn.Conv2d`, as timm's are not."""


IMAGE = torch.ones(2, 3, 8, 8)
BY_HAND = {
    "convolution": (nn.Conv2d(3, 4, 3), IMAGE, 4 * 3 * 9 * 36),
    "strided and padded": (nn.Conv2d(3, 4, 3, stride=2, padding=1), IMAGE, 4 * 3 * 9 * 16),
    "grouped": (nn.Conv2d(6, 4, 3, groups=2), torch.ones(1, 6, 8, 8), 4 * 3 * 9 * 36),
    "depthwise": (nn.Conv2d(6, 6, 3, groups=6), torch.ones(1, 6, 8, 8), 6 * 9 * 36),
    "one-dimensional": (nn.Conv1d(3, 4, 5), torch.ones(2, 3, 9), 4 * 3 * 5 * 5),
    "linear": (nn.Linear(10, 7), torch.ones(3, 10), 70),
    "linear without bias": (nn.Linear(10, 7, bias=False), torch.ones(3, 10), 70),
    "functional": (Functional(), IMAGE, 4 * 3 * 9 * 36 + 4 * 36 * 5),
    "subclassed": (Subclassed(3, 4, 3), IMAGE, 4 * 3 * 9 * 36),
    "norm and activation": (nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(), nn.AvgPool2d(2)), IMAGE, 0),
}


@pytest.mark.parametrize("layer", BY_HAND)
def test_macs_by_hand(layer: str) -> None:
    model, example, macs = BY_HAND[layer]
    assert count_macs(model, example) == macs


def test_resnet50_costs_what_the_literature_says() -> None:
    from torchvision.models import resnet50

    model = resnet50()
    assert count_macs(model, torch.ones(1, 3, 224, 224)) == pytest.approx(4.09e9, rel=1e-3)
    assert count_parameters(model) == 25_557_032


def test_shared_and_frozen_parameters_count_once() -> None:
    first, second = nn.Linear(4, 4), nn.Linear(4, 4, bias=False)
    second.weight = first.weight
    assert count_parameters(nn.Sequential(first, second).requires_grad_(False)) == 20


def test_the_model_stays_as_it_was() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), nn.Flatten(), nn.Linear(4 * 36, 2))
    model.train()
    model[1].eval()  # a frozen norm in a training model
    model(IMAGE).sum().backward()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    gradients = [parameter.grad.clone() for parameter in model.parameters()]
    profile(model, IMAGE, latency_repeats=2, latency_warmup=0)
    assert [module.training for module in model] == [True, False, True, True, True]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), gradients, strict=True))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert torch.is_grad_enabled()
    assert model(IMAGE).requires_grad


def test_the_mode_is_restored_after_an_error() -> None:
    model = nn.Conv2d(3, 4, 3).train()
    with pytest.raises(RuntimeError):
        count_macs(model, torch.ones(1, 5, 8, 8))
    assert model.training


class Sleeper(nn.Module):
    """Takes a known time; slow passes come first, as in a cold start."""

    def __init__(self, milliseconds: list[float]) -> None:
        super().__init__()
        self.left = list(milliseconds)

    def forward(self, x: Tensor) -> Tensor:
        time.sleep(self.left.pop(0) / 1000)
        return x


def test_latency_is_the_median_after_the_warmup() -> None:
    latency = measure_latency(Sleeper([200, 20, 20, 20, 120, 20]), torch.ones(3, 4), repeats=5, warmup=1)
    assert 20 <= latency.median < 60
    assert latency.iqr < 40
    assert (latency.batch, latency.device, latency.threads) == (3, "cpu", torch.get_num_threads())


class Denormal(nn.Module):
    """Remembers whether denormals were flushed when it ran."""

    def forward(self, x: Tensor) -> Tensor:
        self.flushed = bool(x * torch.tensor(1e-10) == 0)
        return x


@pytest.mark.parametrize("setting", [False, True])
def test_denormals_are_flushed_while_timing_only(setting: bool) -> None:
    if not torch.set_flush_denormal(setting):
        pytest.skip("this processor cannot flush denormals")
    try:
        model = Denormal()
        measure_latency(model, torch.tensor([[1e-30]]), repeats=1, warmup=0)
        assert model.flushed
        model(torch.tensor([[1e-30]]))
        assert model.flushed is setting
    finally:
        torch.set_flush_denormal(False)


def test_profile_bundles_the_three() -> None:
    result = profile(nn.Linear(10, 7), torch.ones(3, 10), latency_batch=8, latency_repeats=3, latency_warmup=1)
    assert isinstance(result, Profile)
    assert (result.parameters, result.macs, result.latency.batch) == (77, 70, 8)


@pytest.mark.parametrize(
    ("options", "example", "message"),
    [
        ({"latency_batch": 0}, IMAGE, "latency_batch = 0: expected a whole number from 1"),
        ({"latency_repeats": 0}, IMAGE, "latency_repeats = 0: expected a whole number from 1"),
        ({"latency_warmup": -1}, IMAGE, "latency_warmup = -1: expected a whole number from 0"),
        ({}, torch.ones(0, 3, 8, 8), r"shape \(0, 3, 8, 8\)"),
        ({}, torch.ones(3), "at least one sample"),
        ({}, [1.0], "the example is list"),
    ],
)
def test_bad_input_is_named(options: dict[str, int], example: Tensor, message: str) -> None:
    with pytest.raises(UserError, match=message):
        profile(nn.Conv2d(3, 4, 3), example, **options)

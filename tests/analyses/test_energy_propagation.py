"""Energy: Parseval frames conserve it, a tight frame's scattering does, and the theorem's table."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from infoprune.analyses.base import LayerView
from infoprune.analyses.energy_propagation import EnergyPropagation, exponential_decay, polynomial_decay
from infoprune.analyses.runner import analyze
from infoprune.errors import UserError
from infoprune.information.spectrum import effective_rank, frame_bounds, scattering_depth, stable_rank

View = Callable[..., LayerView]
# The 2x2 Haar filters: Σ_k |ŵ_k(ω)|² = 1 at every frequency.
HAAR = torch.tensor([[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]]).float().view(4, 1, 2, 2) / 4


class Modulus(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.abs()


def haar(channels: int, stride: int = 1) -> nn.Conv2d:
    """Each channel through the Haar frame, mixed by an orthogonal matrix: a Parseval frame again."""
    layer = nn.Conv2d(channels, 4 * channels, 2, padding="same", padding_mode="circular", bias=False)
    mix = torch.linalg.qr(torch.randn(4 * channels, 4 * channels).double())[0].float()
    with torch.no_grad():
        frame = torch.zeros(4 * channels, channels, 2, 2)
        for channel in range(channels):
            frame[4 * channel : 4 * channel + 4, channel] = HAAR[:, 0]
        layer.weight.copy_(torch.einsum("oc,cikl->oikl", mix, frame))
    return layer


def test_a_parseval_frame_and_the_modulus_conserve_energy_exactly() -> None:
    model = nn.Sequential(haar(1), Modulus(), haar(4), Modulus(), nn.Flatten(), nn.Linear(16 * 64, 2)).double()
    batches = [(torch.randn(5, 1, 8, 8).double(), torch.zeros(5).long()) for _ in range(2)]
    found = analyze(model, batches, [EnergyPropagation()])[0]
    for layer in ("0", "2"):
        energy = found.measures[layer]["energy"]
        assert float(energy.value) == pytest.approx(1, abs=1e-6)
        assert float(energy.high - energy.low) == pytest.approx(0, abs=1e-5)
        for bound in ("A", "B"):
            assert float(found.measures[layer][f"frame bound {bound}"].value) == pytest.approx(1, abs=1e-6)
    torch.testing.assert_close(found.importance["0"].sum(), torch.tensor(1.0).double(), rtol=1e-6, atol=0)


def test_frame_bounds_of_one_channel_are_the_extremes_of_the_littlewood_paley_sum() -> None:
    weight = torch.randn(5, 1, 3, 3)
    total = torch.fft.fft2(weight[:, 0].double(), s=(16, 16)).abs().square().sum(0)
    assert frame_bounds(weight) == pytest.approx((float(total.min()), float(total.max())))


def test_frame_bounds_hold_for_every_input_and_are_reached() -> None:
    weight = torch.randn(6, 3, 3, 3).double()
    low, high = frame_bounds(weight, grid=8)
    layer = nn.Conv2d(3, 6, 3, padding="same", padding_mode="circular", bias=False).double()
    with torch.no_grad():
        layer.weight.copy_(weight)
        x = torch.randn(64, 3, 8, 8).double()
        gains = layer(x).square().flatten(1).sum(1) / x.square().flatten(1).sum(1)
        for _ in range(300):  # power iteration towards the worst input
            x = torch.nn.functional.normalize(x.flatten(1)).view_as(x).requires_grad_()
            with torch.enable_grad():
                (x,) = torch.autograd.grad(layer(x).square().sum(), x)
        reached = layer(x).square().flatten(1).sum(1) / x.square().flatten(1).sum(1)
    assert low <= gains.min()
    assert gains.max() <= high
    assert float(reached.max()) == pytest.approx(high, rel=1e-3)


def test_fewer_filters_than_channels_are_no_frame() -> None:
    low, high = frame_bounds(torch.eye(3)[:2].view(2, 3, 1, 1))
    assert (low, high) == (0.0, pytest.approx(1.0))


def test_batch_norm_is_folded_in_and_a_norm_elsewhere_is_not() -> None:
    layer, norm = haar(1), nn.BatchNorm2d(4)
    norm.running_var.fill_(0.25)
    norm.running_mean.normal_()
    for model, gain in (
        (nn.Sequential(layer, norm), 4.0),
        (nn.Sequential(layer, nn.ReLU(), norm), 1.0),
    ):
        found = analyze(
            model.eval().append(nn.Flatten()), [(torch.randn(3, 1, 8, 8), torch.zeros(3).long())], [EnergyPropagation()]
        )[0]
        assert float(found.measures["0"]["frame bound B"].value) == pytest.approx(gain, rel=1e-3)


def meyer(size: int) -> Tensor:
    """Squared responses of a 1-D tight frame on `size` frequencies, low pass first: they add up to 1 everywhere."""
    frequency = torch.fft.fftfreq(size, dtype=torch.float64) * size

    def rise(x: Tensor) -> Tensor:
        x = x.clamp(0, 1)
        return x**4 * (35 - 84 * x + 70 * x**2 - 20 * x**3)

    edges = [2.0**j for j in range(int(math.log2(size)))]
    steps = [torch.sin(math.pi / 2 * rise(frequency / edge - 1)).square() for edge in edges]
    steps += [torch.sin(math.pi / 2 * rise(-frequency / edge - 1)).square() for edge in edges]
    half = len(edges)
    low = 1 - steps[0] - steps[half]
    bands = []
    for side in (0, half):
        bands += [steps[side + j] - steps[side + j + 1] for j in range(half - 1)] + [steps[side + half - 1]]
    return torch.stack([low, *bands])


def test_a_tight_frames_features_and_rest_add_up_and_stay_below_the_theorems_bound() -> None:
    size = 64
    responses = meyer(size)
    assert float((responses.sum(0) - 1).abs().max()) < 1e-12
    assert float(responses.min()) >= 0
    low, bands = responses[0].sqrt(), responses[1:].sqrt()
    signals = torch.randn(3, size, dtype=torch.float64)
    energy = signals.square().sum()
    paths, features, left = signals, torch.zeros(()).double(), []
    for _ in range(4):
        spectrum = torch.fft.fft(paths)
        features = features + torch.fft.ifft(spectrum * low).abs().square().sum()
        paths = torch.fft.ifft(spectrum[:, None] * bands).abs().flatten(0, 1)
        left.append(float(paths.square().sum() / energy))
        assert float((features + paths.square().sum()) / energy) == pytest.approx(1, abs=1e-6)
    assert left == sorted(left, reverse=True)
    # The bound for wavelets: after N layers (1 − ε) is out as soon as N reaches the theorem's depth, for L = size/2.
    for layers, rest in enumerate(left, start=1):
        if rest < 1 and scattering_depth(1 - rest, bandwidth=size / 2) < layers:
            pytest.fail(f"{rest} is left after {layers} layers, more than the theorem allows")


@pytest.mark.parametrize(
    ("options", "table"),
    [
        ({}, [2, 3, 4, 6, 8, 11]),
        ({"filters": "weyl_heisenberg"}, [2, 4, 5, 8, 10, 14]),
        ({"filters": "general"}, [2, 3, 7, 19, 39, 199]),
    ],
)
def test_the_theorems_table(options: dict[str, str], table: list[int]) -> None:
    assert [scattering_depth(share, **options) for share in (0.25, 0.5, 0.75, 0.9, 0.95, 0.99)] == table


def test_in_two_dimensions_the_general_bound_is_vacuous() -> None:
    assert scattering_depth(0.25, filters="general", dimension=2) == 371
    with pytest.raises(ValueError, match="share"):
        scattering_depth(1.0)


def test_decays_are_told_apart() -> None:
    exponential, polynomial = [0.6**n for n in range(1, 9)], [n**-1.5 for n in range(1, 9)]
    assert exponential_decay(exponential) == (pytest.approx(0.6), pytest.approx(1))
    assert polynomial_decay(polynomial) == (pytest.approx(1.5), pytest.approx(1))
    assert polynomial_decay(exponential).goodness < 0.95
    assert exponential_decay(polynomial).goodness < 0.95
    assert math.isnan(exponential_decay([0.0, 1.0]).rate)


def test_depth_for_a_share_stands_beside_the_reference() -> None:
    model = nn.Sequential(*[haar(1) for _ in range(1)], *[nn.Conv2d(4, 4, 1, bias=False) for _ in range(4)])
    with torch.no_grad():
        for layer in model[1:]:
            layer.weight.copy_(torch.eye(4).view(4, 4, 1, 1) / math.sqrt(2))
    found = analyze(
        model.append(nn.Flatten()), [(torch.randn(4, 1, 8, 8), torch.zeros(4).long())], [EnergyPropagation()]
    )[0]
    network = {name: float(measure.value) for name, measure in found.measures["network"].items()}
    assert network["exponential rate"] == pytest.approx(0.5, rel=1e-5)
    assert network["exponential goodness"] == pytest.approx(1)
    assert network["depth for the share"] == 5  # halved four times: 1/16 is below a tenth
    assert network["scattering reference, wavelets"] == 6
    assert not found.flags


def test_energy_that_grows_is_said_to_be_undefined() -> None:
    model = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.Conv2d(1, 4, 1, bias=False), nn.Flatten())
    nn.init.ones_(model[1].weight)
    found = analyze(model, [(torch.randn(4, 1, 4, 4), torch.zeros(4).long())], [EnergyPropagation()])[0]
    assert [(flag.layer, flag.kind) for flag in found.flags] == [("network", "undefined")]
    assert found.measures["network"]["depth for the share"].value.isnan()


def test_ranks_that_are_not_whole_numbers() -> None:
    assert float(effective_rank(torch.tensor([1.0, 1, 1, 1]))) == 4
    assert float(effective_rank(torch.zeros(3))) == 0
    assert float(stable_rank(torch.tensor([1.0, 1, 0]))) == 2


@pytest.mark.parametrize("option", [{"share": 1.0}, {"grid": -1}])
def test_wrong_options_are_refused(option: dict[str, object]) -> None:
    with pytest.raises(UserError, match=rf"\[analyses.energy_propagation\] {next(iter(option))} = .*: expected"):
        EnergyPropagation(**option)


def test_width_is_the_filters_that_hold_the_energy(view: View) -> None:
    maps = torch.ones(4, 5, 6, 6) * torch.tensor([3.0, 0.0, 4.0, 1.0, 0.1]).view(5, 1, 1)  # squares 9, 0, 16, 1, 0.01
    for keep, width in ((0.6, 1), (0.95, 2), (0.99, 3), (0.9999, 4), (1.0, 4)):
        analysis = EnergyPropagation(keep=keep)
        analysis.observe(view(maps, layer="a"))
        analysis.observe(view(maps, layer="a", index=1))
        found = analysis.conclude()
        assert found.widths == {"a": width}
        assert float(found.measures["a"]["width"].high) == width


@pytest.mark.parametrize(("dimension", "alpha"), [(1, 1.0), (2, math.log2(math.sqrt(4 / 3)))])
@pytest.mark.parametrize(("bandwidth", "scale"), [(1.0, 1.0), (3.0, 0.5)])
def test_the_general_depth_is_the_first_that_is_enough(
    dimension: int, alpha: float, bandwidth: float, scale: float
) -> None:
    found = scattering_depth(0.5, filters="general", dimension=dimension, bandwidth=bandwidth, scale=scale)
    missing = 1 - 0.5 ** (1 / (2 * (dimension // 2 + 1 + 1e-4)))
    assert bandwidth / scale <= missing * (found + 1) ** alpha
    assert bandwidth / scale > missing * found**alpha

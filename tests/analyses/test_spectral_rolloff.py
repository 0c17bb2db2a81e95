"""Roll-off points: cosines, rotation, flat spectra, constant maps, and the paper's table on white noise."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from infoprune.analyses.base import LayerView
from infoprune.analyses.runner import analyze
from infoprune.analyses.spectral_rolloff import SpectralRolloff
from infoprune.errors import UserError
from infoprune.information.spectrum import radial_bins, radial_profile, roll_off

View = Callable[..., LayerView]


def cosine(ky: int, kx: int, size: int = 32) -> Tensor:
    at = torch.arange(size, dtype=torch.float64) / size
    return torch.cos(2 * math.pi * (ky * at[:, None] + kx * at))


@pytest.mark.parametrize(("ky", "kx"), [(0, 1), (3, 4), (5, 5), (0, 12), (7, 2), (6, 8)])
def test_a_cosine_rolls_off_in_its_own_ring(ky: int, kx: int) -> None:
    found = roll_off(radial_profile(cosine(ky, kx)), interpolate=False)
    assert int(found) == math.floor(math.hypot(kx, ky))


def test_rotation_by_a_right_angle_changes_nothing() -> None:
    maps = torch.randn(3, 17, 17).double()
    torch.testing.assert_close(radial_profile(maps.rot90(1, (1, 2))), radial_profile(maps))


def test_a_flat_profile_rolls_off_at_the_share() -> None:
    for bins in (3, 8, 156):
        assert float(roll_off(torch.ones(bins)) / bins) == pytest.approx(0.85)
    assert int(roll_off(torch.ones(100), interpolate=False)) == 84  # the 85th bin


def test_constant_maps_have_no_roll_off_point() -> None:
    maps = torch.stack([torch.full((8, 8), 0.1), torch.zeros(8, 8), torch.randn(8, 8)])
    assert roll_off(radial_profile(maps)).isnan().tolist() == [True, True, False]
    assert roll_off(radial_profile(maps, dc=True)).isnan().tolist() == [True, True, False]


def test_power_and_ring_sums_by_hand() -> None:
    profile = radial_profile(cosine(0, 3), power=True, reduce="sum")
    assert float(profile[3]) == pytest.approx(2 * (32 * 32 / 2) ** 2)
    assert float(profile.sum()) == pytest.approx(float(profile[3]))
    assert len(radial_profile(cosine(0, 3), last=True)) == radial_bins(32) + 1


def test_no_ring_fits_a_tiny_map() -> None:
    with pytest.raises(ValueError, match="at least 4 pixels"):
        radial_profile(torch.zeros(3, 3))
    with pytest.raises(ValueError, match="kappa"):
        roll_off(torch.ones(3), kappa=0.0)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"preset": "paper"}, [0.848, 0.417, 0.199, 0.096, 0.041, 0.013]),
        ({"preset": "paper", "bins": "m+1"}, [0.859, 0.429, 0.212, 0.108, 0.052, 0.026]),
    ],
)
def test_white_noise_through_max_pools_gives_the_papers_baseline(
    view: View, options: dict[str, object], expected: list[float]
) -> None:
    noise = torch.randn(4, 1, 224, 224)
    analysis = SpectralRolloff(**options)
    for size in (224, 112, 56, 28, 14, 7):
        analysis.observe(view(torch.randn(4, 2, size, size), inputs=noise, layer=str(size)))
    measures = analysis.conclude().measures
    found = [float(measures[str(size)]["baseline"].value) for size in (224, 112, 56, 28, 14, 7)]
    assert found == pytest.approx(expected, abs=0.004)


def test_the_printed_equations_end_at_one(view: View) -> None:
    """Eq. (6) has k from 0 to m, and Eq. (4) divides by m."""
    highest = torch.cos(2 * math.pi * 3 * torch.arange(8) / 8).expand(1, 1, 8, 8)
    assert radial_bins(8) == 3
    analysis = SpectralRolloff(preset="printed")
    analysis.observe(view(highest, inputs=highest))
    assert float(analysis.conclude().measures["layer"]["SROP"].value) == 1


def test_smooth_filters_rank_above_noise_and_dead_ones_last(view: View) -> None:
    smooth = cosine(1, 1).float().expand(6, 1, 32, 32)
    noise, dead = torch.randn(6, 1, 32, 32), torch.ones(6, 1, 32, 32)
    analysis = SpectralRolloff()
    analysis.observe(view(torch.cat([smooth, noise, dead], 1)))
    found = analysis.conclude()
    assert found.importance["layer"].argsort(descending=True).tolist() == [0, 1, 2]
    (flag,) = found.flags
    assert flag.kind == "undefined"
    assert "33.3% of the maps are constant" in flag.reason
    assert "in 1 of 3 filters" in flag.reason
    # The baseline of noise is noise: only the smooth filter is surely below it, the constant one never is.
    assert 1 <= found.widths["layer"] <= 2
    assert found.measures["layer"]["width"].unit == "filters"
    kept = found.measures["layer"]["SROP per filter"].value[:2].mean()
    torch.testing.assert_close(found.measures["layer"]["SROP"].value, kept)


def test_a_layer_that_is_constant_throughout_is_flagged_and_not_averaged(view: View) -> None:
    analysis = SpectralRolloff()
    analysis.observe(view(torch.ones(3, 2, 8, 8)))
    analysis.observe(view(torch.randn(3, 2, 8, 8), index=1))
    found = analysis.conclude()
    assert found.measures["layer"]["SROP"].value.isfinite()
    assert found.flags


def test_layers_without_spatial_order_are_left_out() -> None:
    model = nn.Sequential(
        nn.Conv2d(2, 3, 3), nn.AdaptiveAvgPool2d(1), nn.Conv2d(3, 3, 1), nn.Flatten(), nn.Linear(3, 2)
    )
    found = analyze(model, [(torch.randn(4, 2, 10, 12), torch.zeros(4).long())], [SpectralRolloff()])[0]
    assert set(found.measures) == {"0"}


@pytest.mark.parametrize("option", [{"kappa": 1.0}, {"preset": "x"}, {"bins": "n"}, {"normalizer": "x"}])
def test_wrong_options_are_refused(option: dict[str, object]) -> None:
    with pytest.raises(UserError, match=rf"\[analyses.spectral_rolloff\] {next(iter(option))} = .*: expected"):
        SpectralRolloff(**option)

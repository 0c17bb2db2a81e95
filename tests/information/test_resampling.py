"""Debiasing, p-values and intervals against their definitions."""

import math

import pytest
import torch

from infoprune.information.entropy import mutual_information
from infoprune.information.gram import filter_grams
from infoprune.information.resampling import (
    batch_interval,
    bootstrap_interval,
    debiased_mutual_information,
    permutation_p_value,
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("dimension", "bias"), [(1, 0.22), (5, 4.18), (20, 4.64)])
def test_independent_gaussians_have_none_once_debiased(dimension: int, bias: float) -> None:
    x, y = filter_grams(torch.randn(512, 2, dimension, generator=seeded(dimension)))
    found = debiased_mutual_information(x, y, permutations=10, generator=seeded())
    assert found.raw.item() == pytest.approx(bias, abs=0.05)  # all of it bias: the truth is 0
    assert abs(found.debiased.item()) < 0.03
    assert found.debiased.item() == pytest.approx((found.raw - found.bias).item())


def test_dependence_survives_debiasing_and_keeps_its_rank() -> None:
    x, noise = torch.randn(2, 128, 1, generator=seeded(1), dtype=torch.float64)
    found = []
    for rho in (0.0, 0.5, 0.75, 0.95):
        grams = filter_grams(torch.stack([x, rho * x + math.sqrt(1 - rho**2) * noise], 1))
        found.append(debiased_mutual_information(grams[0], grams[1], generator=seeded()).debiased.item())
    assert found == sorted(found)
    assert found[-1] > found[0] + 0.5


def test_seed_batches_and_memory() -> None:
    a, b = filter_grams(torch.randn(12, 6, 2)), filter_grams(torch.randn(12, 1, 2))[0]
    whole = debiased_mutual_information(a, b, permutations=7, generator=seeded())
    pieces = debiased_mutual_information(a, b, permutations=7, generator=seeded(), memory_limit=1)
    turned = debiased_mutual_information(b, a, permutations=7, generator=seeded())
    assert whole.debiased.shape == turned.debiased.shape == (6,)
    assert torch.allclose(whole.debiased, pieces.debiased, atol=1e-12)
    single = debiased_mutual_information(a[4], b, permutations=7, generator=seeded())
    assert torch.allclose(whole.debiased[4], single.debiased, atol=1e-12)
    assert torch.allclose(whole.raw, mutual_information(a, b))
    with pytest.raises(ValueError, match="permutations"):
        debiased_mutual_information(a, b, permutations=1)


def test_p_values() -> None:
    evidence = torch.tensor([True] * 4 + [False] * 95)
    assert permutation_p_value(evidence).item() == pytest.approx(5 / 100)
    assert permutation_p_value(torch.zeros(99, dtype=torch.bool)).item() == pytest.approx(0.01)
    ties = torch.tensor([True] * 4 + [False] * 95)
    assert permutation_p_value(evidence, ties).item() == pytest.approx(1 / 96)  # ties are no evidence at all
    assert permutation_p_value(evidence, torch.ones(99, dtype=torch.bool)).item() == 1


def test_intervals_cover_the_mean_as_often_as_they_say() -> None:
    draws = torch.randn(8, 400, generator=seeded(3), dtype=torch.float64)  # 8 mini-batches of 400 quantities
    found = batch_interval(draws)
    covered = ((found.low <= 0) & (found.high >= 0)).double().mean().item()
    assert 0.91 < covered < 0.98
    boot = bootstrap_interval(draws, generator=seeded())
    assert 0.80 < ((boot.low <= 0) & (boot.high >= 0)).double().mean().item() < 0.97
    assert torch.allclose(found.mean, draws.mean(0))


def test_degenerate_intervals() -> None:
    for interval in (batch_interval, bootstrap_interval):
        alone = interval(torch.ones(1, 2))
        assert alone.mean.tolist() == [1, 1]
        assert alone.low.isnan().all()
        with pytest.raises(ValueError, match="at least 1"):
            interval(torch.ones(0, 2))
        with pytest.raises(ValueError, match="level"):
            interval(torch.ones(3), level=95.0)


@pytest.mark.parametrize(("level", "deviations"), [(0.95, 1.960), (0.8, 1.282)])
def test_both_ends_of_a_bootstrap_interval_lie_where_a_normal_mean_says(level: float, deviations: float) -> None:
    draws = torch.randn(400, 20, generator=seeded(5), dtype=torch.float64)
    found = bootstrap_interval(draws, level=level, resamples=4000, generator=seeded())
    half = deviations * draws.std(0) / 20  # of the mean of 400
    assert ((found.mean - found.low) / half).mean().item() == pytest.approx(1, abs=0.03)
    assert ((found.high - found.mean) / half).mean().item() == pytest.approx(1, abs=0.03)

"""The ridge fit behind repair, against direct solutions."""

import pytest
import torch

from infoprune.repairing.ridge import Moments, fit


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def test_ridge_agrees_with_a_direct_solution() -> None:
    x, noise = torch.randn(2, 5, 400, dtype=torch.float64), torch.randn(2, 3, 400, dtype=torch.float64)
    weight = torch.randn(2, 3, 5, dtype=torch.float64)
    y = weight @ x + 1.0 + 0.1 * noise
    sums = Moments(2, 5, 3)
    sums.add(x[:, :, :300], y[:, :, :300])
    sums.add(x[:, :, 300:], y[:, :, 300:])
    start = torch.zeros(2, 3, 5)
    found = fit(sums, Moments(2, 5, 3), start, torch.zeros(2, 3), strengths=[1e-12])
    for group in range(2):
        design = torch.cat([x[group], torch.ones(1, 400)]).T
        direct = torch.linalg.lstsq(design, y[group].T).solution.T
        assert torch.allclose(found.weight[group], direct[:, :5], atol=1e-8)
        assert torch.allclose(found.bias[group], direct[:, 5], atol=1e-8)
    left = (y - found.weight @ x - found.bias.unsqueeze(2)).square().sum((0, 1)).mean()
    assert sums.error(found.weight, found.bias) == pytest.approx(float(left), rel=1e-6)


def test_the_map_as_it_was_wins_where_the_target_is_noise() -> None:
    train, held = Moments(1, 40, 2), Moments(1, 40, 2)
    for sums in (train, held):
        sums.add(torch.randn(1, 40, 50), torch.randn(1, 2, 50))
    found = fit(train, held, torch.zeros(1, 2, 40), torch.zeros(1, 2), intercept=False, strengths=[1e-9, 1e-3])
    assert found.strength == float("inf")
    assert found.error_after == found.error_before
    assert torch.equal(found.weight, torch.zeros(1, 2, 40, dtype=torch.float64))

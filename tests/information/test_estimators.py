"""Nearest-neighbour estimators against true values, and the matrix-based one's rank order beside them."""

import math
import re

import pytest
import torch
from scipy.special import digamma, gammaln
from sklearn.feature_selection import mutual_info_regression

from infoprune.information.checking import check_estimator
from infoprune.information.estimators import ksg, ross
from infoprune.information.gram import filter_grams
from infoprune.information.resampling import debiased_mutual_information
from infoprune.information.widths import RULES


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def correlated(n: int, d: int, rho: float) -> tuple[torch.Tensor, torch.Tensor]:
    x, noise = torch.randn(2, n, d, generator=seeded(4), dtype=torch.float64)
    return x, rho * x + math.sqrt(1 - rho**2) * noise


def test_bivariate_normal_and_its_monotone_transforms() -> None:
    x, y = correlated(3000, 1, 0.75)
    for a, b in ((x, y), (x.sinh(), y), (x, y**3), (torch.special.ndtr(x), torch.special.ndtr(y))):
        assert ksg(a, b) * math.log(2) == pytest.approx(0.413339, abs=0.05)


@pytest.mark.parametrize(("width", "nats"), [(0.1, 1.709438), (0.75, 0.333333)])
def test_additive_uniform_noise(width: float, nats: float) -> None:
    x = torch.rand(3000, 1, generator=seeded(1), dtype=torch.float64)
    y = x + width * (2 * torch.rand(3000, 1, generator=seeded(2), dtype=torch.float64) - 1)
    assert ksg(x, y) * math.log(2) == pytest.approx(nats, abs=0.05)


def student_t(d: int, df: float, n: int) -> torch.Tensor:
    """Ranks of 2·d coordinates that share one scale: heavy tails, and information ignores monotone transforms."""
    torch.manual_seed(0)
    scale = torch.distributions.Chi2(df).sample((n, 1)).sqrt().double()
    return (torch.randn(n, 2 * d, dtype=torch.float64) / scale).argsort(0).argsort(0).double() / n


def student_t_information(d: int, df: float) -> float:
    """I(X;Y) in nats of the halves of a 2·d-dimensional Student-t of unit scale, from its differential entropies."""

    def entropy(k: int) -> float:
        return (
            gammaln(df / 2)
            - gammaln((df + k) / 2)
            + k / 2 * math.log(df * math.pi)
            + (df + k) / 2 * (digamma((df + k) / 2) - digamma(df / 2))
        )

    return float(2 * entropy(d) - entropy(2 * d))


@pytest.mark.parametrize(("d", "df", "nats"), [(1, 1.0, 0.224171), (3, 2.0, 0.290922)])
def test_student_t(d: int, df: float, nats: float) -> None:
    assert student_t_information(d, df) == pytest.approx(nats, abs=5e-7)
    sample = student_t(d, df, 4000)
    found = ksg(sample[:, :d], sample[:, d:]) * math.log(2)
    if d == 1:
        assert found == pytest.approx(nats, abs=0.05)
    else:  # nearest neighbours see only part of what a scale shared by six coordinates tells
        assert 0.1 < found < nats


@pytest.mark.parametrize(("d", "nats", "error"), [(2, 0.293893, 0.05), (5, 0.592812, 0.05), (25, 1.292184, 0.5)])
def test_dense_normal(d: int, nats: float, error: float) -> None:
    # All correlations 0.5 in d + d dimensions: I = ½ log(det Σx det Σy / det Σ). The estimate falls short in many.
    covariance = torch.full((2 * d, 2 * d), 0.5, dtype=torch.float64).fill_diagonal_(1)
    sample = torch.randn(4000, 2 * d, generator=seeded(), dtype=torch.float64) @ torch.linalg.cholesky(covariance).T
    known = covariance[:d, :d].logdet() - 0.5 * covariance.logdet()
    assert known.item() == pytest.approx(nats, abs=5e-7)
    assert ksg(sample[:, :d], sample[:, d:]) * math.log(2) == pytest.approx(nats, abs=error)


def test_one_dimension_agrees_with_scikit_learn() -> None:
    x, y = correlated(500, 1, 0.6)
    theirs = mutual_info_regression(x.numpy(), y[:, 0].numpy(), n_neighbors=3, random_state=0)[0]
    assert ksg(x, y) * math.log(2) == pytest.approx(theirs, abs=1e-3)


def test_ross_on_two_normals() -> None:
    labels = torch.arange(4000) % 2
    x = torch.randn(4000, 1, generator=seeded(), dtype=torch.float64) + 2 * labels[:, None]
    grid = torch.linspace(-8, 10, 20001, dtype=torch.float64)
    parts = [torch.exp(-((grid - m) ** 2) / 2) / math.sqrt(2 * math.pi) for m in (0, 2)]
    mixed = (parts[0] + parts[1]) / 2
    h_mixed = -torch.trapezoid(mixed * mixed.log2(), grid).item()
    known = h_mixed - 0.5 * math.log2(2 * math.pi * math.e)
    assert ross(x, labels) == pytest.approx(known, abs=0.04)
    with pytest.raises(ValueError, match="one dimension"):
        ross(torch.zeros(20, 2), torch.arange(20) % 2)


def test_matrix_based_information_ranks_as_the_nearest_neighbours_do() -> None:
    ours, theirs = [], []
    for rho in (0.2, 0.6, 0.85, 0.97):
        x, y = correlated(256, 1, rho)
        grams = filter_grams(torch.stack([x, y], 1))
        ours.append(debiased_mutual_information(grams[0], grams[1], permutations=5, generator=seeded()).debiased.item())
        theirs.append(ksg(x, y))
    assert ours == sorted(ours)
    assert theirs == sorted(theirs)


def test_what_cannot_be_estimated_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 5"):
        ksg(torch.zeros(4, 1), torch.zeros(4, 1))
    with pytest.raises(ValueError, match="NaN or Inf"):
        ksg(torch.full((9, 1), torch.nan), torch.zeros(9, 1))


@pytest.mark.parametrize("rule", RULES)
def test_check_estimator_tells_exact_from_biased_cases(rule: str) -> None:
    rows = check_estimator(rule=rule, samples=48, repeats=2, permutations=3)
    cases = {row.case: row for row in rows}
    assert len(cases) == len(rows) == 12
    for row in rows:
        if row.nearest_neighbour is None and row.truth is not None:
            assert row.raw == pytest.approx(row.truth, abs=1e-12)  # discrete: exact
        assert row.saturated == (row.margin < 0.05)
    assert all(row.raw >= -1e-12 for row in rows)
    assert cases["a Gaussian and its copy, d = 5"].truth is None
    if rule == "silverman":
        assert cases["independent Gaussians, d = 20"].truth == 0


def test_check_estimator_follows_its_seed_and_refuses_nonsense() -> None:
    once, again = (check_estimator(samples=16, repeats=1, permutations=2, seed=3) for _ in range(2))
    assert once == again
    with pytest.raises(ValueError, match="repeats"):
        check_estimator(repeats=0)
    with pytest.raises(ValueError, match="at least 8"):
        check_estimator(samples=4)


def test_truths_are_those_of_the_distributions() -> None:
    cases = {row.case: row.truth for row in check_estimator(samples=48, repeats=1, permutations=2)}
    correlated_cases = {name: truth for name, truth in cases.items() if truth and "Gauss" in name}
    assert correlated_cases
    for name, truth in correlated_cases.items():
        correlation, dimension = float(re.search(r"0\.\d+", name)[0]), int(re.search(r"d = (\d+)", name)[1])
        assert truth == pytest.approx(dimension * -0.5 * math.log2(1 - correlation**2))

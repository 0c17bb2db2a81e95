"""Large-matrix routes against the exact entropy, and their stated errors against the true ones."""

import pytest
import torch

from infoprune.information.entropy import renyi_entropy
from infoprune.information.gram import filter_grams
from infoprune.information.traces import METHODS, estimate_entropy, pivoted_cholesky


@pytest.fixture(params=[(1, 1.0), (3, 1.0), (30, 1.0), (5, 10.0)], ids=str)
def gram(request: pytest.FixtureRequest) -> torch.Tensor:
    dimension, gamma = request.param
    return filter_grams(torch.randn(200, 1, dimension), gamma=gamma)[0]


@pytest.mark.parametrize("alpha", [0.7, 1.0, 1.01, 2.0])
def test_stated_errors_hold(gram: torch.Tensor, alpha: float) -> None:
    known = renyi_entropy(gram, alpha=alpha).item()
    exact, stochastic, low_rank = (
        estimate_entropy(gram, method=m, alpha=alpha, generator=torch.Generator().manual_seed(0)) for m in METHODS
    )
    assert (exact.value, exact.error) == (known, 0.0)
    assert abs(low_rank.value - known) <= low_rank.error + 1e-9
    assert abs(stochastic.value - known) <= 5 * stochastic.error + 1e-3
    if alpha == 1:
        assert low_rank.error < 1e-4


def test_the_standard_error_is_neither_boast_nor_excuse() -> None:
    gram = filter_grams(torch.randn(100, 1, 10))[0]
    known = renyi_entropy(gram).item()
    found = [
        estimate_entropy(gram, method="stochastic", probes=10, generator=torch.Generator().manual_seed(k))
        for k in range(25)
    ]
    z = torch.tensor([(f.value - known) / f.error for f in found])
    assert 0.5 < z.square().mean().sqrt() < 2
    assert abs(z.mean()) < 0.7


def test_exactly_known_spectra() -> None:
    for method in METHODS:
        assert estimate_entropy(torch.eye(64), method=method).value == pytest.approx(6, abs=1e-9)
        assert estimate_entropy(torch.ones(64, 64), method=method).value == pytest.approx(0, abs=1e-4)


def test_pivoted_cholesky_leaves_what_it_says() -> None:
    gram = filter_grams(torch.randn(120, 1, 2))[0]
    factor, left = pivoted_cholesky(gram / 120, 1e-4)
    rest = gram / 120 - factor @ factor.mT
    assert rest.trace().item() == pytest.approx(left, abs=1e-12)
    assert left <= 1e-4
    assert factor.shape[1] < 100
    assert torch.linalg.eigvalsh(rest).min() > -1e-14


def test_bad_options_are_refused() -> None:
    gram = torch.eye(4)
    with pytest.raises(ValueError, match="did you mean 'low_rank'"):
        estimate_entropy(gram, method="lowrank")
    with pytest.raises(ValueError, match="probes"):
        estimate_entropy(gram, method="stochastic", probes=1)
    with pytest.raises(ValueError, match="tolerance"):
        estimate_entropy(gram, method="low_rank", tolerance=0.0)
    with pytest.raises(ValueError, match="NaN or Inf"):
        estimate_entropy(gram * float("nan"), method="stochastic")

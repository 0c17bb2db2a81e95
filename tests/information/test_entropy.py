"""Entropies and information against closed forms, classical Shannon values, and their exact properties."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from infoprune.information.entropy import (
    SATURATION_BITS,
    conditional_mutual_information,
    joint_entropy,
    label_entropy,
    label_joint_entropy,
    label_mutual_information,
    mutual_information,
    renyi_entropy,
    saturation_margin,
)
from infoprune.information.gram import delta, rbf, squared_distances
from infoprune.information.spectra import entropy_of_spectrum, kernel_entropy, spectrum
from infoprune.information.validation import require_square

ALPHAS = (0.5, 1.0, 1.01, 2.0, 3.0)
few = settings(deadline=None, max_examples=25)
seeds = st.integers(0, 2**31 - 1)


def gram_of(seed: int, n: int = 12, d: int = 3, sigma: float = 1.0) -> Tensor:
    x = torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return rbf(squared_distances(x), sigma)


def unchecked(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The function as users call it, without the tests' shape checker in front."""
    return getattr(function, "__wrapped__", function)


def shannon(*columns: Tensor) -> float:
    counts = torch.stack(columns, 1).unique(dim=0, return_counts=True)[1].double()
    shares = counts / counts.sum()
    return float(-(shares * shares.log2()).sum())


@pytest.mark.parametrize("alpha", ALPHAS)
def test_identity_and_ones_are_the_extremes(alpha: float) -> None:
    assert renyi_entropy(torch.eye(16, dtype=torch.float64), alpha=alpha).item() == pytest.approx(4, abs=1e-12)
    assert renyi_entropy(torch.ones(16, 16, dtype=torch.float64), alpha=alpha).item() == pytest.approx(0, abs=1e-11)


@pytest.mark.parametrize(("alpha", "known"), [(1.0, 1.5), (1.01, 1.4991336), (2.0, 1.4150375)])
def test_delta_kernel_gives_classical_renyi_entropy(alpha: float, known: float) -> None:
    labels = torch.tensor([0] * 8 + [1] * 4 + [2] * 4)
    assert renyi_entropy(delta(labels), alpha=alpha).item() == pytest.approx(known, abs=5e-8)
    assert label_entropy(labels, alpha=alpha).item() == pytest.approx(known, abs=5e-8)


@pytest.mark.parametrize(("alpha", "known"), [(1.01, 4.424419), (2.0, 1.966577)])
def test_equicorrelation(alpha: float, known: float) -> None:
    n, rho = 128, 0.5
    gram = torch.full((n, n), rho, dtype=torch.float64).fill_diagonal_(1)
    eigenvalues = torch.tensor([(1 - rho) / n] * (n - 1) + [(1 + (n - 1) * rho) / n], dtype=torch.float64)
    assert torch.allclose(spectrum(gram / n), eigenvalues, atol=1e-14)
    assert renyi_entropy(gram, alpha=alpha).item() == pytest.approx(known, abs=5e-7)
    assert entropy_of_spectrum(eigenvalues, alpha).item() == pytest.approx(known, abs=5e-7)


def test_full_factorial_design_carries_no_information() -> None:
    code = torch.arange(24)
    u, v = (code // 4).double(), (code % 4).double()
    for a, b in (
        (rbf(squared_distances(u[:, None]), 1.3), rbf(squared_distances(v[:, None]), 0.4)),
        (delta(code // 4), rbf(squared_distances(v[:, None]), 2.0)),
    ):
        assert abs(mutual_information(a, b).item()) < 1e-13


def test_xor_and_and_gates() -> None:
    code = torch.arange(4)
    a, b = code // 2, code % 2
    for target, alone, both in ((a ^ b, 0.0, 1.0), (a & b, 0.311278, 0.811278)):
        x = delta(target)
        assert mutual_information(x, delta(a)).item() == pytest.approx(alone, abs=5e-7)
        assert mutual_information(x, delta(b)).item() == pytest.approx(alone, abs=5e-7)
        assert mutual_information(x, delta(a) * delta(b)).item() == pytest.approx(both, abs=5e-7)


def test_same_variable_twice() -> None:
    x = torch.randn(20, 3, dtype=torch.float64)
    d = squared_distances(x)
    assert joint_entropy(rbf(d, 1.0), rbf(d, 1.0)).item() == pytest.approx(
        renyi_entropy(rbf(d, 1 / math.sqrt(2))).item(), abs=1e-12
    )
    assert mutual_information(rbf(d, 1.0), rbf(d, 1.0)).item() < renyi_entropy(rbf(d, 1.0)).item() - 0.1
    labels = torch.arange(20) % 3
    assert mutual_information(delta(labels), delta(labels)).item() == pytest.approx(shannon(labels), abs=1e-12)


def test_order_two_can_fall_below_zero() -> None:
    u, v = torch.tensor([1, 2, 1, 1, 0, 1, 1]), torch.tensor([0, 1, 2, 1, 1, 1, 1])
    assert mutual_information(delta(u), delta(v), alpha=2.0).item() == pytest.approx(-0.1946, abs=5e-5)
    assert mutual_information(delta(u), delta(v)).item() > 0


def test_rbf_on_one_hot_labels_underestimates_where_delta_does_not() -> None:
    labels = torch.randint(10, (128,), generator=torch.Generator().manual_seed(1))
    one_hot = torch.nn.functional.one_hot(labels, 10).double()
    sigma = 5 * 128 ** (-1 / 14)
    assert renyi_entropy(rbf(squared_distances(one_hot), sigma)).item() == pytest.approx(0.56, abs=0.02)
    assert renyi_entropy(delta(labels)).item() == pytest.approx(shannon(labels), abs=1e-12)


@few
@given(seeds)
def test_discrete_information_is_plug_in_shannon(seed: int) -> None:
    a, b, z = torch.randint(3, (3, 30), generator=torch.Generator().manual_seed(seed))
    known = shannon(a) + shannon(b) - shannon(a, b)
    assert mutual_information(delta(a), delta(b)).item() == pytest.approx(known, abs=1e-12)
    conditional = shannon(a, z) + shannon(b, z) - shannon(a, b, z) - shannon(z)
    found = conditional_mutual_information(delta(a), delta(b), delta(z)).item()
    assert found == pytest.approx(conditional, abs=1e-12)


@few
@given(seeds, st.sampled_from(ALPHAS), st.floats(0.2, 5))
def test_bounds_symmetry_and_order(seed: int, alpha: float, sigma: float) -> None:
    a, b = gram_of(seed, sigma=sigma), gram_of(seed + 1, sigma=sigma)
    first, second, joint = (
        float(s)
        for s in (renyi_entropy(a, alpha=alpha), renyi_entropy(b, alpha=alpha), joint_entropy(a, b, alpha=alpha))
    )
    assert min(first, second) >= -1e-12
    assert max(first, second) - 1e-10 <= joint <= math.log2(12) + 1e-12
    assert joint == pytest.approx(float(joint_entropy(b, a, alpha=alpha)), abs=1e-12)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(seed))
    moved = (a[order][:, order], b[order][:, order])
    assert float(mutual_information(*moved, alpha=alpha)) == pytest.approx(first + second - joint, abs=1e-9)
    assert float(renyi_entropy(a, alpha=alpha + 0.3)) <= first + 1e-10


@few
@given(seeds, st.floats(0.2, 5))
def test_shannon_information_is_non_negative_and_chains(seed: int, sigma: float) -> None:
    a, b, z = (gram_of(seed + k, sigma=sigma) for k in range(3))
    conditional = conditional_mutual_information(a, b, z).item()
    assert mutual_information(a, b).item() >= -1e-12
    assert conditional >= -1e-12
    assert mutual_information(a * z, b).item() == pytest.approx(
        mutual_information(z, b).item() + conditional, abs=1e-10
    )


@few
@given(seeds, st.sampled_from(ALPHAS), st.integers(1, 12))
def test_label_blocks_equal_the_full_joint(seed: int, alpha: float, classes: int) -> None:
    labels = torch.randint(classes, (12,), generator=torch.Generator().manual_seed(seed)) * 7 - 3
    grams = torch.stack([gram_of(seed), gram_of(seed + 1)])
    full = joint_entropy(grams, delta(labels), alpha=alpha)
    assert torch.allclose(label_joint_entropy(grams, labels, alpha=alpha), full, atol=1e-10)
    whole = mutual_information(grams, delta(labels), alpha=alpha)
    assert torch.allclose(label_mutual_information(grams, labels, alpha=alpha), whole, atol=1e-10)


def test_batch_dimensions_broadcast() -> None:
    a = torch.stack([gram_of(k) for k in range(6)]).reshape(2, 3, 12, 12)
    b = gram_of(9)
    found = mutual_information(a, b)
    assert found.shape == (2, 3)
    assert found[1, 2].item() == pytest.approx(mutual_information(a[1, 2], b).item(), abs=1e-12)


def test_any_positive_diagonal_is_normalised_away() -> None:
    gram, scale = gram_of(3), torch.linspace(0.5, 4, 12, dtype=torch.float64)
    scaled = gram * scale[:, None] * scale
    assert renyi_entropy(scaled).item() == pytest.approx(renyi_entropy(gram).item(), abs=1e-12)


def test_float32_keeps_its_dtype_and_is_close() -> None:
    gram = gram_of(5, n=64)
    found = renyi_entropy(gram.float())
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(renyi_entropy(gram).item(), abs=1e-4)


def test_shannon_is_the_limit_of_orders() -> None:
    gram = gram_of(7)
    exact = renyi_entropy(gram).item()
    for step in (1e-3, 1e-5):
        below, above = (renyi_entropy(gram, alpha=1 + s).item() for s in (-step, step))
        assert above < exact < below
        assert above == pytest.approx(below, abs=10 * step)


@pytest.mark.parametrize("n", [2, 3, 40])
@pytest.mark.parametrize("alpha", ALPHAS)
def test_fast_entropies_equal_exact_ones(n: int, alpha: float) -> None:
    grams = torch.stack([gram_of(k, n=n, sigma=s) for k, s in enumerate((0.05, 0.5, 1.0, 3.0, 30.0, 1e3))])
    grams = torch.cat([grams, torch.eye(n).double()[None], torch.ones(1, n, n).double()])
    exact = renyi_entropy(grams, alpha=alpha)
    assert torch.allclose(kernel_entropy(grams, alpha=alpha), exact, atol=n * 1e-9)
    assert torch.allclose(kernel_entropy(grams, alpha=alpha, threads=False), exact, atol=n * 1e-9)


def test_saturation() -> None:
    assert saturation_margin(renyi_entropy(torch.eye(8)), 8).item() < SATURATION_BITS
    assert saturation_margin(renyi_entropy(gram_of(1)), 12).item() > SATURATION_BITS
    silverman = rbf(squared_distances(torch.randn(128, 196)), 5 * 128 ** (-1 / 200))
    assert renyi_entropy(silverman).item() == pytest.approx(7.0, abs=5e-3)  # the paper's width, one 14×14 filter


def test_two_samples_and_duplicates() -> None:
    assert renyi_entropy(torch.eye(2)).item() == pytest.approx(1)
    x = torch.randn(5, 2, dtype=torch.float64)
    twice = rbf(squared_distances(x.repeat(2, 1)), 1.0)
    assert renyi_entropy(twice).item() == pytest.approx(renyi_entropy(rbf(squared_distances(x), 1.0)).item(), abs=1e-10)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_not_finite_is_refused(bad: float) -> None:
    gram = torch.eye(4)
    gram[0, 1] = gram[1, 0] = bad
    with pytest.raises(ValueError, match="NaN or Inf"):
        renyi_entropy(gram)


def test_what_has_no_entropy_is_refused() -> None:
    with pytest.raises(ValueError, match="diagonal"):
        renyi_entropy(torch.zeros(3, 3))
    with pytest.raises(ValueError, match="eigenvalue"):
        renyi_entropy(torch.tensor([[1.0, 3.0], [3.0, 1.0]]))
    with pytest.raises(ValueError, match="n >= 1"):
        renyi_entropy(torch.zeros(0, 0))
    with pytest.raises(ValueError, match="at least one"):
        joint_entropy()
    with pytest.raises(ValueError, match="one integer class per sample"):
        unchecked(label_joint_entropy)(torch.eye(4), torch.tensor([0, 1]))


@pytest.mark.parametrize("alpha", [0.0, -1.0, float("nan"), float("inf")])
def test_orders_out_of_range_are_refused(alpha: float) -> None:
    with pytest.raises(ValueError, match="alpha"):
        renyi_entropy(torch.eye(3), alpha=alpha)


@pytest.mark.parametrize("shape", [(3,), (2, 3), (3, 2, 3), (0, 0), ()])
def test_what_is_not_square_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="expected square matrices"):
        require_square(shape, "a matrix")

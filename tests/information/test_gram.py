"""Distances, kernels and kernel widths."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from infoprune.information.entropy import SATURATION_BITS, renyi_entropy, saturation_margin
from infoprune.information.gram import (
    delta,
    delta_distances,
    filter_distances,
    filter_exponents,
    filter_grams,
    linear,
    rbf,
    set_exponents,
    squared_distances,
)
from infoprune.information.widths import GRID, RULES, kernel_width

few = settings(deadline=None, max_examples=20)


@few
@given(st.integers(0, 10**6), st.integers(2, 9), st.integers(1, 7), st.sampled_from([64, 4000, 10**9]))
def test_distances_equal_the_definition_at_any_memory(seed: int, n: int, d: int, memory: int) -> None:
    x = torch.randn(2, 3, n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    plain = (x[..., :, None, :] - x[..., None, :, :]).square().sum(-1)
    found = squared_distances(x, memory_limit=memory)
    assert torch.allclose(found, plain, atol=1e-12)
    assert torch.equal(found, found.mT)
    assert (found >= 0).all()
    assert (found.diagonal(dim1=-2, dim2=-1) == 0).all()


def test_far_from_the_origin_small_distances_survive() -> None:
    x = torch.tensor([[1e6], [1e6 + 0.25], [1e6 + 1]])
    assert squared_distances(x)[0].tolist() == pytest.approx([0, 0.0625, 1], rel=1e-6)


def test_kernels() -> None:
    d = squared_distances(torch.tensor([[0.0], [2.0]]))
    assert rbf(d, 2.0)[0, 1].item() == pytest.approx(math.exp(-0.5))
    assert rbf(torch.stack([d, d]), torch.tensor([1.0, 2.0]))[0, 0, 1].item() == pytest.approx(math.exp(-2))
    assert torch.equal(torch.exp(-delta_distances(torch.tensor([3, 1, 3]))), delta(torch.tensor([3, 1, 3])))
    assert linear(torch.tensor([[1.0, 2.0]])).item() == 5
    with pytest.raises(ValueError, match="width"):
        rbf(d, 0.0)


def test_silverman_and_standardised_widths() -> None:
    d = torch.zeros(2, 128, 128)
    assert kernel_width(d, rule="silverman", dimension=196)[0].item() == pytest.approx(5 * 128 ** (-1 / 200))
    assert kernel_width(d, rule="silverman", dimension=3, h=0.1)[0].item() == pytest.approx(0.1 * 128 ** (-1 / 7))
    found = kernel_width(d, dimension=49, variance=torch.tensor([4.0, 0.0]), gamma=0.5)
    assert found.tolist() == pytest.approx([0.5 * 7 * 128 ** (-1 / 53) * s for s in (2, 1)])


def test_distance_share_is_of_the_median_over_distinct_samples() -> None:
    x = torch.tensor([[0.0], [1.0], [3.0]])  # distances 1, 2, 3
    assert kernel_width(squared_distances(x), rule="distance_share", share=0.1).item() == pytest.approx(0.2)
    mostly_dead = squared_distances(torch.tensor([[0.0]] * 9 + [[5.0]]))
    assert kernel_width(mostly_dead, rule="distance_share", share=0.2).item() == pytest.approx(1.0)
    assert kernel_width(torch.zeros(4, 4), rule="distance_share").item() == pytest.approx(0.15)


def test_label_alignment_maximises_the_alignment_on_its_grid() -> None:
    labels = torch.arange(24) % 3
    x = torch.nn.functional.one_hot(labels, 3).double() * 3 + torch.randn(24, 3, dtype=torch.float64)
    d = squared_distances(x)
    target, mean = delta(labels), d.sqrt().sum() / (24 * 23)

    def aligned(sigma: torch.Tensor) -> float:
        kernel = rbf(d, sigma)
        return float((kernel * target).sum() / (kernel.norm() * target.norm()))

    best = kernel_width(d, rule="label_alignment", labels=labels)
    assert aligned(best) == pytest.approx(max(aligned(mean * multiple) for multiple in GRID))
    assert 0.1 <= best / mean <= 10
    with pytest.raises(ValueError, match="labels"):
        kernel_width(d, rule="label_alignment")


def test_unknown_rules_come_with_a_suggestion() -> None:
    with pytest.raises(ValueError, match="did you mean 'silverman'"):
        kernel_width(torch.zeros(3, 3), rule="silvermann")
    with pytest.raises(ValueError, match="share"):
        kernel_width(torch.zeros(3, 3), rule="distance_share", share=-1.0)


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule != "silverman"])
def test_filter_grams_ignore_a_batch_norms_scale_and_shift(rule: str) -> None:
    maps, labels = torch.randn(10, 3, 4, 4, dtype=torch.float64), torch.arange(10) % 2
    scaled = maps * torch.tensor([0.1, 5.0, 2.0])[:, None, None] + torch.tensor([3.0, -1.0, 0.5])[:, None, None]
    assert torch.allclose(
        filter_grams(maps, rule=rule, labels=labels), filter_grams(scaled, rule=rule, labels=labels), atol=1e-10
    )


def test_filter_grams_equal_the_definition() -> None:
    maps = torch.randn(8, 2, 3, 3)
    x = maps[:, 1].flatten(1).double()
    x = (x - x.mean()) / x.std(correction=0)
    sigma = math.sqrt(9) * 8 ** (-1 / 13)
    assert torch.allclose(filter_grams(maps)[1], rbf(squared_distances(x), sigma), atol=1e-12)
    small = filter_grams(maps, memory_limit=1000)
    assert torch.allclose(filter_grams(maps), small, atol=1e-12)
    assert small.dtype == torch.float64


def test_maps_of_any_shape_in_space() -> None:
    maps = torch.randn(6, 2, 2, 2)
    assert torch.allclose(filter_grams(maps), filter_grams(maps.flatten(2)), atol=1e-12)
    assert filter_grams(torch.randn(6, 2)).shape == (2, 6, 6)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("level", [0.0, 0.1, -3e4])
def test_a_constant_map_knows_nothing(rule: str, level: float) -> None:
    maps = torch.full((8, 1, 5, 5), level)
    assert torch.equal(filter_grams(maps, rule=rule, labels=torch.arange(8) % 2), torch.ones(1, 8, 8).double())
    assert filter_distances(maps).variance.item() == 0


def test_rounding_noise_on_a_constant_is_no_signal() -> None:
    maps = 100 + 1e-5 * torch.randn(8, 1, 5, 5)
    assert torch.equal(filter_grams(maps), torch.ones(1, 8, 8).double())


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_not_finite_is_refused(bad: float) -> None:
    maps = torch.zeros(4, 2, 3, 3)
    maps[1, 1, 2, 2] = bad
    for broken in (lambda: filter_grams(maps), lambda: squared_distances(maps.flatten(2)), lambda: linear(maps[:, 1])):
        with pytest.raises(ValueError, match="NaN or Inf"):
            broken()


def test_no_variable_is_refused() -> None:
    for shape in ((0, 4, 2), (4, 0)):
        with pytest.raises(ValueError, match="an empty tensor"):
            squared_distances(torch.zeros(shape))


def test_too_little_is_refused() -> None:
    for maps in (torch.zeros(1, 2, 3, 3), torch.zeros(4, 0, 3, 3), torch.zeros(4, 2, 0, 3), torch.zeros(0, 2, 3, 3)):
        with pytest.raises(ValueError, match=r"sample|empty"):
            filter_grams(maps)
    with pytest.raises(ValueError, match="empty"):
        squared_distances(torch.zeros(3, 0))


def test_two_samples_are_enough() -> None:
    assert renyi_entropy(filter_grams(torch.randn(2, 1, 3, 3)))[0].item() > 0


def test_sets_are_sums_of_exponents_and_widen_by_the_square_root() -> None:
    maps = torch.randn(16, 5, 3, 3)
    exponents = filter_exponents(maps)
    product = filter_grams(maps).prod(0)
    assert torch.allclose(set_exponents(exponents.sum(0), 5, widen=False).neg().exp(), product, atol=1e-12)
    # σ√C on each kernel of the product is the same as the mean of the exponents
    assert torch.allclose(set_exponents(exponents.sum(0), 5).neg().exp(), product ** (1 / 5), atol=1e-12)


def test_widening_keeps_many_filters_from_saturating() -> None:
    exponents = filter_exponents(torch.randn(64, 128, 4, 4))
    plain, widened = (renyi_entropy(set_exponents(exponents.sum(0), 128, widen=w).neg().exp()) for w in (False, True))
    assert saturation_margin(plain, 64) < SATURATION_BITS < saturation_margin(widened, 64)

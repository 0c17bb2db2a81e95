"""CMI-permutation on layers whose right answer is known."""

import math

import pytest
import torch

from infoprune.information.entropy import conditional_mutual_information
from infoprune.information.gram import delta, delta_distances, filter_exponents
from infoprune.information.permutation import _problem, cmi_permutation
from infoprune.information.selection import VARIANTS, Selection, Variant, packed, unpacked, width_interval


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def informative(filters: int, d: int, n: int = 96, noise: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    labels = torch.randint(5, (n,), generator=seeded(1))
    templates = torch.randn(5, filters, d, generator=seeded(2))
    return templates[labels] + noise * torch.randn(n, filters, d, generator=seeded(3)), labels


def test_pure_noise_selects_about_none() -> None:
    widths = []
    for seed in range(8):
        labels = torch.randint(4, (64,), generator=seeded(seed))
        exponents = filter_exponents(torch.randn(64, 24, 8, generator=seeded(seed + 100)))
        widths.append(cmi_permutation(exponents, labels, generator=seeded(seed)).width)
    assert sum(widths) / len(widths) <= 0.5


def test_duplicates_are_not_both_selected() -> None:
    labels = torch.arange(60) % 3
    noise = torch.randint(2, (3, 60), generator=seeded())
    filters = torch.stack([noise[0], labels, labels, noise[1], labels, noise[2]])
    found = cmi_permutation(delta_distances(filters), labels, generator=seeded())
    assert found.order == (1,)


def test_discrete_filters_are_exact() -> None:
    labels = torch.randint(3, (80,), generator=seeded())
    flip = torch.rand(4, 80, generator=seeded(1)) < torch.tensor([0.1, 0.3, 0.3, 0.6])[:, None]
    filters = torch.where(flip, torch.randint(3, (4, 80), generator=seeded(2)), labels)
    found = cmi_permutation(delta_distances(filters), labels, generator=seeded(), permutations=30)
    step = found.steps[0]
    assert step.candidate == 0
    rest = delta(filters[1:]).prod(0)
    known = conditional_mutual_information(rest, delta(labels), delta(filters[0])).item()
    assert step.conditional == pytest.approx(known, abs=1e-6)


def test_the_paper_saturates_and_stops_where_the_correction_goes_on() -> None:
    maps, labels = informative(16, 64)
    paper = cmi_permutation(filter_exponents(maps, rule="silverman"), labels, variant="paper", generator=seeded())
    corrected = cmi_permutation(filter_exponents(maps), labels, max_filters=6, generator=seeded())
    assert paper.stop == "insignificant"
    assert paper.width <= 3
    assert paper.steps[-1].margin < 0.05
    assert (corrected.width, corrected.stop) == (6, "limit")
    assert corrected.steps[-1].margin > 0.05
    assert not corrected.conclusive


def test_saturation_stops_the_corrected_variant() -> None:
    maps, labels = informative(6, 64)
    found = cmi_permutation(filter_exponents(maps, rule="silverman"), labels, generator=seeded())
    assert found.stop == "saturated"
    assert not found.conclusive


def test_ties_stop_undecided_or_against() -> None:
    labels = torch.arange(40) % 2
    dead = torch.zeros(3, 40, 40, dtype=torch.float64)
    assert cmi_permutation(dead, labels, generator=seeded()).stop == "ties"
    paper = VARIANTS["paper"]
    found = cmi_permutation(dead, labels, variant=paper, generator=seeded())
    assert found.stop == "insignificant"
    assert found.steps[0].p_value == 1
    assert found.steps[0].ties == 100


def test_steps_report_the_chance_band_and_follow_the_seed() -> None:
    maps, labels = informative(8, 16)
    exponents = filter_exponents(maps)
    first = cmi_permutation(exponents, labels, generator=seeded(), max_filters=3)
    again = cmi_permutation(exponents, labels, generator=seeded(), max_filters=3, memory_limit=10**6)
    assert again.order == first.order
    assert [s.conditional for s in again.steps] == pytest.approx([s.conditional for s in first.steps], abs=1e-9)
    for step in first.steps:
        assert step.permuted_low <= step.permuted_mean <= step.permuted_high
        assert step.conditional < step.permuted_low
        assert 0 < step.p_value <= step.adjusted_p_value <= 0.05
    information = [step.information for step in first.steps]
    assert information[0] > 0.5


def test_widths_over_mini_batches() -> None:
    selections = [Selection(tuple(range(k)), (), "insignificant") for k in (2, 3, 4, 3)]
    found = width_interval(selections, generator=seeded())
    assert found.mean.item() == 3
    assert 2 <= found.low.item() < 3 < found.high.item() <= 4


def test_one_filter_is_taken_untested() -> None:
    found = cmi_permutation(filter_exponents(torch.randn(4, 1, 3)), torch.arange(4) % 2)
    assert (found.order, found.stop) == ((0,), "exhausted")


def test_bad_input_is_refused() -> None:
    labels = torch.arange(4) % 2
    exponents = torch.zeros(2, 4, 4, dtype=torch.float64)
    with pytest.raises(ValueError, match="did you mean 'paper'"):
        cmi_permutation(exponents, labels, variant="papers")
    with pytest.raises(ValueError, match="NaN or Inf"):
        cmi_permutation(exponents / 0, labels)
    with pytest.raises(ValueError, match="no filter"):
        cmi_permutation(exponents[:0], labels)
    with pytest.raises(ValueError, match="significance"):
        cmi_permutation(exponents, labels, significance=5.0)


def test_the_papers_kernel_on_labels() -> None:
    """σ = 5 n^(−1/(4 + d)) over one-hot labels of d classes, which lie √2 apart: exp(−2 / 2σ²)."""
    labels = torch.arange(32) % 4
    problem = _problem(filter_exponents(torch.randn(32, 2, 3)), labels, "paper", 2**20)
    sigma = 5 * 32 ** (-1 / 8)
    assert problem.label_kernel is not None
    assert problem.label_kernel[0, 4].item() == 1
    assert problem.label_kernel[0, 1].item() == pytest.approx(math.exp(-1 / sigma**2))
    assert problem.variant == Variant(1.01, False, False, True, False, False, False)  # Algorithm 1 as printed


def test_selections_come_back_from_tensors() -> None:
    found = []
    for seed in (1, 2):
        maps, labels = informative(4, 6)
        found.append(cmi_permutation(filter_exponents(maps), labels, generator=seeded(seed)))
    assert all(selection.steps for selection in found)
    assert unpacked(packed(found)) == found

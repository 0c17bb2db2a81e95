"""Redundancy and synergy on gates whose decomposition is known."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from infoprune.information.decomposition import mean_per_variable, mmi_pid, non_redundant, sample_pairs, tradeoff
from infoprune.information.ensembles import pair_information, set_information, width_reaching
from infoprune.information.entropy import joint_entropy, mutual_information
from infoprune.information.gram import delta, delta_distances, filter_exponents, filter_grams

CODE = torch.arange(4)
A, B = CODE // 2, CODE % 2
few = settings(deadline=None, max_examples=30)
bits = st.floats(0, 8, width=64)


def terms(first: torch.Tensor, second: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, ...]:
    found = pair_information(delta_distances(torch.stack([first, second])), delta(target), torch.tensor([[0, 1]]))
    return found.first, found.second, found.both


def test_xor() -> None:
    found = terms(A, B, A ^ B)
    assert tradeoff(*found).item() == pytest.approx(-1, abs=1e-7)
    assert non_redundant(*found).item() == pytest.approx(2, abs=1e-7)
    assert tradeoff(*found, weighted=True).item() == pytest.approx(-1, abs=1e-7)
    assert mmi_pid(*found).synergy.item() == pytest.approx(1, abs=1e-7)


def test_and() -> None:
    found = terms(A, B, A & B)
    assert tradeoff(*found).item() == pytest.approx(-0.188722, abs=5e-7)
    assert non_redundant(*found).item() == pytest.approx(1.0, abs=1e-7)
    assert non_redundant(*found, weighted=True).item() == pytest.approx(1 / 0.811278, abs=5e-6)
    atoms = mmi_pid(*found)
    assert [a.item() for a in atoms] == pytest.approx([0.311278, 0, 0, 0.5], abs=5e-7)


def test_the_other_known_distribution() -> None:
    # the equally likely outcomes 000, 001, 010, 101 of (T_1, T_2, X)
    atoms = mmi_pid(*terms(torch.tensor([0, 0, 0, 1]), torch.tensor([0, 0, 1, 0]), torch.tensor([0, 1, 0, 1])))
    assert atoms.redundancy.item() == pytest.approx(0.311278, abs=5e-7)
    assert atoms.synergy.item() == pytest.approx(0.188722, abs=5e-7)


@few
@given(bits, bits, bits)
def test_identities(i1: float, i2: float, extra: float) -> None:
    first, second = torch.tensor(i1).double(), torch.tensor(i2).double()
    both = torch.maximum(first, second) + extra
    atoms = mmi_pid(first, second, both)
    assert torch.allclose(sum(atoms, torch.zeros(())), both, atol=1e-12)
    assert min(float(a) for a in atoms) >= -1e-12
    assert torch.allclose(tradeoff(first, second, both), atoms.redundancy - atoms.synergy, atol=1e-12)
    unique = atoms.unique_first + atoms.unique_second
    assert torch.allclose(non_redundant(first, second, both), unique + 2 * atoms.synergy, atol=1e-12)
    assert torch.equal(tradeoff(first, second, both), tradeoff(second, first, both))


def test_a_share_of_nothing_is_undefined() -> None:
    zero = torch.zeros(2)
    assert tradeoff(zero, zero, zero, weighted=True).isnan().all()


def test_pairs_and_their_means() -> None:
    assert len(sample_pairs(40)) == 780
    drawn = sample_pairs(40, limit=50, generator=torch.Generator().manual_seed(1))
    again = sample_pairs(40, limit=50, generator=torch.Generator().manual_seed(1))
    assert torch.equal(drawn, again)
    assert len(drawn.unique(dim=0)) == 50
    assert (drawn[:, 0] < drawn[:, 1]).all()
    assert len(sample_pairs(40, limit=1)) == 1
    with pytest.raises(ValueError, match="limit = 0"):
        sample_pairs(40, limit=0)
    assert mean_per_variable(torch.tensor([1.0]), torch.tensor([[0, 1]]), 3).isnan().tolist() == [False, False, True]
    with pytest.raises(ValueError, match="two variables"):
        sample_pairs(1)


@pytest.mark.parametrize("alpha", [1.0, 2.0])
def test_pair_information_equals_the_definition(alpha: float) -> None:
    maps, target = torch.randn(16, 3, 4), filter_grams(torch.randn(16, 1, 5))[0]
    exponents, grams, pairs = filter_exponents(maps), filter_grams(maps), sample_pairs(3)
    for memory in (2**29, 1):
        plain = pair_information(exponents, target, pairs, alpha=alpha, widen=False, memory_limit=memory)
        for k, (i, j) in enumerate(pairs.tolist()):
            known = mutual_information(grams[i] * grams[j], target, alpha=alpha).item()
            assert plain.both[k].item() == pytest.approx(known, abs=1e-7)
            assert plain.first[k].item() == pytest.approx(
                mutual_information(grams[i], target, alpha=alpha).item(), abs=1e-7
            )
            margin = 4 - joint_entropy(grams[i], grams[j], target, alpha=alpha).item()
            assert plain.margin[k].item() == pytest.approx(margin, abs=1e-7)


def test_a_filter_and_its_copy_are_fully_redundant_when_widened() -> None:
    maps, target = torch.randn(16, 1, 4).repeat(1, 2, 1), filter_grams(torch.randn(16, 1, 5))[0]
    found = pair_information(filter_exponents(maps), target, torch.tensor([[0, 1]]))
    assert torch.allclose(found.both, found.first, atol=1e-10)
    plain = pair_information(filter_exponents(maps), target, torch.tensor([[0, 1]]), widen=False)
    assert (plain.both - plain.first).item() > 0.01


def test_growing_sets() -> None:
    maps, target = torch.randn(16, 4, 3), filter_grams(torch.randn(16, 1, 5))[0]
    exponents, grams = filter_exponents(maps), filter_grams(maps)
    found = set_information(exponents, target, sizes=[1, 3, 4], widen=False)
    known = [mutual_information(grams[:k].prod(0), target).item() for k in (1, 3, 4)]
    assert found.information.tolist() == pytest.approx(known, abs=1e-7)
    assert found.sizes.tolist() == [1, 3, 4]
    assert (found.margin.diff() < 0).all()
    assert width_reaching(found.sizes, found.information, 100.0) is None
    with pytest.raises(ValueError, match="sizes"):
        set_information(exponents, target, sizes=[2, 5])

"""The same numbers on a GPU as on the CPU."""

import pytest
import torch

from infoprune.information.ensembles import pair_information
from infoprune.information.entropy import label_mutual_information, mutual_information, renyi_entropy
from infoprune.information.gram import filter_exponents, filter_grams
from infoprune.information.permutation import cmi_permutation
from infoprune.information.scoring import filter_information
from infoprune.information.traces import METHODS, estimate_entropy

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: CPU and GPU cannot be compared")


@pytest.mark.parametrize("alpha", [1.0, 1.01, 2.0])
def test_entropies_agree_to_1e_9(alpha: float) -> None:
    maps, labels = torch.randn(64, 6, 5, 5, dtype=torch.float64), torch.randint(5, (64,))
    grams, there = filter_grams(maps), filter_grams(maps.cuda())
    for found, known in (
        (there, grams),
        (renyi_entropy(there, alpha=alpha), renyi_entropy(grams, alpha=alpha)),
        (mutual_information(there, there[0], alpha=alpha), mutual_information(grams, grams[0], alpha=alpha)),
        (
            label_mutual_information(there, labels.cuda(), alpha=alpha),
            label_mutual_information(grams, labels, alpha=alpha),
        ),
    ):
        assert found.is_cuda
        assert torch.allclose(found.cpu(), known, atol=1e-9, rtol=0)


def test_scores_and_pairs_agree() -> None:
    maps, labels = torch.randn(64, 6, 5, 5, dtype=torch.float64), torch.randint(5, (64,))
    x = filter_grams(torch.randn(64, 1, 9))[0]
    here, there = filter_information(maps, x, labels), filter_information(maps.cuda(), x.cuda(), labels.cuda())
    for known, found in zip(here, there, strict=True):
        # the CPU's rational approximation is itself off by up to n·1e-10
        assert torch.allclose(found.cpu(), known, atol=1e-8, rtol=0)
    pairs, exponents = torch.tensor([[0, 1], [2, 5]]), filter_exponents(maps)
    known = pair_information(exponents, x, pairs).both
    assert torch.allclose(pair_information(exponents.cuda(), x.cuda(), pairs.cuda()).both.cpu(), known, atol=1e-8)


def test_selection_and_large_matrices_agree() -> None:
    labels = torch.randint(4, (64,))
    exponents = filter_exponents(torch.randn(4, 8, 6)[labels] + torch.randn(64, 8, 6))
    here, there = (
        cmi_permutation(e, y, max_filters=3, generator=torch.Generator().manual_seed(0))
        for e, y in ((exponents, labels), (exponents.cuda(), labels.cuda()))
    )
    assert here.order == there.order
    gram = exponents[0].neg().exp()
    for method in METHODS:
        found = [
            estimate_entropy(g, method=method, generator=torch.Generator().manual_seed(0)).value
            for g in (gram, gram.cuda())
        ]
        assert found[0] == pytest.approx(found[1], abs=1e-9)

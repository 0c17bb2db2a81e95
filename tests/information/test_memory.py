"""Chunks fill the memory they are given, and no more."""

import pytest
import torch

from infoprune.information.ensembles import _together
from infoprune.information.permutation import _problem
from infoprune.information.scoring import _chunks

N = 16
EACH = 6 * 8 * N * N  # six float64 matrices a filter


@pytest.mark.parametrize("count", [1, 2, 7])
def test_filters_taken_together(count: int) -> None:
    exponents, labels = torch.zeros(9, N, N, dtype=torch.float64), torch.arange(N) % 2
    for limit in (count * EACH, (count + 1) * EACH - 1):
        assert _together(exponents, limit) == count
        assert _problem(exponents, labels, "corrected", limit).step == count
    assert _together(exponents, 1) == 1
    assert _problem(exponents, labels, "corrected", 1).step == 1


def test_maps_scored_together() -> None:
    maps = torch.zeros(N, 40, 6, 8)
    each = 8 * (2 * N * 48) + EACH
    assert [chunk.shape[1] for chunk in _chunks(maps, 2 * 3 * each, workers=2)] == [3] * 13 + [1]
    assert [chunk.shape[1] for chunk in _chunks(maps, 1, workers=2)] == [1] * 40
    assert [chunk.shape[1] for chunk in _chunks(maps, 2**40, workers=2)] == [10] * 4  # two chunks for each worker
    large = torch.zeros(2, 1, 1, 1).expand(2, 40, 2**10, 2**8)  # 8 MiB a filter: four at once, not ten
    assert {chunk.shape[1] for chunk in _chunks(large, 2**40, workers=2)} == {4}
    middling = torch.zeros(2, 1, 1, 1).expand(2, 40, 2**7, 2**9)  # 2 MiB a filter, and 192 bytes
    assert {chunk.shape[1] for chunk in _chunks(middling, 2**40, workers=2)} == {7, 5}

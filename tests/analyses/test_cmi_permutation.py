"""CMI-permutation as an analysis: noise, copies, discrete filters, and what the paper's variant does."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from infoprune.analyses.base import Finding, LayerView
from infoprune.analyses.cmi_permutation import CmiPermutation
from infoprune.errors import UserError

View = Callable[..., LayerView]
LABELS = torch.arange(96) % 4


def found_of(view: View, maps: Tensor, batches: int = 1, **options: object) -> Finding:
    analysis = CmiPermutation(**options)
    for index in range(batches):
        analysis.observe(view(maps, labels=LABELS, index=index))
    return analysis.conclude()


def spread(values: Tensor) -> Tensor:
    """A discrete variable as maps; with a tiny kernel width its kernel is the delta kernel."""
    return values.float().view(96, -1, 1, 1)


def test_noise_is_hardly_selected(view: View) -> None:
    found = found_of(view, torch.randn(96, 10, 2, 2))
    assert found.widths["layer"] <= 2


def test_a_filter_that_knows_the_class_is_enough_and_its_copy_is_not_selected(view: View) -> None:
    maps = spread(torch.stack([torch.zeros(96, dtype=torch.long), LABELS, LABELS, torch.randint(2, (96,))], 1))
    found = found_of(view, maps, gamma=1e-3)
    assert found.widths == {"layer": 1}
    scores = found.importance["layer"]
    assert scores.argmax() == 1
    assert scores[2] > scores[3] > scores[0], "among the rest, by what each says about the class alone"
    assert float(found.measures["layer"]["I(Y;Ts)"].value) == pytest.approx(2, abs=1e-6)


def test_the_width_has_an_interval_over_batches(view: View) -> None:
    maps = spread(torch.stack([LABELS, LABELS % 2, LABELS // 2], 1)) + 0.05 * torch.randn(96, 3, 1, 1)
    width = found_of(view, maps, batches=3).measures["layer"]["width"]
    assert width.low <= width.value <= width.high
    assert found_of(view, maps).measures["layer"]["width"].low is None


def test_only_so_many_batches_are_looked_at(view: View) -> None:
    analysis = CmiPermutation(batches=2, permutations=5)
    for index in range(4):
        analysis.observe(view(torch.randn(96, 3, 1, 1), labels=LABELS, index=index))
    assert len(analysis.selections("layer")) == 2


def test_the_papers_variant_stops_where_the_entropy_has_run_out(view: View) -> None:
    torch.manual_seed(1)
    maps = LABELS.view(96, 1, 1, 1) + 3 * torch.randn(96, 12, 3, 3)  # twelve equally good filters
    paper = found_of(view, maps, preset="paper", permutations=20)
    corrected = found_of(view, maps, permutations=20)
    margin = float(paper.measures["layer"]["log2 n − S(Ts)"].value)
    assert margin < 0.1
    assert float(corrected.measures["layer"]["log2 n − S(Ts)"].value) > 0.5


def test_saturated_layers_get_no_width(view: View) -> None:
    found = found_of(view, torch.randn(96, 4, 8, 8), gamma=0.02, permutations=20)
    assert [flag.kind for flag in found.flags] == ["saturated"]
    assert not found.widths
    assert found.importance["layer"].isfinite().all()


def test_a_limit_is_no_verdict(view: View) -> None:
    maps = spread(torch.stack([LABELS // 2, LABELS // 2, LABELS % 2, LABELS % 2], 1)) + 0.3 * torch.randn(96, 4, 1, 1)
    found = found_of(view, maps, max_filters=1, permutations=20, significance=0.9)
    assert all(stop in found.flags[0].reason for stop in ["limit"])


def test_labels_are_needed(view: View) -> None:
    with pytest.raises(UserError, match="needs labels"):
        CmiPermutation().observe(view(torch.randn(8, 2, 2, 2)))


@pytest.mark.parametrize(
    "option",
    [{"significance": 1.0}, {"permutations": 0}, {"batches": 0}, {"max_filters": -1}, {"seed": -1}, {"gamma": 0.0}],
)
def test_wrong_options_are_refused(option: dict[str, object]) -> None:
    with pytest.raises(UserError, match=rf"\[analyses.cmi_permutation\] {next(iter(option))} = .*: expected"):
        CmiPermutation(**option)

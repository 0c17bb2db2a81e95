"""The bottleneck's variants: debiased, label information alone, the paper's kernels."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from infoprune.analyses.base import Finding, LayerView
from infoprune.analyses.information_bottleneck import InformationBottleneck
from infoprune.errors import UserError
from infoprune.information.scoring import filter_information

View = Callable[..., LayerView]
LABELS = torch.arange(96) % 4


def found_of(view: View, maps: Tensor, inputs: Tensor, **options: object) -> Finding:
    analysis = InformationBottleneck(**options)
    analysis.observe(view(maps, inputs=inputs, labels=LABELS))
    return analysis.conclude()


def test_noise_has_no_information_once_chance_is_taken_off(view: View) -> None:
    found = found_of(view, torch.randn(96, 6, 4, 4), torch.randn(96, 1, 6, 6), permutations=10).measures["layer"]
    assert found["I(X;T)"].value.min() > 0.5, "the raw estimate is nothing but bias"
    assert found["I(X;T) debiased"].value.abs().max() < 0.1
    assert found["I(T;Y) debiased"].value.abs().max() < 0.15


def test_importance_rests_on_what_is_left(view: View) -> None:
    maps, inputs = torch.randn(96, 3, 2, 2), torch.randn(96, 1, 6, 6)
    found = found_of(view, maps, inputs, permutations=4, beta=3.0)
    kept, told = (found.measures["layer"][f"I({term}) debiased"].value for term in ("X;T", "T;Y"))
    torch.testing.assert_close(found.importance["layer"], -(kept - 3 * told))
    raw = found_of(view, maps, inputs, beta=3.0)
    torch.testing.assert_close(raw.measures["layer"]["I(X;T)"].value, found.measures["layer"]["I(X;T)"].value)
    assert "I(X;T) debiased" not in raw.measures["layer"]


def test_label_information_alone_is_the_score_of_hrel(view: View) -> None:
    knows = LABELS.float().view(-1, 1, 1, 1).expand(-1, 1, 2, 2)
    maps = torch.cat([knows, torch.ones(96, 1, 2, 2), torch.randn(96, 1, 2, 2)], 1)
    found = found_of(view, maps, torch.randn(96, 1, 6, 6), score="label", gamma=0.1)
    torch.testing.assert_close(found.importance["layer"], found.measures["layer"]["I(T;Y)"].value)
    assert float(found.importance["layer"][0]) == pytest.approx(2, abs=1e-6)
    assert float(found.importance["layer"][1]) == pytest.approx(0, abs=1e-6)


def test_the_papers_preset_is_its_order_and_width(view: View) -> None:
    maps, inputs = torch.randn(96, 2, 3, 3), torch.randn(96, 1, 6, 6)
    found = found_of(view, maps, inputs, preset="paper")
    from infoprune.information.gram import filter_grams

    gram = filter_grams(inputs.flatten(1)[:, None], rule="silverman", h=5.0)[0]
    expected = filter_information(maps, gram, LABELS, alpha=1.01, rule="silverman", h=5.0)
    torch.testing.assert_close(found.measures["layer"]["I(X;T)"].value, expected.input)
    mixed = found_of(view, maps, inputs, preset="paper", alpha=1.0, kernel_width="standardized")
    plain = found_of(view, maps, inputs)
    torch.testing.assert_close(mixed.importance["layer"], plain.importance["layer"])


def test_labels_are_needed(view: View) -> None:
    with pytest.raises(UserError, match="needs labels"):
        InformationBottleneck().observe(view(torch.randn(8, 2, 2, 2)))


@pytest.mark.parametrize("option", [{"permutations": 1}, {"score": "x"}, {"preset": "x"}, {"kernel_width": "x"}])
def test_wrong_options_are_refused(option: dict[str, object]) -> None:
    with pytest.raises(UserError, match=rf"\[analyses.information_bottleneck\] {next(iter(option))} = .*: expected"):
        InformationBottleneck(**option)

"""Redundancy: copies, dead filters, saturation, and the terms by their definition."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from infoprune.analyses.base import Finding, LayerView
from infoprune.analyses.redundancy import Redundancy
from infoprune.errors import UserError
from infoprune.information import decomposition
from infoprune.information.entropy import mutual_information
from infoprune.information.gram import filter_exponents, filter_grams

View = Callable[..., LayerView]


def found_of(view: View, maps: list[Tensor] | Tensor, inputs: Tensor, **options: object) -> Finding:
    analysis = Redundancy(**options)
    for index, each in enumerate(maps if isinstance(maps, list) else [maps]):
        analysis.observe(view(each, inputs=inputs, index=index))
    return analysis.conclude()


@pytest.fixture
def inputs() -> Tensor:
    return torch.randn(48, 3, 4, 4)


def test_a_filter_and_its_copy_are_redundant_to_the_bit(view: View, inputs: Tensor) -> None:
    one = inputs[:, :1]
    measures = found_of(view, torch.cat([one, one], 1), inputs).measures["layer"]
    i1 = float(mutual_information(*(filter_grams(x.flatten(1)[:, None])[0] for x in (one, inputs))))
    assert float(measures["trade-off"].value) == pytest.approx(i1, abs=1e-6)
    assert float(measures["trade-off share"].value) == pytest.approx(1, abs=1e-6)
    assert float(measures["non-redundant"].value) == pytest.approx(0, abs=1e-6)
    assert float(measures["PID redundancy"].value) == pytest.approx(i1, abs=1e-6)
    assert float(measures["PID synergy"].value) == pytest.approx(0, abs=1e-6)


def test_dead_filters_and_copies_add_least(view: View, inputs: Tensor) -> None:
    dead = torch.ones(48, 1, 4, 4)
    maps = torch.cat([inputs, inputs[:, :1], dead], 1)
    found = found_of(view, maps, inputs)
    scores = found.importance["layer"]
    assert scores.argmin() == 4
    assert scores[4] < 1e-6, "a constant map only widens the kernel of the other"
    assert max(scores[0], scores[3]) < min(scores[1], scores[2])


def test_terms_are_their_definitions(view: View, inputs: Tensor) -> None:
    maps = torch.randn(48, 4, 3, 3)
    measures = found_of(view, maps, inputs).measures["layer"]
    exponents = filter_exponents(maps)
    x = filter_grams(inputs.flatten(1)[:, None])[0]
    alone = mutual_information(torch.exp(-exponents), x)
    values = []
    for i in range(4):
        for j in range(i + 1, 4):
            both = mutual_information(torch.exp(-(exponents[i] + exponents[j]) / 2), x)
            values.append((alone[i] + alone[j] - both, 2 * both - alone[i] - alone[j]))
    expected = torch.tensor(values).mean(0)
    assert float(measures["trade-off"].value) == pytest.approx(float(expected[0]), abs=1e-6)
    assert float(measures["non-redundant"].value) == pytest.approx(float(expected[1]), abs=1e-6)
    mmi = mutual_information(torch.exp(-exponents.mean(0)), x)
    assert float(measures["MMI"].value) == pytest.approx(float(mmi), abs=1e-6)
    assert float(measures["MMI debiased"].value) < float(mmi)


def test_the_pid_of_and(view: View) -> None:
    # Two independent bits and their AND, as maps so far apart that their kernels are delta kernels.
    code = torch.arange(64) % 4
    bits = torch.stack([code // 2, code % 2], 1).float()
    both = (bits.prod(1) * 1.0).view(64, 1, 1, 1)
    measures = found_of(view, bits.view(64, 2, 1, 1), both, gamma=1e-3).measures["layer"]
    found = [float(measures[f"PID {atom}"].value) for atom in ("redundancy", "unique", "synergy")]
    assert found == pytest.approx([0.311278, 0, 0.5], abs=1e-5)
    assert float(measures["trade-off"].value) == pytest.approx(-0.188722, abs=1e-5)
    assert float(measures["non-redundant"].value) == pytest.approx(1.0, abs=1e-5)


def test_copies_need_the_width_of_one(view: View, inputs: Tensor) -> None:
    copies = inputs[:, :1].expand(-1, 12, -1, -1).contiguous()
    found = found_of(view, [copies, copies], inputs)
    assert found.widths == {"layer": 1}
    width = found.measures["layer"]["width"]
    assert (float(width.value), float(width.low), float(width.high)) == (1, 1, 1)
    assert width.unit == "filters"


def test_the_papers_product_saturates_and_then_gives_no_width(view: View, inputs: Tensor) -> None:
    maps = 5 * torch.randn(48, 24, 4, 4)
    found = found_of(view, maps, inputs, preset="paper", permutations=0)
    assert [flag.kind for flag in found.flags] == ["saturated"]
    assert not found.widths
    assert not found_of(view, maps, inputs, permutations=0).flags


def test_partners_are_equally_many_for_every_filter() -> None:
    from infoprune.analyses.redundancy import _partners

    pairs = _partners(30, 4, torch.Generator().manual_seed(0))
    assert torch.bincount(pairs.flatten()).tolist() == [4] * 30
    assert (pairs[:, 0] < pairs[:, 1]).all()
    assert len(_partners(5, 4, torch.Generator())) == 10


def test_xor_is_minus_one_and_two() -> None:
    zero, one = torch.tensor(0.0), torch.tensor(1.0)
    assert (float(decomposition.tradeoff(zero, zero, one)), float(decomposition.non_redundant(zero, zero, one))) == (
        -1,
        2,
    )


def test_one_filter_and_no_labels_will_do(view: View, inputs: Tensor) -> None:
    found = found_of(view, inputs[:, :1], inputs)
    assert found.importance["layer"].shape == (1,)
    assert found.importance["layer"].isfinite().all()


@pytest.mark.parametrize(
    "option", [{"share": 0.0}, {"partners": 3}, {"permutations": 1}, {"seed": -1}, {"preset": "x"}, {"alpha": 0.0}]
)
def test_wrong_options_are_refused(option: dict[str, object]) -> None:
    with pytest.raises(UserError, match=rf"\[analyses.redundancy\] {next(iter(option))} = .*: expected"):
        Redundancy(**option)

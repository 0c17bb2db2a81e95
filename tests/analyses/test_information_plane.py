"""The plane: its corners, its points by definition, and paths over steps."""

import copy
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from infoprune.analyses.base import Finding, LayerView
from infoprune.analyses.information_plane import InformationPlane, trajectories
from infoprune.analyses.runner import analyze
from infoprune.errors import UserError
from infoprune.information.entropy import mutual_information, renyi_entropy
from infoprune.information.gram import delta, filter_exponents, filter_grams
from infoprune.training.finetune import finetune

View = Callable[..., LayerView]
LABELS = torch.arange(64) % 4


def found_of(view: View, maps: Tensor, inputs: Tensor, **options: object) -> Finding:
    analysis = InformationPlane(**options)
    analysis.observe(view(maps, inputs=inputs, labels=LABELS))
    return analysis.conclude()


def test_the_corners_of_the_plane(view: View) -> None:
    inputs = torch.randn(64, 1, 4, 4)
    label = LABELS.float().view(64, 1, 1, 1)
    all_of_x = found_of(view, inputs, inputs, gamma=0.2).measures["layer"]
    of_input = float(renyi_entropy(filter_grams(inputs.flatten(1)[:, None], gamma=0.2)[0]))
    assert float(all_of_x["I(X;T)"].value) == pytest.approx(of_input, abs=0.05)
    knows = found_of(view, label, inputs, gamma=0.01).measures["layer"]
    assert float(knows["I(T;Y)"].value) == pytest.approx(2, abs=1e-6)
    dead = found_of(view, torch.ones(64, 2, 2, 2), inputs).measures["layer"]
    assert all(float(measure.value) == pytest.approx(0, abs=1e-6) for measure in dead.values())


def test_points_are_their_definitions(view: View) -> None:
    inputs, maps = torch.randn(64, 1, 4, 4), torch.randn(64, 3, 2, 2)
    measures = found_of(view, maps, inputs).measures["layer"]
    exponents, x = filter_exponents(maps), filter_grams(inputs.flatten(1)[:, None])[0]
    # One variable of 12 numbers in place of three of 4: σ·√3, and n^(−1/16) for n^(−1/8).
    whole = torch.exp(-exponents.mean(0) * 64 ** (2 / 16 - 2 / 8))
    for target, plain, modified in ((x, "I(X;T)", "non-redundant X"), (delta(LABELS), "I(T;Y)", "non-redundant Y")):
        assert float(measures[plain].value) == pytest.approx(float(mutual_information(whole, target)), abs=1e-6)
        alone = mutual_information(torch.exp(-exponents), target)
        values = []
        for i, j in ((0, 1), (0, 2), (1, 2)):
            both = mutual_information(torch.exp(-(exponents[i] + exponents[j]) / 2), target)
            values.append(float(2 * both - alone[i] - alone[j]))
        assert float(measures[modified].value) == pytest.approx(sum(values) / 3, abs=1e-6)


def test_the_same_numbers_stand_in_the_same_place_as_maps_and_as_units(view: View) -> None:
    """What a convolution and a linear layer behind it know must be comparable."""
    inputs, numbers = torch.randn(64, 1, 4, 4), torch.randn(64, 48)
    shapes = (numbers, numbers.view(64, 3, 4, 4), numbers.view(64, 12, 2, 2))
    points = [found_of(view, maps, inputs).measures["layer"]["I(X;T)"].value for maps in shapes]
    torch.testing.assert_close(points, points[:1] * 3, atol=0.1, rtol=0)  # standardised by unit or by map


def test_xor_is_synergy_in_the_modified_plane(view: View) -> None:
    code = torch.arange(64) % 4
    bits = torch.stack([code // 2, code % 2], 1).float().view(64, 2, 1, 1)
    target = (code // 2 ^ code % 2).float().view(64, 1, 1, 1)
    analysis = InformationPlane(gamma=1e-3)
    analysis.observe(view(bits, inputs=target, labels=code // 2 ^ code % 2))
    measures = analysis.conclude().measures["layer"]
    assert float(measures["non-redundant X"].value) == pytest.approx(2, abs=1e-6)
    assert float(measures["non-redundant Y"].value) == pytest.approx(2, abs=1e-6)


def test_the_papers_product_saturates(view: View) -> None:
    inputs = torch.randn(64, 1, 4, 4)
    found = found_of(view, 5 * torch.randn(64, 16, 4, 4), inputs, preset="paper", pairs=0)
    assert [flag.kind for flag in found.flags] == ["saturated"]
    assert set(found.measures["layer"]) == {"I(X;T)", "I(T;Y)", "I(X;T) debiased", "I(T;Y) debiased"}
    about_x = float(found.measures["layer"]["I(X;T) debiased"].value)
    assert about_x == pytest.approx(0, abs=0.05), "and any other order of the samples would know as much"
    joint = float(renyi_entropy(filter_grams(inputs.flatten(1)[:, None], rule="silverman")[0], alpha=1.01))
    assert float(found.measures["layer"]["I(X;T)"].value) == pytest.approx(joint, abs=0.05), "all of X, it seems"


def test_points_are_collected_while_a_network_is_trained_and_do_not_change_it() -> None:
    images = torch.randn(64, 1, 4, 4)
    images[:, 0, 0] += 2 * nn.functional.one_hot(LABELS, 4)
    batches, found = [(images, LABELS)], {}

    def trained(on_step: Callable[[int, int], None] | None, model: nn.Module) -> dict[str, Tensor]:
        finetune(model, batches, on_step=on_step, epochs=80, optimizer="adamw", learning_rate=0.02)
        return model.state_dict()

    plain = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Tanh(), nn.Dropout(0.1), nn.Flatten())
    plain.append(nn.Linear(16, 4))
    watched = copy.deepcopy(plain)

    def look(step: int, _: int = 0) -> None:
        if step % 40 == 0:
            found[step] = analyze(watched, batches, [InformationPlane()])[0]

    look(0)
    expected, got = trained(None, plain), trained(look, watched)
    assert all(torch.equal(got[name], value) for name, value in expected.items())
    paths = trajectories(found)
    assert paths["5"][:, 0].tolist() == [0, 40, 80]
    assert paths["5"][-1, 2] > paths["5"][0, 2] + 0.3
    assert trajectories(found, modified=True)["0"].shape == (3, 3)


def test_margins_and_intervals(view: View) -> None:
    analysis = InformationPlane()
    for index in range(3):
        analysis.observe(view(torch.randn(64, 2, 2, 2), inputs=torch.randn(64, 1, 4, 4), labels=LABELS, index=index))
    measure = analysis.conclude().measures["layer"]["I(X;T)"]
    assert measure.low < measure.value < measure.high < math.log2(64)


@pytest.mark.parametrize("option", [{"pairs": -1}, {"seed": -1}, {"permutations": -1}, {"preset": "x"}, {"h": 0.0}])
def test_wrong_options_are_refused(option: dict[str, object]) -> None:
    with pytest.raises(UserError, match=rf"\[analyses.information_plane\] {next(iter(option))} = .*: expected"):
        InformationPlane(**option)

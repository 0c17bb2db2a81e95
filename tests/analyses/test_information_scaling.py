"""The scaling law: the known circuit, random circuits, what the paper has wrong, and ranks of real layers."""

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from infoprune.analyses.base import LayerView
from infoprune.analyses.information_scaling import InformationScaling
from infoprune.analyses.runner import analyze
from infoprune.errors import UserError
from infoprune.information.convac import entropy_bits, hierarchical, shallow
from infoprune.models.convac import LogMixture, build

View = Callable[..., LayerView]
NINE = torch.tensor([[0.9, 0.1], [0.1, 0.9]]).double()
HALF = torch.tensor([0.5, 0.5]).double()
EYE = torch.eye(2).double()


def rows(outputs: int, inputs: int, sharpness: float = 2.0) -> Tensor:
    return torch.softmax(sharpness * torch.randn(outputs, inputs, dtype=torch.float64), 1)


def test_the_known_circuit() -> None:
    law = hierarchical(EYE, [NINE], HALF)
    assert law.entropy == pytest.approx(1.680077, abs=1e-6)
    assert law.gains == pytest.approx((0.468996, 0.468996, 0.742086), abs=1e-6)
    assert law.largest_gain == pytest.approx(0.742086, abs=1e-6)
    assert law.bound == pytest.approx(2.226, abs=1e-3)
    assert law.leaves == 0
    assert law.entropy - law.leaves == pytest.approx(sum(law.gains))
    # β: undefined where the leaves have no entropy, defined at the top.
    assert math.isnan(law.ratios[0])
    table = torch.tensor([[0.41, 0.09], [0.09, 0.41]]).double()
    assert law.entropy == pytest.approx(float(entropy_bits(table.flatten())))


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("levels", [1, 2, 3])
def test_the_law_and_its_bounds_hold_on_random_hierarchies(seed: int, levels: int) -> None:
    torch.manual_seed(seed)
    widths = torch.randint(1, 4, (levels + 1,)).tolist()
    mixing = [rows(r, s) for s, r in pairwise(widths)]
    law = hierarchical(rows(widths[0], 2), mixing, rows(1, widths[-1])[0])
    gain = law.entropy - law.leaves
    assert gain == pytest.approx(sum(law.gains), abs=1e-9), "the chain of mappings accounts for every bit"
    assert min(law.gains) >= -1e-12, "Theorem 3, on the mean over components"
    assert gain <= law.bound + 1e-9, "Theorem 4"
    assert len(law.gains) == 2 ** (levels + 1) - 1
    assert gain <= law.budget + 1e-9
    budget = sum(2 ** (levels - l + 1) * math.log2(widths[l - 1]) for l in range(1, levels + 1)) + math.log2(widths[-1])
    assert law.budget == pytest.approx(budget)
    assert law.depth == levels + 1
    if law.leaves > 1e-9 and not any(math.isnan(ratio) for ratio in law.ratios):
        assert law.entropy / law.leaves <= law.largest_ratio**law.depth + 1e-9, "Eq. (36)"


@pytest.mark.parametrize("seed", range(8))
def test_the_law_and_its_bounds_hold_on_random_shallow_circuits(seed: int) -> None:
    torch.manual_seed(seed)
    leaves = int(torch.randint(2, 6, ()))
    law = shallow(rows(3, 2), [rows(4, 3) for _ in range(leaves)], rows(1, 4)[0])
    assert law.entropy - law.leaves == pytest.approx(sum(law.gains), abs=1e-9)
    assert min(law.gains) >= -1e-12
    assert len(law.gains) == leaves + 1
    assert law.entropy - law.leaves <= min(law.bound, law.budget) + 1e-9, "Theorem 5"
    assert law.entropy / law.leaves <= law.largest_ratio**2 + 1e-9, "Eq. (49)"


def test_a_gain_is_the_mutual_information_that_it_should_be() -> None:
    parts, matrix, top = rows(3, 4), rows(2, 3), torch.tensor([0.3, 0.7]).double()
    mixed = matrix @ parts
    gain = top @ entropy_bits(mixed) - top @ matrix @ entropy_bits(parts)
    # I(φ; d0 | d1) from the joint table P(d1, d0, φ) = P(d1) A(d1, d0) P(φ | d0).
    joint = top[:, None, None] * matrix[:, :, None] * parts
    direct = (joint * (parts[None] / mixed[:, None]).log2()).sum()
    torch.testing.assert_close(gain, direct)
    assert float(gain) <= float(top @ entropy_bits(matrix)) + 1e-12


def test_what_the_paper_has_wrong() -> None:
    # "If A is invertible there is no information loss": it is, and .469 bit are gained from nothing.
    assert float(torch.linalg.det(NINE)) != 0
    assert hierarchical(EYE, [NINE], HALF).gains[0] == pytest.approx(0.469, abs=1e-3)
    # Eq. (29) per component: a row that picks the certain component lies below the mean entropy.
    parts = torch.tensor([[1.0, 0.0], [0.5, 0.5]]).double()
    mixed = EYE @ parts
    assert entropy_bits(mixed)[0] < HALF @ entropy_bits(parts)
    # "Singular A ⇒ greatest loss": a singular one that still tells d^l apart gains less than one that does not.
    telling = torch.tensor([[1.0, 0, 0], [0, 0.5, 0.5], [0, 0.5, 0.5]]).double()
    silent = torch.full((3, 3), 1 / 3).double()
    third = torch.full((3,), 1 / 3).double()
    gains = [hierarchical(torch.eye(3).double(), [matrix], third).gains[0] for matrix in (telling, silent)]
    assert float(torch.linalg.det(telling)) == 0
    assert gains[0] < gains[1] == pytest.approx(math.log2(3))


def test_what_is_no_circuit_is_refused() -> None:
    with pytest.raises(ValueError, match="does not add up to 1"):
        hierarchical(EYE, [2 * NINE], HALF)
    with pytest.raises(ValueError, match="no mixing matrix"):
        hierarchical(EYE, [], HALF)
    with pytest.raises(ValueError, match="states"):
        shallow(EYE, [NINE] * 30, HALF)


def test_the_model_is_the_circuit_of_its_equations() -> None:
    model = build(size=4, patch=1, widths=[3, 4, 2], classes=3).double()
    images = torch.randn(5, 1, 4, 4).double()
    leaves = model.represent(images).exp()
    deviation = model.represent.log_deviation.exp()[:, 0]
    direct = torch.distributions.Normal(model.represent.mean[:, 0], deviation).log_prob(images[:, 0, :, :, None]).exp()
    torch.testing.assert_close(leaves, direct.permute(0, 3, 1, 2))
    first, second = (mix.matrix() for mix in model.mix)
    mixed = torch.einsum("oi,nihw->nohw", first, leaves)
    fused = mixed[:, :, ::2, ::2] * mixed[:, :, 1::2, ::2] * mixed[:, :, ::2, 1::2] * mixed[:, :, 1::2, 1::2]
    whole = torch.einsum("oi,nihw->nohw", second, fused).flatten(2).prod(2)
    torch.testing.assert_close(model(images).exp(), whole @ model.top.matrix().T)


def test_the_shallow_model_is_a_cp_decomposition_and_large_images_do_not_underflow() -> None:
    model = build(kind="cp", size=6, patch=2, widths=[3, 5], classes=2, input_channels=2).double()
    images = torch.randn(4, 2, 6, 6).double()
    mixed = torch.einsum("zd,ndhw->nzhw", model.mix[0].matrix(), model.represent(images).exp())
    torch.testing.assert_close(model(images).exp(), mixed.flatten(2).prod(2) @ model.top.matrix().T)
    deep = build(size=64, patch=4)
    assert deep(10 * torch.randn(2, 1, 64, 64)).isfinite().all()


def test_mixing_matrices_are_row_stochastic_and_learn() -> None:
    model = build(size=4, patch=2, widths=[4, 4], classes=2)
    torch.testing.assert_close(LogMixture(5, 3).matrix().sum(1), torch.ones(3))
    images, labels = torch.randn(32, 1, 4, 4), torch.arange(32) % 2
    images = images + 2.0 * labels.view(-1, 1, 1, 1)
    optimizer = torch.optim.Adam(model.parameters(), 0.05)
    losses = []
    for _ in range(60):
        loss = nn.functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.3 < losses[0]


@pytest.mark.parametrize(
    "options",
    [{"kind": "x"}, {"size": 5}, {"size": 12, "patch": 2}, {"widths": [4]}, {"size": 2, "patch": 2}, {"classes": 0}],
)
def test_circuits_that_cannot_be_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(UserError, match=r"convac got|classes = 0: expected a whole number from 1"):
        build(**options)


def test_ranks_of_a_layer_that_repeats_itself() -> None:
    layer, norm = nn.Conv2d(6, 8, 1, bias=False), nn.BatchNorm2d(8)
    basis = torch.linalg.qr(torch.randn(6, 6))[0][:4]
    with torch.no_grad():
        layer.weight.copy_(torch.cat([basis, basis]).view(8, 6, 1, 1))  # eight filters, four directions of equal size
    model = nn.Sequential(layer, norm, nn.Flatten(), nn.Linear(8 * 16, 3)).eval()
    found = analyze(model, [(torch.randn(16, 6, 4, 4), torch.zeros(16).long())] * 2, [InformationScaling()])[0]
    ranks = {name: float(measure.value) for name, measure in found.measures["0"].items()}
    assert ranks["rank"] == 4
    assert ranks["effective rank"] == pytest.approx(4, abs=1e-3)
    assert ranks["stable rank"] == pytest.approx(4, abs=1e-3)
    assert ranks["log2 width"] == 3
    assert found.widths["0"] == 4
    norm.weight.data[0] = 1e3  # one filter outshines all others
    found = analyze(model, [(torch.randn(16, 6, 4, 4), torch.zeros(16).long())], [InformationScaling()])[0]
    assert found.widths["0"] == 2
    assert float(found.measures["0"]["stable rank"].value) == pytest.approx(1, abs=0.01)


def test_gains_and_ratios_are_those_of_the_entropies() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(64, 3))
    found = analyze(model, [(torch.randn(24, 3, 8, 8), torch.zeros(24).long())], [InformationScaling()])[0].measures
    first, second, third = (float(found[name]["entropy"].value) for name in ("0", "2", "4"))
    assert "entropy gain" not in found["0"]
    assert float(found["2"]["entropy gain"].value) == pytest.approx(second - first)
    assert float(found["network"]["C"].value) == pytest.approx(max(second - first, third - second))
    assert float(found["network"]["β"].value) == pytest.approx(max(second / first, third / second))


def test_saturated_entropies_are_left_out_and_said(view: View) -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 1), nn.Flatten(), nn.Linear(384, 3))
    found = analyze(
        model, [(9 * torch.randn(24, 3, 8, 8), torch.zeros(24).long())], [InformationScaling(preset="paper")]
    )[0]
    (flag,) = found.flags
    assert (flag.layer, flag.kind) == ("network", "saturated")
    assert "0, 1" in flag.reason
    assert found.measures["network"]["C"].value.isnan()


@pytest.mark.parametrize("option", [{"tolerance": 0.0}, {"preset": "x"}, {"alpha": -1.0}])
def test_wrong_options_are_refused(option: dict[str, object]) -> None:
    with pytest.raises(UserError, match=rf"\[analyses.information_scaling\] {next(iter(option))} = .*: expected"):
        InformationScaling(**option)


def test_budgets_count_the_components_of_every_node() -> None:
    """Eqs. (12) and (20): log2 of the components at each leaf's and each inner node's choice, and at the top."""

    def rows(components: int, states: int) -> torch.Tensor:
        return torch.softmax(torch.randn(components, states, dtype=torch.float64), 1)

    flat = shallow(rows(4, 3), [rows(8, 4), rows(8, 4), rows(8, 4)], rows(1, 8)[0])
    assert flat.budget == pytest.approx(3 * 2 + 3)
    deep = hierarchical(rows(4, 3), [rows(8, 4), rows(2, 8)], rows(1, 2)[0])
    assert deep.budget == pytest.approx(4 * 2 + 2 * 3 + 1)
    assert isinstance(deep.depth, int)
    assert deep.depth == 3


def test_mappings_of_what_is_certain_have_no_ratio() -> None:
    certain = torch.eye(2, dtype=torch.float64)
    law = shallow(certain, [certain, certain], torch.tensor([1.0, 0.0], dtype=torch.float64))
    assert all(math.isnan(ratio) for ratio in law.ratios)
    assert math.isnan(law.largest_ratio)


def test_tables_too_large_are_refused_by_their_states() -> None:
    many, few = torch.full((1, 70), 1 / 70, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64)
    with pytest.raises(ValueError, match="70\\^4 states"):
        hierarchical(many, [few, few], torch.ones(1, dtype=torch.float64))

"""A contract for every analysis in the folder, and known answers for each."""

from functools import partial

import pytest
import torch
from torch import Tensor, nn

from infoprune.analyses.base import Analysis, BatchView, Finding, LayerView
from infoprune.analyses.runner import analyze
from infoprune.config import registry
from infoprune.config.recipe import options
from infoprune.errors import UserError
from infoprune.io.encoding import from_json, to_json

NAMES = registry.names("analyses")
Batches = list[tuple[Tensor, Tensor]]


@pytest.fixture
def batches(images: Tensor) -> Batches:
    labels = torch.arange(8) % 3
    return [(images[:8], labels), (images[8:], labels)]


@pytest.mark.parametrize("name", NAMES)
class TestContract:
    def test_is_an_analysis(self, name: str) -> None:
        kind = registry.find("analyses", name)
        assert isinstance(kind(), Analysis)
        assert kind.__doc__, "its class says what it measures, and its source"

    def test_finds_the_same_twice_and_survives_json(self, name: str, chain: nn.Module, batches: Batches) -> None:
        found, again = (analyze(chain, batches, [registry.find("analyses", name)()])[0] for _ in range(2))
        assert found.analysis == name
        assert to_json(found) == to_json(again)
        assert to_json(from_json(to_json(found), Finding, "test")) == to_json(found)

    def test_two_of_a_kind_in_one_pass_leave_each_other_alone(
        self, name: str, chain: nn.Module, batches: Batches
    ) -> None:
        kind = registry.find("analyses", name)
        kinds = [kind, partial(kind, preset="paper")] if "preset" in options(kind) else [kind, kind]
        together = analyze(chain, batches, [make() for make in kinds])
        alone = [analyze(chain, batches, [make()])[0] for make in kinds]
        assert [to_json(found) for found in together] == [to_json(found) for found in alone]

    def test_scores_every_filter_with_finite_numbers(self, name: str, chain: nn.Module, batches: Batches) -> None:
        found = analyze(chain, batches, [registry.find("analyses", name)()])[0]
        widths = {"first": 6, "second": 8, "third": 4, "head": 3, "first_norm": 6, "second_norm": 8}
        assert found.importance or found.measures
        for layer, scores in found.importance.items():
            assert scores.shape == (widths[layer],)
            assert scores.isfinite().all()
        for layer, width in found.widths.items():
            assert 1 <= width <= widths[layer]
        for layer, measures in found.measures.items():
            for measure in measures.values():
                # Figures of the network as a whole stand under a name that no layer has.
                assert measure.value.shape in ((), (widths.get(layer, 0),))
                assert measure.low is None or (measure.low <= measure.value).all()
                assert measure.high is None or (measure.high >= measure.value).all()

    def test_gives_what_it_says(self, name: str, chain: nn.Module, batches: Batches) -> None:
        found = analyze(chain, batches, [registry.find("analyses", name)()])[0]
        gives = registry.find("analyses", name).gives
        assert bool(found.importance) == ("importance" in gives)
        assert "widths" in gives or not found.widths
        assert "removable" in gives or not found.removable

    def test_does_not_see_the_order_of_layers(self, name: str, chain: nn.Module, batches: Batches) -> None:
        if getattr(registry.find("analyses", name), "across_layers", False):
            return  # it relates layers to one another
        whole = analyze(chain, batches, [registry.find("analyses", name)()])[0]
        for layer in whole.importance:
            alone = analyze(chain, batches, [registry.find("analyses", name)()], layers=[layer])[0]
            torch.testing.assert_close(alone.importance[layer], whole.importance[layer])


def view_of(maps: Tensor, labels: Tensor, inputs: Tensor | None = None, **rest: object) -> LayerView:
    batch = BatchView(maps if inputs is None else inputs, labels, 0)
    return LayerView("layer", nn.Conv2d(1, maps.shape[1], 1), maps, batch, **rest)


def test_information_bottleneck_prefers_the_filter_that_knows_the_class() -> None:
    labels = torch.arange(128) % 4
    noise = torch.randn(128, 1, 3, 3)
    knows = labels.float().view(-1, 1, 1, 1).expand(-1, 1, 3, 3) + 0.05 * torch.randn(128, 1, 3, 3)
    analysis = registry.find("analyses", "information_bottleneck")()
    analysis.observe(view_of(torch.cat([noise, knows], 1), labels, inputs=torch.randn(128, 1, 8, 8)))
    found = analysis.conclude()
    about_class = found.measures["layer"]["I(T;Y)"].value
    assert about_class[1] > 1.5  # of H(Y) = 2 bits
    assert about_class[1] > about_class[0]
    assert found.importance["layer"][1] > found.importance["layer"][0]


def test_information_bottleneck_is_its_formula() -> None:
    labels, maps = torch.arange(64) % 4, torch.randn(64, 5, 2, 2)
    scores = {}
    for beta in (0.0, 1.0, 2.0):
        analysis = registry.find("analyses", "information_bottleneck")(beta=beta)
        analysis.observe(view_of(maps, labels))
        found = analysis.conclude()
        kept, told = (found.measures["layer"][name].value for name in ("I(X;T)", "I(T;Y)"))
        torch.testing.assert_close(found.importance["layer"], -(kept - beta * told))
        scores[beta] = found.importance["layer"]
    torch.testing.assert_close(scores[2.0] - scores[1.0], scores[1.0] - scores[0.0])


def test_information_bottleneck_does_not_see_batch_norm() -> None:
    labels, maps = torch.arange(64) % 4, torch.randn(64, 5, 2, 2)
    inputs = torch.randn(64, 1, 4, 4)
    found = []
    for scale, shift in ((1.0, 0.0), (3.0, -7.0)):
        analysis = registry.find("analyses", "information_bottleneck")()
        analysis.observe(view_of(maps * scale + shift, labels, inputs))
        found.append(analysis.conclude().importance["layer"])
    torch.testing.assert_close(*found, atol=1e-4, rtol=0)


def test_papers_width_saturates_and_says_so() -> None:
    labels, maps = torch.arange(64) % 4, torch.randn(64, 3, 14, 14) * 10
    analysis = registry.find("analyses", "information_bottleneck")(kernel_width="silverman", h=0.5)
    analysis.observe(view_of(maps, labels))
    (flag,) = analysis.conclude().flags
    assert (flag.layer, flag.kind) == ("layer", "saturated")
    calm = registry.find("analyses", "information_bottleneck")()
    calm.observe(view_of(maps, labels))
    assert calm.conclude().flags == ()


def test_intervals_need_two_batches_and_cover_the_mean() -> None:
    analysis = registry.find("analyses", "information_bottleneck")()
    values = []
    for seed in range(4):
        torch.manual_seed(seed)
        view = view_of(torch.randn(32, 2, 2, 2), torch.arange(32) % 4)
        analysis.observe(view)
        alone = registry.find("analyses", "information_bottleneck")()
        alone.observe(view)
        (measure,) = [alone.conclude().measures["layer"]["I(X;T)"]]
        assert measure.low is None
        values.append(measure.value)
    measure = analysis.conclude().measures["layer"]["I(X;T)"]
    stacked = torch.stack(values)
    torch.testing.assert_close(measure.value, stacked.mean(0))
    # Student's t at three degrees of freedom: four batches know their own spread badly.
    torch.testing.assert_close(measure.high - measure.value, 3.182446 * stacked.std(0) / 2, rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    "option", [{"beta": -1.0}, {"alpha": 0.0}, {"gamma": 0.0}, {"h": -5.0}, {"beta": float("nan")}]
)
def test_information_bottleneck_refuses_wrong_options(option: dict[str, float]) -> None:
    with pytest.raises(UserError, match=rf"\[analyses.information_bottleneck\] {next(iter(option))} = .*: expected"):
        registry.find("analyses", "information_bottleneck")(**option)


def test_weight_norms() -> None:
    layer = nn.Conv2d(2, 2, 1)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[3.0, -4.0], [1.0, 0.0]]).view(2, 2, 1, 1))
    batch = BatchView(torch.zeros(1, 2, 1, 1), None, 0)
    for name, expected in (("l1", [7.0, 1.0]), ("l2", [5.0, 1.0])):
        analysis = registry.find("analyses", name)()
        analysis.observe(LayerView("layer", layer, torch.zeros(1, 2, 1, 1), batch))
        assert analysis.conclude().importance["layer"].tolist() == expected


def test_batch_norm_scale() -> None:
    layer = nn.BatchNorm2d(2)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([-2.0, 0.5]))
    analysis = registry.find("analyses", "batch_norm_scale")()
    analysis.observe(LayerView("norm", layer, torch.zeros(1, 2, 1, 1), BatchView(torch.zeros(1), None, 0)))
    assert analysis.conclude().importance["norm"].tolist() == [2.0, 0.5]


def test_taylor_by_hand_over_uneven_batches() -> None:
    analysis = registry.find("analyses", "taylor")()
    total = torch.zeros(3, dtype=torch.float64)
    for size in (4, 2):
        maps, gradients = torch.randn(size, 3, 2, 2), torch.randn(size, 3, 2, 2)
        total += (maps * gradients).sum((2, 3)).abs().sum(0).double() * size
        analysis.observe(view_of(maps, torch.zeros(size), gradients=gradients))
    torch.testing.assert_close(analysis.conclude().importance["layer"], total / 6, atol=1e-6, rtol=1e-6)


def test_taylor_is_the_change_of_the_loss_when_a_map_goes(chain: nn.Module, batches: Batches) -> None:
    found = analyze(chain, batches, [registry.find("analyses", "taylor")()])[0].importance["third"]
    with torch.no_grad():
        chain.third.weight[1] = 0
        chain.third.bias[1] = 0
    silent = analyze(chain, batches, [registry.find("analyses", "taylor")()])[0].importance["third"]
    assert found[1] > 0
    assert silent[1] == 0


def test_random_depends_on_seed_and_layer() -> None:
    def draw(layer: str, seed: int) -> Tensor:
        analysis = registry.find("analyses", "random")(seed=seed)
        batch = BatchView(torch.zeros(1), None, 0)
        analysis.observe(LayerView(layer, nn.Conv2d(1, 8, 1), torch.zeros(1, 8, 1, 1), batch))
        return analysis.conclude().importance[layer]

    assert torch.equal(draw("layer1.0.conv1", 0), draw("layer1.0.conv1", 0))
    assert not torch.equal(draw("layer1.0.conv1", 0), draw("layer1.0.conv1", 1))
    assert not torch.equal(draw("layer1.0.conv1", 0), draw("layer2.0.conv1", 0))

"""The inequalities where they must hold, and blocks that do nothing."""

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from infoprune.analyses.base import LayerView
from infoprune.analyses.data_processing import DataProcessing
from infoprune.analyses.runner import analyze
from infoprune.errors import UserError
from infoprune.models.cifar_resnet import build

View = Callable[..., LayerView]
Batches = list[tuple[Tensor, Tensor]]


@pytest.fixture
def batches() -> Batches:
    return [(torch.randn(24, 3, 8, 8), torch.arange(24) % 3) for _ in range(4)]


class Noisy(nn.Module):
    """A Markov chain: each layer sees the one before it through less and less."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 2, 3)
        self.third, self.head = nn.Conv2d(2, 1, 5), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(torch.relu(self.first(x)))
        return self.head(torch.relu(self.third(x)).flatten(1))


def test_information_about_the_image_falls_along_a_chain(batches: Batches) -> None:
    found = analyze(Noisy(), batches, [DataProcessing()])[0]
    assert list(found.measures) == ["first", "second", "third", "head"], "in the order of the forward pass"
    values = [float(each["I(X;T)"].value) for each in found.measures.values()]
    assert all(before >= after - 0.05 for before, after in pairwise(values)), "up to the estimator's noise"
    assert values[0] > values[-1] + 0.5
    assert float(found.measures["third"]["forward violated"].value) == 0
    drop = found.measures["third"]["forward drop"]
    assert 0 < drop.low <= drop.value <= drop.high
    own = float(found.measures["head"]["I(δK;δ)"].value)
    assert own >= max(float(found.measures[layer]["I(δK;δ)"].value) for layer in ("first", "second", "third")) - 1e-9


def test_the_errors_of_the_last_layer_hold_all_of_themselves(view: View) -> None:
    labels = torch.arange(16) % 4
    shared = view(torch.randn(16, 3), labels=labels, inputs=torch.randn(16, 1, 4, 4)).batch
    analysis = DataProcessing()
    distinct = 100 * torch.eye(16).view(16, 1, 16)  # errors as unlike as can be: a delta kernel
    for name, gradients in (("last", distinct), ("copy", distinct), ("none", torch.zeros(16, 1, 16))):
        analysis.observe(view(torch.randn(16, 1, 16), batch=shared, layer=name, gradients=gradients))
    found = analysis.conclude().measures
    assert float(found["none"]["I(δK;δ)"].value) == pytest.approx(0, abs=1e-9)
    assert float(found["copy"]["I(δK;δ)"].value) == pytest.approx(float(found["last"]["I(δK;δ)"].value))


def test_a_violation_beyond_noise_is_said(view: View) -> None:
    # No chain at all: the later layer sees the image, the earlier one only its class.
    analysis = DataProcessing()
    for index in range(4):
        images, labels = torch.randn(32, 1, 4, 4), torch.arange(32) % 2
        shared = view(images, labels=labels, index=index).batch
        for name, maps in (("later", images), ("earlier", labels.float().view(32, 1, 1, 1))):
            analysis.observe(view(maps, batch=shared, layer=name, gradients=torch.randn_like(maps)))
    found = analysis.conclude().measures["later"]
    assert float(found["forward violated"].value) == 1
    assert found["forward drop"].high < 0


def quiet(block: nn.Module) -> None:
    """Makes a residual block pass on what comes in."""
    nn.init.zeros_(block.bn2.weight)
    nn.init.zeros_(block.bn2.bias)


def test_blocks_that_do_nothing_are_removable_and_the_first_of_a_stage_is_not(batches: Batches) -> None:
    torch.manual_seed(0)
    model = build(depth=20, classes=3, widths=[4, 6, 8])
    for block in (model.layer1[1], model.layer2[2]):
        quiet(block)
    analysis = DataProcessing(gamma=3.0)
    found = analyze(model, batches, [analysis])[0]
    assert {"layer1.1", "layer2.2"} <= set(found.removable)
    candidates = analysis.blocks()
    whole = {f"layer{i}.{j}" for i in (1, 2, 3) for j in (0, 1, 2)} - {"layer2.0", "layer3.0"}
    assert set(candidates) == whole | {"layer2.0.conv2", "layer3.0.conv2"}, "of a striding block, what does not stride"
    assert candidates["layer1.1"] == ("layer1.0.relu2", "layer1.1.relu2")


def test_a_block_that_loses_the_image_is_not_removable(batches: Batches) -> None:
    model = build(depth=14, classes=3, widths=[4])
    # relu(x + (−x)) with the stream in both: nothing comes out.
    block = model.layer1[1]
    block.conv1, block.conv2 = nn.Conv2d(4, 4, 1, bias=False), nn.Conv2d(4, 4, 1, bias=False)
    block.bn1 = block.bn2 = nn.Identity()
    with torch.no_grad():
        block.conv1.weight.copy_(torch.eye(4).view(4, 4, 1, 1))
        block.conv2.weight.copy_(-torch.eye(4).view(4, 4, 1, 1))
    found = analyze(model, batches, [DataProcessing(gamma=3.0)])[0]
    assert "layer1.1" not in found.removable


def test_runs_of_equal_width_are_blocks_too_and_one_batch_concludes_nothing(batches: Batches) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
    analysis = DataProcessing(gamma=3.0)
    found = analyze(model, batches[:1], [analysis])[0]
    assert analysis.blocks() == {"2": ("1", "2")}
    assert found.removable == ()
    assert found.measures["0"]["I(X;T)"].low is None


def test_nested_blocks_take_the_outermost_name(batches: Batches) -> None:
    class Inner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Sequential(nn.Conv2d(3, 5, 1), nn.Conv2d(5, 3, 1))
            self.act = nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            return self.act(x + self.conv(x))

    model = nn.Sequential(nn.Conv2d(3, 3, 1), Inner(), nn.Flatten(), nn.Linear(192, 3))
    analysis = DataProcessing()
    analyze(model, batches[:1], [analysis])
    assert analysis.blocks()["1"] == ("0", "1.act")
    assert "1.conv" not in analysis.blocks()


def test_saturated_layers_conclude_no_depth(batches: Batches) -> None:
    model = build(depth=8, classes=3, widths=[4])
    quiet(model.layer1[1])
    found = analyze(model, batches, [DataProcessing(preset="paper", h=0.5)])[0]
    assert {flag.kind for flag in found.flags} == {"saturated"}
    assert found.removable == ()


@pytest.mark.parametrize(
    "option", [{"level": 1.0}, {"error_h": 0.0}, {"seed": -1}, {"permutations": -1}, {"preset": "x"}, {"gamma": -1.0}]
)
def test_wrong_options_are_refused(option: dict[str, object]) -> None:
    with pytest.raises(UserError, match=rf"\[analyses.data_processing\] {next(iter(option))} = .*: expected"):
        DataProcessing(**option)

"""The one pass that feeds all analyses."""

import copy
from collections.abc import Callable
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn

from infoprune.analyses import baselines
from infoprune.analyses.base import Finding, LayerView
from infoprune.analyses.runner import analyze
from infoprune.errors import UserError


class Recorder:
    """Keeps what it is shown, so that tests can look at it."""

    observes = (nn.Conv2d,)
    needs_labels = False

    def __init__(self, needs_gradients: bool = False) -> None:
        self.needs_gradients = needs_gradients
        self.views: list[LayerView] = []

    def observe(self, view: LayerView) -> None:
        self.views.append(view)

    def conclude(self) -> Finding:
        return Finding("recorder")


@pytest.fixture
def batches(images: Tensor) -> list[tuple[Tensor, Tensor]]:
    labels = torch.arange(8) % 3
    return [(images[:8], labels), (images[8:], labels)]


def test_every_layer_on_every_batch(chain: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> None:
    recorder, done = Recorder(), []
    analyze(chain, batches, [recorder], done.append)
    assert [view.layer for view in recorder.views] == ["first", "second", "third"] * 2
    assert [view.batch.index for view in recorder.views] == [0, 0, 0, 1, 1, 1]
    assert done == [1, 2]
    torch.testing.assert_close(recorder.views[0].activations, chain.first(batches[0][0]))
    assert recorder.views[0].gradients is None
    assert not recorder.views[0].activations.requires_grad


def test_chosen_layers_only(chain: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> None:
    recorder = Recorder()
    analyze(chain, batches[:1], [recorder], layers=["second", "head"])
    assert [view.layer for view in recorder.views] == ["second"]
    with pytest.raises(UserError, match="no layer 'secnd'; did you mean 'second'"):
        analyze(chain, batches, [recorder], layers=["secnd"])


@pytest.mark.parametrize("frozen", [False, True])
def test_gradients_are_those_of_the_loss(chain: nn.Module, batches: list[tuple[Tensor, Tensor]], frozen: bool) -> None:
    chain.requires_grad_(not frozen)
    recorder = Recorder(needs_gradients=True)
    analyze(chain, batches[:1], [recorder])
    views = {view.layer: view for view in recorder.views}
    assert set(views) == {"first", "second", "third"}
    maps = views["third"].activations.clone().requires_grad_()
    pooled = nn.functional.adaptive_avg_pool2d(torch.relu(maps), 2)
    loss = nn.functional.cross_entropy(chain.head(pooled.flatten(1)), batches[0][1])
    torch.testing.assert_close(views["third"].gradients, torch.autograd.grad(loss, maps)[0])
    assert all(parameter.grad is None for parameter in chain.parameters())


def test_in_place_activations_do_not_reach_back() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 1), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(4 * 9, 2))
    recorder = Recorder(needs_gradients=True)
    analyze(model, [(torch.randn(5, 1, 3, 3), torch.zeros(5, dtype=torch.long))], [recorder])
    assert recorder.views[0].activations.min() < 0


class Breaks(Recorder):
    def observe(self, view: LayerView) -> None:
        raise RuntimeError("no")


@pytest.mark.parametrize("gradients", [False, True])
def test_nothing_is_left_behind_even_on_error(
    chain: nn.Module, batches: list[tuple[Tensor, Tensor]], gradients: bool
) -> None:
    chain.train()
    chain.first_norm.eval()
    before = copy.deepcopy(chain.state_dict())
    for analysis in (Recorder(gradients), Breaks(gradients)):
        failing = pytest.raises(UserError, match=r"breaks, layer '.*', calibration batch 0: RuntimeError: no")
        with failing if isinstance(analysis, Breaks) else nullcontext():
            analyze(chain, batches, [analysis])
        assert chain.training
        assert not chain.first_norm.training
        assert all(not module._forward_hooks for module in chain.modules())
        assert all(torch.equal(value, before[name]) for name, value in chain.state_dict().items())


def test_nan_weights_are_named(chain: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> None:
    with torch.no_grad():
        chain.second.weight[0, 0, 0, 0] = torch.nan
    with pytest.raises(UserError, match="layer 'second' put out NaN or infinity on calibration batch 0"):
        analyze(chain, batches, [Recorder()])


def test_labels_out_of_range(chain: nn.Module, images: Tensor) -> None:
    with pytest.raises(UserError, match="labels run from 0 to 3, but the model has 3 outputs"):
        analyze(chain, [(images[:4], torch.arange(4))], [Recorder(needs_gradients=True)])


def test_no_batches(chain: nn.Module) -> None:
    with pytest.raises(UserError, match="no calibration batches came"):
        analyze(chain, [], [Recorder()])


def test_shared_work_is_done_once(chain: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> None:
    calls = []

    class Asks(Recorder):
        def observe(self, view: LayerView) -> None:
            view.batch.once("input", lambda: calls.append(view.batch.index))

    analyze(chain, batches, [Asks(), Asks()])
    assert calls == [0, 1]


def test_an_analysis_across_layers_sees_all_of_them(chain: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> None:
    across, single = Recorder(), Recorder()
    across.across_layers = True
    analyze(chain, batches[:1], [across, single], layers=["second"])
    assert [view.layer for view in across.views] == ["first", "second", "third"]
    assert [view.layer for view in single.views] == ["second"]


@pytest.mark.parametrize("gradients", [False, True])
def test_linear_layers_over_maps_show_their_filters_second(gradients: bool) -> None:
    model = nn.Sequential(nn.Linear(3, 5), nn.Flatten(), nn.Linear(20, 2))
    recorder = Recorder(gradients)
    recorder.observes = (nn.Linear,)
    maps = torch.randn(6, 4, 3)
    analyze(model, [(maps, torch.zeros(6, dtype=torch.long))], [recorder])
    view = next(view for view in recorder.views if view.layer == "0")
    torch.testing.assert_close(view.activations, model[0](maps).movedim(-1, 1))
    assert view.gradients is None or view.gradients.shape == (6, 5, 4)


class Fails(nn.Module):
    """Fails on bright images, in a way of its own."""

    def __init__(self, failure: Exception, where: float = 0.0) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(2, 4, 3), nn.Linear(4, 3)
        self.failure, self.where = failure, where

    def forward(self, maps: Tensor) -> Tensor:
        logits: Tensor = self.head(self.conv(maps).mean((2, 3)))
        if float(maps.detach().mean()) > self.where:
            raise self.failure
        return logits


@pytest.mark.parametrize("gradients", [False, True])
def test_a_model_that_fails_is_told_with_its_batch(gradients: bool) -> None:
    batches = [(torch.full((2, 2, 5, 5), value), torch.zeros(2, dtype=torch.long)) for value in (-1.0, 1.0)]
    for failure in (KeyError("bright"), IndexError(), AssertionError("no")):
        with pytest.raises(
            UserError, match=rf"fails on calibration batch 1: {type(failure).__name__}.*line \d+\); check"
        ):
            analyze(Fails(failure), batches, [Recorder(gradients)])
    with pytest.raises(MemoryError):
        analyze(Fails(MemoryError()), batches, [Recorder(gradients)])


@pytest.mark.parametrize("name", ["l2", "taylor"])
def test_a_fault_in_an_analysis_of_ours_is_not_the_models(
    chain: nn.Module, batches: list[tuple[Tensor, Tensor]], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise KeyError("ours")

    for kind in (baselines.L2, baselines.Taylor):
        monkeypatch.setattr(kind, "observe", broken)
    with pytest.raises(KeyError, match="ours"):
        analyze(chain, batches, [name])


def test_outputs_that_are_no_tensor_are_named(chain: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> None:
    class Tupled(nn.Conv2d):
        def forward(self, maps: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
            return super().forward(maps), None

    class Mapped(nn.Module):
        def __init__(self, own: nn.Module) -> None:
            super().__init__()
            self.own = own

        def forward(self, maps: Tensor) -> dict[str, Tensor]:
            return {"out": self.own(maps)}

    with pytest.raises(UserError, match="layer 'own', a Tupled, puts out a tuple; expected a tensor"):
        analyze(Mapped(Tupled(2, 4, 1)), batches, [Recorder()])
    with pytest.raises(UserError, match="puts out a dict, but gradients are those of the loss of class logits"):
        analyze(Mapped(chain), batches, [Recorder(needs_gradients=True)])
    assert len(analyze(Mapped(chain), batches, [Recorder()])) == 1


@pytest.mark.parametrize("wrap", [nn.utils.spectral_norm, nn.utils.parametrizations.weight_norm])
@pytest.mark.parametrize("name", ["l1", "l2"])
def test_norms_are_those_of_computed_weights(wrap: Callable[[nn.Module], nn.Module], name: str) -> None:
    model = nn.Sequential(wrap(nn.Conv2d(2, 4, 3)), nn.ReLU(), nn.Conv2d(4, 3, 1)).eval()
    found = analyze(model, [(torch.randn(2, 2, 5, 5), torch.zeros(2, dtype=torch.long))], [name])[0].importance["0"]
    weight: Tensor = model[0].weight
    expected = weight.detach().flatten(1).norm(p=int(name[1]), dim=1)
    torch.testing.assert_close(found.float(), expected)

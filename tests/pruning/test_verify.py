"""The proof itself: what it lets pass, what it stops, whom it names, and what it costs."""

import gc
import weakref
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from infoprune.errors import RunError, UserError
from infoprune.graph import tracing
from infoprune.graph.channels import ChannelGraph
from infoprune.planning.plan import GroupPlan, Plan
from infoprune.pruning.channel_graph import channel_graph
from infoprune.pruning.prune import prune
from infoprune.pruning.verify import channel_axis, masked, verify


def cut(model: nn.Module, graph: ChannelGraph, kept: dict[str, list[int]]) -> nn.Module:
    widths = {group.name: group.width for group in graph.groups}
    groups = tuple(GroupPlan(name, tuple(own), widths[name], len(own), 0, 0, "") for name, own in kept.items())
    return prune(model, Plan(groups, {}, 0, 0, graph.input_shape))


def five() -> nn.Module:
    """Five convolutions in a row."""
    layers = [nn.Sequential(nn.Conv2d(2 if i == 0 else 6, 6, 3, padding=1), nn.Sigmoid()) for i in range(5)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(6 * 64, 3)).eval()


@pytest.mark.parametrize("guilty", range(5))
def test_the_guilty_group_is_named(guilty: int, images: Tensor) -> None:
    model = five()
    graph = channel_graph(model, images)
    kept = {f"{i}.0": [0, 2, 5] for i in range(5)}
    pruned = cut(model, graph, {**kept, f"{guilty}.0": [0, 2, 4]})
    # A cut that took another filter than the plan says is wrong from its own layer on.
    with pytest.raises(RunError, match=rf"first at '{guilty}\.0': the cut of {guilty}\.0 is not sound"):
        verify(model, pruned, graph, kept, images)


@pytest.mark.parametrize("guilty", range(1, 5))
def test_wrong_inputs_are_blamed_on_the_group_that_is_read(guilty: int, images: Tensor) -> None:
    model = five()
    graph = channel_graph(model, images)
    kept = {f"{i}.0": [0, 2, 5] for i in range(5)}
    pruned = cut(model, graph, kept)
    pruned[guilty - 1].append(nn.Hardtanh(0.49, 0.51))  # what mixes or changes channels between two layers
    with pytest.raises(RunError, match=rf"first at '{guilty}\.0': the cut of {guilty - 1}\.0 is not sound"):
        verify(model, pruned, graph, kept, images)


def test_rounding_is_settled_in_float64(images: Tensor) -> None:
    class Rounding(nn.Module):
        """An error in the fourth digit of float32 that depends on the width stands for that of a deep network."""

        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Conv2d(2, 8, 3), nn.Conv2d(8, 3, 3)

        def forward(self, maps: Tensor) -> Tensor:
            error = 1000 * torch.finfo(maps.dtype).eps * self.one.out_channels
            return self.two(self.one(maps)) * (1 + error)

    model = Rounding().eval()
    graph = channel_graph(model, images)
    kept = {"one": [1, 2, 6]}
    found = verify(model, cut(model, graph, kept), graph, kept, images)
    assert found.dtype == "float64"
    assert 0 < found.max_rel_difference < 1e-9
    assert model.one.weight.dtype == torch.float32


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_nan_and_infinity_prove_nothing(chain: nn.Module, images: Tensor, value: float) -> None:
    graph = channel_graph(chain, images)
    kept = {"first": [0, 2, 5]}
    pruned = cut(chain, graph, kept)
    with torch.no_grad():
        pruned.third.bias[0] = value
        with pytest.raises(RunError, match=r"pruned model puts out NaN or infinity, .* first at 'the output'"):
            verify(chain, pruned, graph, kept, images)
        chain.third.bias[0] = value  # the same in both is no proof either
        with pytest.raises(
            UserError, match=r"model puts out NaN or infinity \('third.bias' is not finite\); check its"
        ):
            verify(chain, pruned, graph, kept, images)


def test_a_mask_that_leads_to_nan_is_a_cut_that_cannot_be_proven(images: Tensor) -> None:
    class Relative(nn.Module):
        """Divides by its third channel."""

        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Conv2d(2, 4, 1), nn.Conv2d(4, 3, 1)

        def forward(self, maps: Tensor) -> Tensor:
            inner = self.one(maps)
            return self.two(inner / inner[:, 2 : inner.shape[1] : 4].sum(1, keepdim=True))

    model = Relative().eval()
    graph = channel_graph(model, images)
    whole = replace(graph, groups=tuple(replace(group, refusal="") for group in graph.groups))
    with pytest.raises(RunError, match="channels of one at zero, the unpruned model puts out NaN or infinity"):
        verify(model, model, whole, {"one": [0, 1, 3]}, images)


def test_an_empty_output_proves_nothing(chain: nn.Module, images: Tensor) -> None:
    class Detector(nn.Module):
        """Puts out what lies above a threshold."""

        def __init__(self) -> None:
            super().__init__()
            self.chain, self.threshold = chain, -1e6

        def forward(self, maps: Tensor) -> list[Tensor]:
            scores = self.chain(maps)
            return [scores[scores > self.threshold]]

    model = Detector().eval()
    graph = channel_graph(model, images)
    kept = {"chain.first": [0, 2, 5]}
    pruned = cut(model, graph, kept)
    verify(model, pruned, graph, kept, images)
    model.threshold = pruned.threshold = 1e6
    with pytest.raises(UserError, match="puts out no number on these images, so nothing can be proven"):
        verify(model, pruned, graph, kept, images)
    with pytest.raises(UserError, match="puts out no number"):
        channel_graph(model, images)
    # A plan that was proven on images is replayed also where made-up ones show nothing.
    assert cut(model, graph, kept).chain.first.out_channels == 3


def test_memory_that_runs_out_says_nothing_of_a_cut(chain: nn.Module, images: Tensor) -> None:
    graph = channel_graph(chain, images)

    def exhausted(*_: object) -> None:
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")

    chain.third.register_forward_hook(exhausted)
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        verify(chain, chain, graph, {}, images)
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        channel_graph(chain, images)


def test_images_are_one_tensor(chain: nn.Module, images: Tensor) -> None:
    for wrong, came in (((images, images), "a tuple"), ({"images": images}, "a dict"), (images[:0], r"\(0, 2, 8, 8\)")):
        with pytest.raises(UserError, match=f"images came .*{came}"):
            channel_graph(chain, wrong)  # type: ignore[arg-type]


def test_a_pruned_model_that_does_not_run_is_an_error_in_words(chain: nn.Module, images: Tensor) -> None:
    graph = channel_graph(chain, images)
    kept = {"first": [0, 2, 5]}
    pruned = cut(chain, graph, kept)
    pruned.second = chain.second
    with pytest.raises(RunError, match=r"does not run on an input of shape \(16, 2, 8, 8\)"):
        verify(chain, pruned, graph, kept, images)


def test_masks_leave_nothing_behind(chain: nn.Module, images: Tensor) -> None:
    chain.train()
    chain.first_norm.eval()
    before, modes = chain.state_dict(), [module.training for module in chain.modules()]
    graph = channel_graph(chain, images)
    kept = {"first": [0, 2, 5], "third": [1]}
    pruned = cut(chain, graph, kept)
    with pytest.raises(ZeroDivisionError), masked(chain, graph, kept):
        raise ZeroDivisionError
    verify(chain, pruned, graph, kept, images)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in chain.modules())
    assert modes == [module.training for module in chain.modules()]
    assert all(torch.equal(value, before[name]) for name, value in chain.state_dict().items())


@pytest.fixture
def copies(monkeypatch: pytest.MonkeyPatch) -> list[weakref.ref[nn.Module]]:
    """All copies that pruning makes; none is made while an earlier one lives."""
    made: list[weakref.ref[nn.Module]] = []
    original = tracing.traceable_copy

    def counted(model: nn.Module) -> nn.Module:
        assert not [copy for copy in made if copy() is not None], "an earlier copy is still alive"
        made.append(weakref.ref(copied := original(model)))
        return copied

    for module in ("channel_graph", "prune"):
        monkeypatch.setattr(f"infoprune.pruning.{module}.traceable_copy", counted)
    return made


def test_one_copy_of_the_model_at_a_time(
    chain: nn.Module, images: Tensor, copies: list[weakref.ref[nn.Module]], monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = channel_graph(chain, images)
    kept = {"first": [0, 2, 5]}
    pruned = cut(chain, graph, kept)
    monkeypatch.setattr("copy.deepcopy", lambda *_: pytest.fail("verification copies nothing"))
    verify(chain, pruned, graph, kept, images)
    assert len(copies) == 3  # the graph's, the graph's that pruning looks at, and the pruned model


def test_one_copy_at_a_time_even_where_trials_fail(
    images: Tensor, copies: list[weakref.ref[nn.Module]], request: pytest.FixtureRequest
) -> None:
    class Ordered(nn.Sequential):
        def forward(self, maps: Tensor) -> Tensor:
            for layer in self:
                maps = layer(maps).flip(1)
            return maps

    model = Ordered(*(nn.Conv2d(2 if i == 0 else 8, 8, 1) for i in range(4)), nn.Conv2d(8, 3, 1))
    object.__setattr__(model, "itself", [model])  # so that reference counting does not free a copy
    request.addfinalizer(gc.enable)
    gc.disable()
    refused = {group.name: group.refusal for group in channel_graph(model.eval(), images).groups}
    assert any("trial cut fails" in reason for reason in refused.values())
    assert len(copies) > 4


def test_trials_are_made_on_images_that_are_not_constant(images: Tensor) -> None:
    class Centred(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Conv2d(2, 8, 1, bias=False), nn.Conv2d(8, 3, 1)

        def forward(self, maps: Tensor) -> Tensor:
            inner = self.one(maps)
            return self.two(inner - inner.mean(1, keepdim=True))

    for example in (images, torch.zeros_like(images)):
        reasons = {group.name: group.refusal for group in channel_graph(Centred().eval(), example).groups}
        assert "first at 'two'" in reasons["one"]


def test_cuts_that_fail_only_together_are_told_apart(images: Tensor) -> None:
    class Paired(nn.Module):
        """What two widths have to do with each other may be anything."""

        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.head = nn.Conv2d(2, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 3, 1)

        def forward(self, maps: Tensor) -> Tensor:
            both = self.one.out_channels < 8 and self.two.out_channels < 8
            return self.head(F.relu(self.two(F.relu(self.one(maps))))) + int(both)

    reasons = {group.name: group.refusal for group in channel_graph(Paired().eval(), images).groups}
    assert reasons["one"] == ""
    assert "trial cut fails" in reasons["two"]


@pytest.mark.parametrize(
    ("layer", "shape", "axis"),
    [
        (nn.Conv1d(3, 4, 1), (2, 3, 5), 1),
        (nn.Conv3d(3, 4, 1), (2, 3, 5, 5, 5), 1),
        (nn.Conv2d(3, 4, 1), (3, 5, 5), 0),
        (nn.Linear(3, 4), (2, 7, 3), 2),
        (nn.LayerNorm(3), (2, 7, 7, 3), 3),
        (nn.BatchNorm1d(3), (2, 3), 1),
        (nn.GroupNorm(3, 3), (2, 3, 5), 1),
    ],
)
def test_channels_are_found_where_layers_have_them(layer: Any, shape: tuple[int, ...], axis: int) -> None:
    assert channel_axis(layer, torch.zeros(shape)) == axis

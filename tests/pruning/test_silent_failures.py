"""What goes wrong in torch-pruning without a word, and cannot here: one test each."""

import copy
from pathlib import Path

import pytest
import torch
import torch_pruning as tp
from torch import Tensor, nn
from torch.nn import functional as F

from infoprune.analyses.base import Finding
from infoprune.analyses.baselines import L2, Taylor
from infoprune.analyses.runner import analyze
from infoprune.errors import UserError
from infoprune.evaluation.metrics import ModelReference
from infoprune.evaluation.profile import count_macs, measure_latency
from infoprune.graph.channels import ChannelGraph
from infoprune.io import checkpoint
from infoprune.models import cifar_resnet
from infoprune.planning.plan import GroupPlan, Plan
from infoprune.planning.planner import plan
from infoprune.pruning.channel_graph import channel_graph
from infoprune.pruning.prune import prune
from infoprune.pruning.verify import masked, verify


def by_hand(graph: ChannelGraph, **kept: list[int]) -> Plan:
    widths = {group.name: group.width for group in graph.groups}
    groups = tuple(GroupPlan(name, tuple(own), widths[name], len(own), 0, 0, "") for name, own in kept.items())
    return Plan(groups, {}, 0, 0, graph.input_shape)


def library_cut(model: nn.Module, example: Tensor, layer: str, indices: list[int]) -> nn.Module:
    """What the library makes of a request, unchecked."""
    model = copy.deepcopy(model)
    graph = tp.DependencyGraph().build_dependency(model, example)
    module = model.get_submodule(layer)
    graph.get_pruning_group(module, graph.get_pruner_of_module(module).prune_out_channels, indices).prune()
    return model


def scored(graph: ChannelGraph, scores: float | None = None) -> Finding:
    free = [group for group in graph.groups if not group.refusal]
    return Finding(
        "l2",
        importance={
            group.name: torch.arange(group.width).double() if scores is None else torch.full((group.width,), scores)
            for group in free
        },
    )


def test_1_indices_are_validated_and_never_stale(chain: nn.Module, images: Tensor) -> None:
    """Duplicates corrupt the model: the library counts them twice."""
    assert library_cut(chain, images, "second", [1, 1]).second.out_channels == 6  # of weights with seven rows
    graph = channel_graph(chain, images)
    for kept in ([1, 1], [0, 8], [-1, 0], [3, 2], []):
        with pytest.raises(UserError, match="'second'"):
            prune(chain, by_hand(graph, second=kept))
    smaller = prune(chain, by_hand(graph, second=[0, 1, 2]))
    with pytest.raises(UserError, match=r"run from 0 to 7, but it has 0\.\.2"):  # a plan for the model as it was
        prune(smaller, by_hand(graph, second=[0, 7]))
    both = prune(chain, by_hand(graph, first=[1, 4], second=[0, 7]))  # the second group is cut behind the first
    torch.testing.assert_close(both.second.weight, chain.second.weight[[0, 7]][:, [1, 4]])


def test_2_grouped_layers_stay_aligned(images: Tensor) -> None:
    """Balanced but misaligned indices run with a wrong output."""
    model = nn.Sequential(nn.Conv2d(2, 6, 1), nn.ReLU(), nn.Conv2d(6, 6, 1, groups=2), nn.Conv2d(6, 3, 1)).eval()
    graph = channel_graph(model, images)
    wrong = library_cut(model, images, "0", [0, 5])
    with masked(model, graph, {"0": [1, 2, 3, 4]}), torch.no_grad():
        expected = model(images)
    assert wrong(images).shape == expected.shape
    assert (wrong(images) - expected).abs().max() > 0.01 * expected.abs().max()
    with pytest.raises(UserError, match="keep the same 3-channel pattern in each part"):
        prune(model, by_hand(graph, **{"0": [1, 2, 3, 4]}))
    prune(model, by_hand(graph, **{"0": [1, 2, 4, 5]}))


def test_3_masking_is_more_than_zeroed_filters(chain: nn.Module, images: Tensor) -> None:
    """A batch norm's bias survives a zeroed filter; the clone's does not, and it alone equals removal."""
    nn.init.constant_(chain.first_norm.bias, 3.0)
    graph, kept = channel_graph(chain, images), {"first": [0, 2, 5]}
    pruned = prune(chain, by_hand(graph, **kept))
    zeroed = copy.deepcopy(chain)
    with torch.no_grad():
        for tensor in (zeroed.first.weight, zeroed.first.bias):
            tensor[[1, 3, 4]] = 0
        assert (zeroed(images) - pruned(images)).abs().max() > 1e-3 * pruned(images).abs().max()
    assert verify(chain, pruned, graph, kept, images).max_rel_difference < 1e-5


def test_4_floors_and_rounding_hold(chain: nn.Module, images: Tensor) -> None:
    """The library's ratio cap caps nothing in one step, and its rounding skips layers."""
    graph = channel_graph(chain, images)
    found = plan([scored(graph)], graph, rank_by="l2", macs=0.4, round_to=2, min_share=0.4)
    for group in found.groups:
        assert group.width_after % 2 == 0
        assert group.width_after >= 0.4 * group.width_before
    with pytest.raises(UserError, match="smallest reachable"):
        plan([scored(graph)], graph, rank_by="l2", macs=0.05, min_share=0.9)


def test_5_ties_are_cut_and_missing_scores_told(chain: nn.Module, images: Tensor) -> None:
    """All-tied scores prune nothing there, and a group without a score is skipped."""
    graph = channel_graph(chain, images)
    found = plan([scored(graph, 1.0)], graph, rank_by="l2", macs=0.5)
    assert found.macs_after <= 0.5 * found.macs_before
    finding = scored(graph)
    lacking = Finding("l2", importance={name: own for name, own in finding.importance.items() if name != "second"})
    with pytest.raises(UserError, match="no importance for 'second'"):
        plan([lacking], graph, rank_by="l2", macs=0.5)


def test_6_heads_are_protected_and_protection_protects(chain: nn.Module, images: Tensor) -> None:
    """The library cuts logits, and ignores types in `ignored_layers`."""
    assert library_cut(chain, images, "head", [0])(images).shape == (16, 2)
    graph = channel_graph(chain, images)
    with pytest.raises(UserError, match="'head' cannot be pruned: its channels are the network's output"):
        prune(chain, by_hand(graph, head=[0, 1]))
    found = plan([scored(graph)], graph, rank_by="l2", macs=0.7, protect=["sec*"])
    assert "second" not in found.kept()
    with pytest.raises(UserError, match="matches no layer"):
        plan([scored(graph)], graph, rank_by="l2", macs=0.7, protect=["Linear"])


def test_7_no_state_is_shared_between_models(chain: nn.Module, images: Tensor) -> None:
    """The library's default arguments are mutable and outlive a pruner."""
    alone = channel_graph(chain, images)
    other = nn.Sequential(nn.Conv2d(2, 9, 1), nn.GroupNorm(3, 9), nn.ReLU(), nn.Conv2d(9, 4, 1)).eval()
    prune(other, by_hand(channel_graph(other, images), **{"0": [0, 3, 6]}))
    assert channel_graph(chain, images) == alone
    one, two = (prune(chain, by_hand(alone, first=[0, 3])) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))


def test_8_and_9_checkpoints_replay_plans_without_pickle(tmp_path: Path) -> None:
    """The library stores pickles, and a history that is wrong after cuts by index; ours is the plan itself."""
    options = {"depth": 8, "input_channels": 1}
    model, example = cifar_resnet.build(**options).eval(), torch.randn(2, 1, 8, 8)
    plan = by_hand(channel_graph(model, example), **{"layer1.0.conv1": [3, 7], "layer2.0.conv1": [0, 30, 31]})
    pruned, file = prune(model, plan), tmp_path / "model.safetensors"
    checkpoint.save(file, pruned, ModelReference("cifar_resnet", options), plan)
    with torch.no_grad():
        assert torch.equal(checkpoint.load(file)(example), pruned(example))
    assert b"pickle" not in file.read_bytes()
    torch.save(pruned.state_dict(), tmp_path / "model.pth")  # and whoever wants a state dict has a plain one
    pruned.load_state_dict(torch.load(tmp_path / "model.pth", weights_only=True))


def test_10_the_original_keeps_its_optimizer_and_the_copy_its_settings(chain: nn.Module, images: Tensor) -> None:
    """Cutting in place resets `requires_grad`, orphans optimizers, and loses the memory format."""
    chain.first.requires_grad_(False)
    cut = library_cut(chain, images, "second", [0])
    assert all(parameter.requires_grad for parameter in cut.second.parameters())
    chain.second.weight.requires_grad_(False)
    chain.to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD([p for p in chain.parameters() if p.requires_grad], lr=0.1)
    pruned = prune(chain, by_hand(channel_graph(chain, images), second=[1, 2, 5]))
    assert {name: p.requires_grad for name, p in pruned.named_parameters()} == {
        name: p.requires_grad for name, p in chain.named_parameters()
    }
    assert pruned.training
    assert pruned.second.weight.is_contiguous(memory_format=torch.channels_last)
    before = chain.head.weight.clone()
    F.cross_entropy(chain(images), torch.zeros(16, dtype=torch.long)).backward()
    optimizer.step()
    assert not torch.equal(chain.head.weight, before)
    assert pruned.head.weight.grad is None


def test_11_macs_count_subclasses_and_functions(images: Tensor) -> None:
    """The library's counter matches exact types: a subclassed convolution counts 0 there."""

    class Own(nn.Conv2d):
        pass

    plain = nn.Sequential(nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 3)).eval()
    own = nn.Sequential(Own(2, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), Own(6, 4, 3)).eval()
    macs = 6 * 2 * 9 * 36 + 4 * 6 * 9 * 16
    assert channel_graph(own, images).macs({}) == count_macs(own, images) == count_macs(plain, images) == macs


def test_12_baselines_use_every_sample_and_say_what_they_measure(chain: nn.Module, images: Tensor) -> None:
    """The library's Hessian keeps the last sample only; no score here depends on the order of the batches."""
    labels = torch.arange(16) % 3
    batches = [(images[:8], labels[:8]), (images[8:], labels[8:])]
    one, other = (analyze(chain, order, [Taylor()])[0] for order in (batches, batches[::-1]))
    last = analyze(chain, batches[1:], [Taylor()])[0]
    torch.testing.assert_close(one.importance["first"], other.importance["first"])
    assert not torch.allclose(one.importance["first"], last.importance["first"])
    norms = analyze(chain, batches, [L2()])[0].importance["first"]
    torch.testing.assert_close(norms.double(), chain.first.weight.flatten(1).norm(dim=1).double())


def test_13_latency_is_measured_without_a_gpu(chain: nn.Module, images: Tensor) -> None:
    """The library's needs CUDA."""
    assert measure_latency(chain, images, repeats=3).median > 0


def test_14_layer_norms_are_cut_in_order(images: Tensor) -> None:
    """The library takes what is kept from a Python set, whose order is that of the numbers only by luck."""
    model = nn.Sequential(nn.Linear(8, 40), nn.LayerNorm(40), nn.ReLU(), nn.Linear(40, 3)).eval()
    nn.init.normal_(model[1].weight)
    kept = [1, 4, 7, 12, 20, 25, 33, 36, 38, 39]
    removed = sorted(set(range(40)) - set(kept))
    wrong = library_cut(model, torch.randn(1, 8), "0", removed)
    assert not torch.equal(wrong[1].weight, model[1].weight[kept])
    pruned = prune(model, by_hand(channel_graph(model, images[0, 0]), **{"0": kept}))
    assert torch.equal(pruned[1].weight, model[1].weight[kept])

"""Budgets, floors, and which channels stay."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from infoprune.analyses.base import Finding
from infoprune.errors import UserError
from infoprune.graph.channels import ChannelGraph, ChannelGroup, Member
from infoprune.graph.costs import LayerCost
from infoprune.planning.plan import Plan
from infoprune.planning.planner import plan
from infoprune.planning.ranking import group_scores, rank
from infoprune.pruning.channel_graph import channel_graph
from infoprune.pruning.prune import prune


def line(*widths: int, partitions: int = 1) -> ChannelGraph:
    """A line of 3x3 convolutions on 8x8 maps; the last one is the output."""
    identity = [tuple((i,) for i in range(width)) for width in widths]
    costs = tuple(
        LayerCost(f"conv{i}", inputs, outputs, 64 * 9 * inputs * outputs, weights=9 * inputs * outputs, vectors=outputs)
        for i, (inputs, outputs) in enumerate(zip((3, *widths), widths, strict=False))
    )
    groups = tuple(
        ChannelGroup(
            f"conv{i}",
            width,
            (Member(f"conv{i}", "out", identity[i]), Member(f"conv{i + 1}", "in", identity[i])),
            partitions,
        )
        for i, width in enumerate(widths[:-1])
    )
    head = ChannelGroup(f"conv{len(widths) - 1}", widths[-1], (), refusal="its channels are the network's output")
    return ChannelGraph((*groups, head), costs, (3, 8, 8))


def scored(graph: ChannelGraph, name: str = "l2") -> Finding:
    generator = torch.Generator().manual_seed(0)
    rand = {g.name: torch.rand(g.width, generator=generator, dtype=torch.float64) for g in graph.groups}
    return Finding(name, importance=rand)


@given(
    widths=st.lists(st.integers(2, 64), min_size=2, max_size=6),
    macs=st.floats(0.05, 1.0),
    allocation=st.sampled_from(["uniform", "global"]),
    round_to=st.sampled_from([1, 4, 8]),
)
@settings(max_examples=150, deadline=None)
def test_budget_is_met_or_refused(widths: list[int], macs: float, allocation: str, round_to: int) -> None:
    graph = line(*widths)
    try:
        found = plan([scored(graph)], graph, rank_by="l2", macs=macs, allocation=allocation, round_to=round_to)
    except UserError as error:
        if "smallest reachable" not in str(error):
            raise
        return
    assert found.macs_after <= round(macs * found.macs_before)
    assert found.macs_after == graph.macs({group.group: group.width_after for group in found.groups})
    for group in found.groups:
        assert group.width_after == len(group.kept) == len(set(group.kept)) >= 1
        assert group.width_after % round_to == 0 or group.width_after == group.width_before


@pytest.mark.parametrize("allocation", ["uniform", "global"])
def test_budget_is_met_closely_on_a_real_net(chain: nn.Module, images: Tensor, allocation: str) -> None:
    graph = line(*[64] * 20)
    found = plan([scored(graph)], graph, rank_by="l2", macs=0.5, allocation=allocation)
    assert 0.49 < found.macs_after / found.macs_before <= 0.5


def test_the_best_channels_stay() -> None:
    graph = line(4, 4, 2)
    scores = {"conv0": torch.tensor([1.0, 4, 3, 2]), "conv1": torch.tensor([4.0, 1, 2, 3])}
    found = plan([Finding("l2", importance=scores)], graph, rank_by="l2", macs=0.4)
    kept = {group.group: group.kept for group in found.groups}
    assert kept == {"conv0": (1, 2), "conv1": (0, 3)}
    assert "ranked highest by l2 (kept 3 and above, removed 2 and below)" in found.groups[0].reason
    assert found.refused == {"conv2": "its channels are the network's output"}


def test_ties_are_decided_by_place_and_not_lost() -> None:
    graph = line(8, 8, 2)
    tied = Finding("l2", importance={"conv0": torch.ones(8), "conv1": torch.ones(8)})
    found = plan([tied], graph, rank_by="l2", macs=0.5)
    assert all(group.kept == tuple(range(group.width_after)) for group in found.groups)
    assert found.macs_after < found.macs_before


def test_whole_budget_changes_nothing() -> None:
    graph = line(4, 4, 2)
    found = plan([scored(graph)], graph, rank_by="l2", macs=1.0)
    assert found.kept() == {}
    assert found.macs_after == found.macs_before


def test_absolute_budget() -> None:
    graph = line(32, 32, 2)
    target = graph.macs({}) // 3
    assert 0.93 * target < plan([scored(graph)], graph, rank_by="l2", macs=target).macs_after <= target


def test_partitions_stay_aligned() -> None:
    graph = line(12, 4, 2, partitions=2)
    found = plan([scored(graph)], graph, rank_by="l2", macs=0.5)
    for group in found.groups:
        half = group.width_before // 2
        assert [k for k in group.kept if k < half] == [k - half for k in group.kept if k >= half]


def test_floors() -> None:
    graph = line(16, 16, 2)
    found = plan([scored(graph)], graph, rank_by="l2", macs=0.35, min_share=0.5)
    assert all(group.width_after >= 8 for group in found.groups)
    found = plan([scored(graph)], graph, rank_by="l2", macs=0.5, min_width=10, round_to=5)
    assert all(group.width_after in (10, 15, 16) for group in found.groups)


def test_unreachable_budget_names_the_smallest() -> None:
    graph = line(16, 16, 2)
    least = graph.macs({"conv0": 8, "conv1": 8})
    with pytest.raises(UserError, match=f"smallest reachable is {least:,}"):
        plan([scored(graph)], graph, rank_by="l2", macs=0.1, min_share=0.5)


def test_protect_and_only() -> None:
    graph = line(16, 16, 16, 2)
    found = plan([scored(graph)], graph, rank_by="l2", macs=0.8, protect=["conv1"])
    assert found.refused["conv1"] == "protected by the recipe"
    found = plan([scored(graph)], graph, rank_by="l2", macs=0.8, only=["conv[12]"])
    assert list(found.kept()) == ["conv1", "conv2"]
    with pytest.raises(UserError, match="'conv9' in \\[plan\\] matches no layer"):
        plan([scored(graph)], graph, rank_by="l2", protect=["conv9"])
    with pytest.raises(UserError, match="nothing to prune: conv0: protected"):
        plan([scored(graph)], graph, rank_by="l2", protect=["*"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"macs": 0.0}, r"\[plan\] macs = 0.0: expected a number above 0 and up to"),
        ({"macs": -1.0}, "macs = -1.0: expected a number above 0"),
        ({"macs": float("nan")}, "macs = nan: expected a number above 0"),
        ({"round_to": 0}, "round_to = 0: expected a whole number from 1 to 65,536"),
        ({"min_share": 1.5}, "min_share = 1.5: expected a number from 0 to 1"),
        ({"min_width": 0}, "min_width = 0"),
        ({"rank_by": "l1"}, "rank_by = 'l1', but no such analysis ran"),
        ({"rank_by": "best"}, "tries several rankings on validation data, as the steps of a recipe do"),
    ],
)
def test_wrong_options(options: dict[str, object], message: str) -> None:
    graph = line(8, 8, 2)
    with pytest.raises(UserError, match=message):
        plan([scored(graph)], graph, **{"rank_by": "l2", **options})


def test_findings_that_cannot_rank() -> None:
    graph = line(8, 8, 2)
    with pytest.raises(UserError, match="'widths' gives no importance"):
        plan([Finding("widths"), scored(graph)], graph, rank_by="widths")
    with pytest.raises(UserError, match="gives no importance for 'conv1'"):
        plan([Finding("l2", importance={"conv0": torch.ones(8)})], graph, rank_by="l2")
    bad = Finding("l2", importance={"conv0": torch.ones(8), "conv1": torch.full((8,), torch.nan)})
    with pytest.raises(UserError, match="NaN or infinite importance in 'conv1'"):
        plan([bad], graph, rank_by="l2")


def test_scores_of_several_layers_meet_in_one_group() -> None:
    identity = tuple((i,) for i in range(3))
    stream = ChannelGroup("a", 3, tuple(Member(name, "out", identity) for name in ("a", "b")))
    finding = Finding("l2", importance={"a": torch.tensor([0.0, 1, 2]), "b": torch.tensor([200.0, 100, 0])})
    # Standardised, the two layers contradict each other exactly: no layer wins by the size of its numbers.
    torch.testing.assert_close(group_scores(finding, stream, "mean"), torch.zeros(3, dtype=torch.float64))
    torch.testing.assert_close(group_scores(finding, stream, "max")[0], group_scores(finding, stream, "max")[2])
    alone = Finding("l2", importance={"b": torch.tensor([200.0, 100, 0])})
    torch.testing.assert_close(group_scores(alone, stream), torch.tensor([200.0, 100, 0], dtype=torch.float64))


def test_plan_prunes_a_model(chain: nn.Module, images: Tensor) -> None:
    graph = channel_graph(chain, images)
    found: Plan = plan([scored(graph)], graph, rank_by="l2", macs=0.5)
    assert channel_graph(prune(chain, found), images).macs({}) == found.macs_after


def test_sensitivity_cuts_where_loss_is_cheapest() -> None:
    graph = line(16, 16, 16, 2)
    table = {
        "conv0": {16: 0.0, 8: 5.0, 4: 20.0},
        "conv1": {16: 0.0, 8: 0.1, 4: 0.4},
        "conv2": {16: 0.0, 8: 1.0, 4: 4.0},
    }
    found = plan([scored(graph)], graph, table, rank_by="l2", macs=0.5, allocation="sensitivity")
    widths = {group.group: group.width_after for group in found.groups}
    assert widths["conv1"] < widths["conv2"] <= widths["conv0"]
    assert found.macs_after <= found.macs_before / 2
    assert min(widths.values()) >= 4, "below the least width measured nothing is known"


def test_sensitivity_has_to_be_measured() -> None:
    graph = line(16, 16, 2)
    with pytest.raises(UserError, match="none was measured for conv0, conv1"):
        plan([scored(graph)], graph, rank_by="l2", macs=0.5, allocation="sensitivity")
    with pytest.raises(UserError, match="none was measured for conv1"):
        plan([scored(graph)], graph, {"conv0": {16: 0.0, 4: 1.0}}, rank_by="l2", allocation="sensitivity")


def test_rank_gives_the_scores_that_a_plan_goes_by(chain: nn.Module, images: Tensor) -> None:
    graph = channel_graph(chain, images)
    findings = [
        Finding(name, importance={g.name: torch.randperm(g.width).float() for g in graph.groups})
        for name in ("one", "two")
    ]
    for rank_by in ("one", ["one", "two"]):
        scores = rank(findings, graph, rank_by)
        assert scores.keys() == {group.name for group in graph.groups if not group.refusal}
        for group in plan(findings, graph, rank_by=rank_by, macs=0.5).groups:
            assert set(group.kept) == set(scores[group.group].topk(group.width_after).indices.tolist())
    assert not torch.equal(rank(findings, graph, "one")[graph.groups[0].name], scores[graph.groups[0].name])

"""Budgets beside MACs, several at once, recommended widths, and what each group's reason says."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from infoprune.analyses.base import Finding, Flag
from infoprune.errors import UserError
from infoprune.planning.constraints import Constraints, feasibility
from infoprune.planning.greedy import _loss
from infoprune.planning.planner import plan
from infoprune.planning.ranking import Ranking
from infoprune.planning.recommend import recommend
from tests.planning.test_planner import line, scored

TABLE = {"conv0": {16: 0.0, 8: 5.0, 4: 20.0}, "conv1": {16: 0.0, 8: 0.1, 4: 0.4}, "conv2": {16: 0.0, 8: 1.0, 4: 4.0}}


@given(
    widths=st.lists(st.integers(4, 48), min_size=3, max_size=6),
    parameters=st.floats(0.2, 1.0),
    macs=st.floats(0.2, 1.0),
    allocation=st.sampled_from(["uniform", "global", "sensitivity"]),
)
@settings(max_examples=80, deadline=None)
def test_all_budgets_hold_at_once(widths: list[int], parameters: float, macs: float, allocation: str) -> None:
    graph = line(*widths)
    table = {g.name: {g.width: 0.0, 1: float(i)} for i, g in enumerate(graph.groups)}
    options = {"rank_by": "l2", "allocation": allocation, "parameters": parameters, "macs": macs, "bytes": 0.9}
    try:
        found = plan([scored(graph)], graph, table, **options)
    except UserError as error:
        if "smallest reachable" not in str(error):
            raise
        return
    cost = graph.cost({group.group: group.width_after for group in found.groups})
    whole = graph.cost({})
    assert cost.macs <= round(macs * whole.macs)
    assert cost.parameters <= round(parameters * whole.parameters)
    assert cost.bytes <= round(0.9 * whole.bytes)
    assert len(found.notes) >= 3


def test_the_tightest_budget_is_used_up() -> None:
    graph = line(*[64] * 10)
    found = plan([scored(graph)], graph, rank_by="l2", parameters=0.4, macs=0.9)
    cost = graph.cost({group.group: group.width_after for group in found.groups})
    assert 0.39 < cost.parameters / graph.cost({}).parameters <= 0.4
    assert not any("nearest reachable" in note for note in found.notes)


def test_a_budget_missed_by_more_than_a_hundredth_is_said() -> None:
    graph = line(16, 16, 2)
    found = plan([scored(graph)], graph, rank_by="l2", macs=0.7, round_to=8)
    assert found.macs_after < 0.69 * found.macs_before
    assert any("nearest reachable below" in note for note in found.notes)


def test_latency_budget_uses_the_prediction() -> None:
    graph = line(32, 32, 2)

    def predict(widths: dict[str, int]) -> float:
        return 1.0 + 0.1 * widths.get("conv0", 32) + 0.01 * widths.get("conv1", 32)

    found = plan([scored(graph)], graph, predict=predict, rank_by="l2", latency=0.6)
    widths = {group.group: group.width_after for group in found.groups}
    assert 0.95 * 0.6 * predict({}) < predict(widths) <= 0.6 * predict({})
    absolute = plan([scored(graph)], graph, predict=predict, rank_by="l2", latency_ms=0.6 * predict({}))
    assert absolute.kept() == found.kept()
    with pytest.raises(UserError, match="latency_ms = 0"):
        plan([scored(graph)], graph, predict=predict, rank_by="l2", latency_ms=0.0)
    with pytest.raises(UserError, match="latency needs the measured times"):
        plan([scored(graph)], graph, rank_by="l2", latency=0.6)
    with pytest.raises(UserError, match=r"latency = 5.0: expected a number above 0 and up to 1"):
        plan([scored(graph)], graph, predict=predict, rank_by="l2", latency=5.0)


def advised(graph: object, widths: dict[str, int], *flags: Flag) -> Finding:
    return Finding("cmi_permutation", widths=widths, flags=flags)


def test_recommended_floors_hold_and_say_so() -> None:
    graph = line(16, 16, 16, 2)
    found = plan([scored(graph), advised(graph, {"conv0": 14})], graph, rank_by="l2", macs=0.5)
    groups = {group.group: group for group in found.groups}
    assert groups["conv0"].width_after == 14
    assert "held up by the recommended 14 (cmi_permutation 14)" in groups["conv0"].reason
    assert groups["conv1"].reason.startswith("uniform width")
    assert found.macs_after <= found.macs_before / 2


def test_floors_give_way_to_the_budget() -> None:
    graph = line(16, 16, 16, 2)
    found = plan([scored(graph), advised(graph, {f"conv{i}": 16 for i in range(3)})], graph, rank_by="l2", macs=0.4)
    assert found.macs_after <= 0.4 * found.macs_before
    assert any("floors keep" in note for note in found.notes)


def test_ceilings_and_priors() -> None:
    graph = line(16, 16, 16, 2)
    advice = [scored(graph), advised(graph, {"conv0": 4, "conv1": 16, "conv2": 8})]
    found = plan(advice, graph, rank_by="l2", macs=0.9, width_as="ceiling")
    widths = {group.group: group.width_after for group in found.groups}
    assert (widths["conv0"], widths["conv2"]) == (4, 8)
    assert "held down to the recommended 4" in found.groups[0].reason
    found = plan(advice, graph, rank_by="l2", macs=0.5, width_as="prior")
    widths = {group.group: group.width_after for group in found.groups}
    assert widths["conv0"] < widths["conv2"] < widths["conv1"] == 16
    with pytest.raises(UserError, match="'prior' takes the place"):
        plan(advice, graph, TABLE, rank_by="l2", width_as="prior", allocation="sensitivity")


def test_flagged_layers_recommend_nothing() -> None:
    graph = line(16, 16, 2)
    flag = Flag("conv0", "saturated", "at its ceiling")
    found = plan([scored(graph), advised(graph, {"conv0": 16}, flag)], graph, rank_by="l2", macs=0.5)
    assert found.groups[0].width_after < 16
    assert "cmi_permutation has no say: at its ceiling" in found.groups[0].reason


def test_several_recommendations_are_their_median() -> None:
    graph = line(16, 16, 16, 2)
    others = [Finding(name, widths={"conv0": width}) for name, width in (("a", 2), ("b", 13), ("c", 15))]
    found = plan([scored(graph), *others], graph, rank_by="l2", macs=0.5, width_by=["a", "b", "c"])
    assert found.groups[0].width_after == 13
    with pytest.raises(UserError, match="width_by names 'd'"):
        plan([scored(graph), *others], graph, rank_by="l2", width_by=["d"])
    with pytest.raises(UserError, match="'l2' recommends no widths"):
        plan([scored(graph), *others], graph, rank_by="l2", width_by=["l2"])


def test_redundancy_shifts_the_ranking() -> None:
    graph = line(4, 4, 2)
    importance = {"conv0": torch.tensor([4.0, 3.9, 1.0, 0.9]), "conv1": torch.arange(4.0)}
    unlike = {"conv0": torch.tensor([0.0, 9.0, 9.0, 0.0])}  # says nothing of conv1
    findings = [Finding("l2", importance=importance), Finding("redundancy", importance=unlike)]
    alone = plan(findings, graph, rank_by="l2", redundancy_by=[], macs=0.4).kept()
    both = plan(findings, graph, rank_by="l2", redundancy_by=["redundancy"], redundancy_weight=1.0, macs=0.4).kept()
    assert alone["conv0"] == (0, 1)
    assert both["conv0"] == (1, 2)
    assert alone["conv1"] == both["conv1"]
    assert Ranking(findings, ["l2"], ["redundancy"]).name == "l2 with redundancy"
    with pytest.raises(UserError, match="redundancy_by = 'nothing'"):
        plan(findings, graph, rank_by="l2", redundancy_by=["nothing"])
    with pytest.raises(UserError, match="redundancy_weight = -1"):
        plan(findings, graph, rank_by="l2", redundancy_weight=-1.0)


def test_several_analyses_rank_together() -> None:
    graph = line(4, 4, 2)
    ones = torch.ones(4)
    findings = [
        Finding("a", importance={"conv0": torch.tensor([3.0, 2, 1, 0]), "conv1": ones}),
        Finding("b", importance={"conv0": torch.tensor([0.0, 2000, 1000, 0]), "conv1": ones}),
    ]
    kept = plan(findings, graph, rank_by=["a", "b"], macs=0.4).kept()
    assert kept["conv0"] == (0, 1)
    assert plan(findings, graph, rank_by=["a", "b"], scale="ranks", macs=0.4).kept()["conv0"] == (0, 1)
    with pytest.raises(UserError, match="rank_by is empty"):
        plan(findings, graph, rank_by=[])


def test_feasibility_says_what_could_go() -> None:
    graph = line(16, 8, 2)
    rooms = {room.group: room for room in feasibility(graph, Constraints(min_share=0.25, protect=["conv1"]))}
    assert rooms["conv0"].floor == 4
    assert rooms["conv0"].saves_macs == graph.macs({}) - graph.macs({"conv0": 4})
    assert rooms["conv0"].macs == 64 * 9 * (3 * 16 + 16 * 8)
    assert (rooms["conv1"].floor, rooms["conv1"].saves_macs) == (8, 0)
    assert rooms["conv1"].refusal == "protected by the recipe"
    assert rooms["conv2"].refusal == "its channels are the network's output"


def test_budgets_below_what_was_measured_get_uniform_widths() -> None:
    graph = line(16, 16, 16, 2)
    found = plan([scored(graph)], graph, TABLE, rank_by="l2", macs=0.05, min_share=0.0)
    assert found.macs_after <= 0.05 * found.macs_before
    assert found.groups[0].reason.startswith("uniform width")
    assert any("least widths that sensitivity measured" in note for note in found.notes)
    assert plan([scored(graph)], graph, TABLE, rank_by="l2", macs=0.5).groups[0].reason.startswith("sensitivity width")
    with pytest.raises(UserError, match="out of reach"):
        plan([scored(graph)], graph, TABLE, rank_by="l2", macs=0.05, min_share=0.0, allocation="sensitivity")


@pytest.mark.parametrize("allocation", ["uniform", "global", "sensitivity"])
@pytest.mark.parametrize("share", [0.3, 0.55, 0.8])
def test_no_single_step_more_keeps_the_budget(allocation: str, share: float) -> None:
    graph = line(6, 40, 30)
    table = {group.name: {group.width: 0.0, 1: 1.0} for group in graph.groups if not group.refusal}
    found = plan([scored(graph)], graph, table, rank_by="l2", macs=share, allocation=allocation)
    widths = {group.group: group.width_after for group in found.groups}
    for group in found.groups:
        if group.width_after < group.width_before:
            assert graph.macs({**widths, group.group: group.width_after + 1}) > share * found.macs_before


@given(
    scores=st.lists(st.lists(st.integers(0, 2), min_size=4, max_size=20), min_size=2, max_size=4),
    advised=st.integers(0, 100),
    share=st.floats(0.15, 1.0),
    allocation=st.sampled_from(["uniform", "global", "prior"]),
)
@settings(max_examples=80, deadline=None)
def test_equal_scores_and_full_advice_break_no_budget(
    scores: list[list[int]], advised: int, share: float, allocation: str
) -> None:
    """Groups that one level cannot narrow: all of their scores are equal, or their whole width is recommended."""
    graph = line(*map(len, scores))
    wide = {
        group.name: max(1, group.width * (advised if place else 100) // 100) for place, group in enumerate(graph.groups)
    }
    found = [
        Finding(
            "l2",
            {
                group.name: torch.tensor(own, dtype=torch.float64)
                for group, own in zip(graph.groups, scores, strict=True)
            },
        ),
        Finding("energy_propagation", widths=wide),
    ]
    how = {"width_by": ["energy_propagation"], "width_as": "prior"} if allocation == "prior" else {"width_by": []}
    options = {"rank_by": "l2", "macs": share, "allocation": "uniform" if allocation == "prior" else allocation, **how}
    try:
        chosen = plan(found, graph, **options)
    except UserError as error:
        if "smallest reachable" not in str(error):
            raise
        return
    widths = {group.group: group.width_after for group in chosen.groups}
    assert graph.macs(widths) <= round(share * chosen.macs_before)


def test_what_a_group_could_save_is_counted() -> None:
    graph = line(8, 8, 2)
    first = feasibility(graph, Constraints(min_width=2))[0]
    assert Constraints().round_to == 1
    assert (first.floor, first.saves_macs) == (2, 64 * 9 * (6 * 3 + 6 * 8))
    assert first.saves_parameters == 9 * (6 * 3 + 6 * 8) + 6


@pytest.mark.parametrize("macs", [0.3, 0.5, 0.7])
def test_floors_that_the_budget_lowers_stay_multiples(macs: float) -> None:
    graph = line(32, 32, 32, 2)
    advice = Finding("cmi_permutation", widths={"conv0": 28, "conv1": 28, "conv2": 28})
    found = plan([scored(graph), advice], graph, rank_by="l2", macs=macs, round_to=4, width_by=["cmi_permutation"])
    assert all(group.width_after % 4 == 0 for group in found.groups)
    assert any("floors keep" in note for note in found.notes)
    assert found.macs_after <= macs * found.macs_before


def test_a_floor_gives_way_in_whole_steps() -> None:
    graph = line(32, 32, 32, 2)
    advice = Finding("cmi_permutation", widths={"conv0": 28})
    found = plan([scored(graph), advice], graph, rank_by="l2", macs=0.05, round_to=4, width_by=["cmi_permutation"])
    assert [group.width_after for group in found.groups] == [12, 4, 4]  # 7 · 12 + 24 of 110 units; 16 are too many


def test_costs_and_shares_are_said_in_their_units() -> None:
    graph = line(32, 32, 2)
    found = plan([scored(graph)], graph, rank_by="l2", macs=0.5, parameters=0.6)
    macs, parameters = found.notes[:2]
    assert f"({found.macs_after / found.macs_before:.1%}); asked for at most" in macs
    assert "MACs of" in macs
    assert "parameters of" in parameters
    with pytest.raises(UserError, match=r"latency = 0.0"):
        plan([scored(graph)], graph, predict=lambda _: 1.0, rank_by="l2", latency=0.0)


def test_losses_between_measured_widths_lie_on_a_line() -> None:
    hull = [(2, 0.25), (4, 0.0)]
    assert [_loss(hull, width) for width in (2, 3, 4)] == [0.25, 0.125, 0.0]


def test_the_least_measured_width_is_rounded_up_to_a_multiple() -> None:
    graph = line(16, 16, 2)
    table = {name: {16: 0.0, 6: 1.0} for name in ("conv0", "conv1")}
    found = plan([scored(graph)], graph, table, rank_by="l2", macs=0.32, round_to=4, allocation="sensitivity")
    assert [group.width_after for group in found.groups] == [8, 8]


def test_recommendations_say_whose_they_are() -> None:
    graph = line(16, 16, 16, 2)
    found = [
        Finding("a", widths={"conv0": 4, "conv1": 7}),
        Finding("b", widths={"conv0": 8}),
        Finding("c", widths={"conv0": 9}),
    ]
    rows = {row.group: row for row in recommend(found, graph, Constraints(round_to=4))}
    assert (rows["conv0"].recommended, rows["conv0"].reason) == (8, "median of 3")
    assert rows["conv1"].reason == "as a says (7), brought to what the constraints allow"
    assert rows["conv1"].recommended == 8
    assert (rows["conv2"].recommended, rows["conv2"].reason) == (16, "no analysis recommends a width here")
    assert rows["conv0"].saves_macs == 64 * 9 * (8 * 3 + 8 * 16)
    assert rows["conv0"].saves_parameters == 9 * (8 * 3 + 8 * 16) + 8

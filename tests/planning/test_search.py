"""What is found by measuring on validation data: blocks that go, the smallest budget, the best of several rankings."""

import math
from pathlib import Path

import pytest

from infoprune.analyses.base import Finding
from infoprune.config import recipe
from infoprune.errors import UserError
from infoprune.io import storage
from infoprune.pipeline import choose, trials
from infoprune.pipeline.context import Context, open_run
from infoprune.pipeline.run import run_until
from infoprune.pipeline.run_directory import RunDirectory
from infoprune.pipeline.steps import depth
from infoprune.pipeline.steps.plan import losses_of, planned
from infoprune.planning.plan import Plan
from infoprune.planning.search import choose_blocks, choose_ranking, search
from tests.pipeline.test_choose import FAST
from tests.pipeline.test_run import run


@pytest.fixture
def validated(monkeypatch: pytest.MonkeyPatch) -> list[Plan]:
    """The plans that are looked at on validation data."""
    seen: list[Plan] = []
    original = trials.accuracy_after_repair

    def note(context: Context, plan: Plan) -> float:
        seen.append(plan)
        return original(context, plan)

    for module in (choose, depth):
        monkeypatch.setattr(module, "accuracy_after_repair", note)
    return seen


def test_blocks_that_an_analysis_names_are_confirmed() -> None:
    finding = Finding("data_processing", removable=("a", "b", "c"))
    worth = {"a": 0.001, "b": 0.003, "c": 0.2}
    told: list[int] = []
    tried: list[tuple[str, ...]] = []

    def attempt(blocks: tuple[str, ...]) -> float:
        tried.append(blocks)
        return 0.9 - sum(worth[block] for block in blocks)

    found = choose_blocks([finding], attempt, 0.9, None, lambda rows: told.append(len(rows)), max_loss=0.5)
    assert found.removed == ("a", "b")
    assert found.tried.keys() == {"a", "b", "c", "a + b"}
    assert told == [1, 2, 3, 4]
    # What was tried is not tried again; less is allowed now, so only the most harmless one goes.
    tried.clear()
    found = choose_blocks([finding], attempt, 0.9, found.tried, max_loss=0.35)
    assert found.removed == ("a",)
    assert tried == []
    assert choose_blocks([finding], attempt, 0.9, depth_by=[]).removed == ()
    assert choose_blocks([finding], attempt, 0.9, max_loss=50.0, remove=["c"]).removed == ("c", "a", "b")
    with pytest.raises(UserError, match="depth_by names 'nothing'"):
        choose_blocks([finding], attempt, 0.9, depth_by=["nothing"])
    with pytest.raises(UserError, match="max_loss = -1"):
        choose_blocks([finding], attempt, 0.9, max_loss=-1.0)


def test_search_finds_the_edge_and_goes_on() -> None:
    shares: list[float] = []

    def attempt(share: float) -> float:
        shares.append(share)
        return math.nan if share < 0.2 else 0.9 - 0.1 * (1 - share) ** 2

    found = search(attempt, 0.9, max_loss=3.0, tolerance=0.01)
    edge = 1 - math.sqrt(0.3)  # where 0.1 (1 - share)² is 3 points
    assert edge <= found.share <= edge + 0.01
    assert found.accuracy >= 0.87
    shares.clear()
    assert search(attempt, 0.9, found.tried, max_loss=3.0, tolerance=0.01) == found
    assert shares == []
    assert search(lambda share: 0.1, 0.9, max_loss=1.0).share == 1.0
    assert search(lambda share: 0.9, 0.9, max_loss=1.0).share == 0.1
    for options in ({"max_loss": None}, {"max_loss": -1.0}, {"max_loss": 1.0, "tolerance": 0.0}):
        with pytest.raises(UserError, match="expected"):
            search(attempt, 0.9, **options)


def test_search_is_a_way_to_plan(tmp_path: Path, validated: list[Plan]) -> None:
    asked = (*FAST, "repair.method=compensate", "search.max_loss=0.8", "search.tolerance=0.2")
    job, _ = run(tmp_path, *asked, until="plan")
    tried = storage.read_json(tmp_path / "search.json")
    assert len(tried["tried"]) >= 3
    assert "loses at most 0.8 points" in planned(job).notes[-1]
    assert planned(job).macs_after < planned(job).macs_before
    # Interrupted before its end, it asks only for what is missing.
    last = list(tried["tried"])[-1]
    kept = {share: accuracy for share, accuracy in tried["tried"].items() if share != last}
    RunDirectory(tmp_path).write_json("search.json", {**tried, "tried": kept})
    (tmp_path / "plan.json").unlink()
    before = len(validated)
    again, _ = run(tmp_path, *asked, until="plan")
    assert len(validated) == before + 1
    assert planned(again) == planned(job)


def test_the_best_ranking_is_the_first_of_equal_ones() -> None:
    worth = {"a": 0.7, "b": 0.9, "a+b": 0.9}
    told: list[dict[str, float]] = []
    found = choose_ranking(worth.__getitem__, None, lambda tried: told.append(dict(tried)), among=list(worth))
    assert (found.best, found.tried) == ("b", worth)
    assert [len(tried) for tried in told] == [1, 2, 3]

    def refuse(name: str) -> float:
        raise AssertionError(f"{name} is tried again")

    assert choose_ranking(refuse, worth, among=["a", "a+b"]).best == "a+b"
    with pytest.raises(UserError, match="among is empty"):
        choose_ranking(refuse, among=[])


BEST = (
    *(option for option in FAST if "rank_by" not in option),
    "plan.rank_by=best",
    "choose.among=['l1','random','l1+random']",
    "sensitivity.shares=[0.5]",
    "plan.min_share=0.5",
    "plan.macs=0.6",
)


def test_the_best_of_several_rankings_is_found_on_validation(tmp_path: Path, validated: list[Plan]) -> None:
    own = open_run(recipe.read("digits", list(BEST)), tmp_path)
    run_until(own, "plan")
    choice = storage.read_json(tmp_path / "choice.json")
    tried = choice["tried"]
    assert tried.keys() == {"l1", "random", "l1+random"}
    best = max(tried, key=lambda name: tried[name])
    assert best != "l1", "or the first would do"
    assert planned(own).ranked_by == best
    assert planned(own).notes[-1].startswith(f"ranked by {best}: {tried[best]:.2%} on validation after repair (")
    assert trials.accuracy_after_repair(own, planned(own)) == tried[best]
    tables = storage.read_json(tmp_path / "sensitivity.json")["losses"]
    assert tables.keys() == tried.keys()
    assert tables["random"] != tables["l1"]
    table = tables[best]
    assert {name: {str(width): loss for width, loss in row.items()} for name, row in losses_of(own).items()} == table
    # Interrupted, it tries only what is missing; with another repair, all of them.
    RunDirectory(tmp_path).write_json("choice.json", {**choice, "tried": {best: tried[best]}})
    (tmp_path / "plan.json").unlink()
    before = len(validated)
    again = open_run(recipe.read("digits", list(BEST)), tmp_path)
    run_until(again, "plan")
    assert len(validated) == before + 2
    assert planned(again) == planned(own)
    run_until(open_run(recipe.read("digits", [*BEST, "repair.method=compensate"]), tmp_path), "plan")
    assert len(validated) == before + 5
    # What is tried is part of what the plan came from, with the very same findings and one ranking alone.
    same = [*BEST, "plan.allocation=uniform", "analyses.l1={}", "analyses.random={}"]
    for name in ("l1", "random"):
        alone = open_run(recipe.read("digits", [*same, f"choose.among=['{name}']"]), tmp_path)
        run_until(alone, "plan")
        assert planned(alone).ranked_by == name


def test_a_search_tries_every_ranking(tmp_path: Path) -> None:
    asked = [*BEST, "plan.allocation=uniform", "search.max_loss=50", "search.tolerance=0.5", "search.least=0.3"]
    job = open_run(recipe.read("digits", asked), tmp_path)
    run_until(job, "plan")
    tried, note = storage.read_json(tmp_path / "search.json")["tried"], planned(job).notes[-2]
    assert f"ranked by {planned(job).ranked_by}: " in note
    assert all(f"{name} " in note or f"{name}: " in note for name in ("l1", "random", "l1+random"))
    assert any(f"{accuracy:.2%} on validation" in note for accuracy in tried.values())
    # Going on where it ended, it comes to the same.
    (tmp_path / "plan.json").unlink()
    again = open_run(recipe.read("digits", asked), tmp_path)
    run_until(again, "plan")
    assert planned(again) == planned(job)


def test_what_is_chosen_by_hand_needs_no_ranking(tmp_path: Path) -> None:
    job = open_run(recipe.read("digits", [*BEST, "plan.masks={'layer1.0.conv1' = [0, 3]}"]), tmp_path)
    run_until(job, "plan")
    assert planned(job).ranked_by == ""
    assert not (tmp_path / "choice.json").exists()


def test_the_most_harmless_block_goes_first() -> None:
    finding = Finding("data_processing", removable=("a", "b"))
    worth = {("a",): 0.898, ("b",): 0.899, ("b", "a"): 0.8, ("a", "b"): 0.8}
    assert choose_blocks([finding], lambda blocks: worth[blocks], 0.9, max_loss=0.5).removed == ("b",)
    assert choose_blocks([finding], lambda _: 0.895, 0.9, max_loss=0.5).removed == ("a", "b")  # half a point is allowed


@pytest.mark.parametrize("least", [-0.5, 0.0, 1.0])
def test_shares_to_search_from_are_checked(least: float) -> None:
    with pytest.raises(UserError, match=f"least = {least}: expected a number above 0 and below 1"):
        search(lambda _: 1.0, 1.0, max_loss=1.0, least=least)

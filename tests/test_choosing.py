"""Plans that need measuring: blocks that go, the search for a budget, latency, masks by hand, second rounds."""

import json
import math
from itertools import chain, repeat
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import infoprune
from infoprune import checkpoint, choosing, pipeline, recipe, store, surveying, timing
from infoprune.artifacts import ChannelGraph, Finding, Latency, LayerTimes, Plan, Timings
from infoprune.errors import UserError
from infoprune.planning import first_channels
from infoprune.planning.searching import choose_blocks, choose_ranking, search
from infoprune.profiling import count_macs
from infoprune.pruning import channel_graph, prune
from infoprune.timing import measure_timings
from tests.test_pipeline import run

FAST = ("plan.rank_by=l2", "calibration.batches=2", "repair.method=batch_norm", "finetune.epochs=0")


def test_blocks_named_by_hand_go(tmp_path: Path) -> None:
    job, log = run(tmp_path, *FAST, "depth.remove=['layer1.1']", "plan.macs=0.6", until="evaluate")
    assert log.of("done") == ["analyze", "depth", "plan", "prune", "repair", "finetune", "evaluate"]
    assert job.planned.removed == ("layer1.1",)
    assert job.planned.macs_after <= 0.6 * job.planned.macs_before
    metrics = store.read_json(tmp_path / "metrics.json")
    assert metrics["pruned"]["macs"] == job.planned.macs_after
    assert metrics["base"]["macs"] == job.planned.macs_before
    loaded = infoprune.load(tmp_path / "finetuned.safetensors")
    assert isinstance(loaded.layer1[1], nn.Identity)


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


def test_search_is_a_way_to_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = (*FAST, "repair.method=compensate", "search.max_loss=0.8", "search.tolerance=0.2")
    job, _ = run(tmp_path, *asked, until="plan")
    tried = store.read_json(tmp_path / "search.json")
    assert len(tried["tried"]) >= 3
    assert "loses at most 0.8 points" in job.planned.notes[-1]
    assert job.planned.macs_after < job.planned.macs_before
    # Interrupted before its end, it asks only for what is missing.
    last = list(tried["tried"])[-1]
    kept = {share: accuracy for share, accuracy in tried["tried"].items() if share != last}
    store.write_json(tmp_path / "search.json", {**tried, "tried": kept})
    (tmp_path / "plan.json").unlink()
    counted: list[int] = []
    original = choosing.Choosing.validated

    def counting(self: choosing.Choosing, plan: Plan) -> float:
        counted.append(1)
        return original(self, plan)

    monkeypatch.setattr(choosing.Choosing, "validated", counting)
    again, _ = run(tmp_path, *asked, until="plan")
    assert counted == [1]
    assert again.planned == job.planned


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


def test_the_best_of_several_rankings_is_found_on_validation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = pipeline.Run(recipe.read("digits", list(BEST)), tmp_path)
    own.until("plan")
    choice = store.read_json(tmp_path / "choice.json")
    tried = choice["tried"]
    assert tried.keys() == {"l1", "random", "l1+random"}
    best = max(tried, key=lambda name: tried[name])
    assert own.planned.ranked_by == best
    assert own.planned.notes[-1].startswith(f"ranked by {best}: {tried[best]:.2%} on validation after repair (")
    assert own.validated(own.planned) == tried[best]
    table = store.read_json(tmp_path / f"sensitivity-{best}.json")["losses"]
    assert {name: {str(width): loss for width, loss in row.items()} for name, row in own.sensitivity().items()} == table
    # Interrupted, it tries only what is missing; with another repair, all of them.
    store.write_json(tmp_path / "choice.json", {**choice, "tried": {best: tried[best]}})
    (tmp_path / "plan.json").unlink()
    counted: list[int] = []
    original = choosing.Choosing.validated

    def counting(self: choosing.Choosing, plan: Plan) -> float:
        counted.append(1)
        return original(self, plan)

    monkeypatch.setattr(choosing.Choosing, "validated", counting)
    again = pipeline.Run(recipe.read("digits", list(BEST)), tmp_path)
    again.until("plan")
    assert len(counted) == 2
    assert again.planned == own.planned
    pipeline.Run(recipe.read("digits", [*BEST, "repair.method=compensate"]), tmp_path).until("plan")
    assert len(counted) == 5


def test_a_search_tries_every_ranking(tmp_path: Path) -> None:
    asked = [*BEST, "plan.allocation=uniform", "search.max_loss=50", "search.tolerance=0.5", "search.least=0.3"]
    job = pipeline.Run(recipe.read("digits", asked), tmp_path)
    job.until("plan")
    search = store.read_json(tmp_path / "search.json")["tried"]
    assert f"ranked by {job.planned.ranked_by}: " in job.planned.notes[-2]
    assert any(f"{accuracy:.2%} on validation" in job.planned.notes[-2] for accuracy in search.values())
    # Going on where it ended, it comes to the same.
    (tmp_path / "plan.json").unlink()
    again = pipeline.Run(recipe.read("digits", asked), tmp_path)
    again.until("plan")
    assert again.planned == job.planned


def test_what_is_chosen_by_hand_needs_no_ranking(tmp_path: Path) -> None:
    job = pipeline.Run(recipe.read("digits", [*BEST, "plan.masks={'layer1.0.conv1' = [0, 3]}"]), tmp_path)
    job.until("plan")
    assert job.planned.ranked_by == ""
    assert not (tmp_path / "choice.json").exists()


def test_latency_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def by_macs(model: nn.Module, images: Tensor, **_: int) -> Latency:
        """A machine that nothing else disturbs."""
        return Latency(0.01 + 1e-6 * count_macs(model, images[:1]), 0.0, len(images), "cpu", 1)

    monkeypatch.setattr(timing, "measure_latency", by_macs)
    monkeypatch.setattr(choosing, "measure_latency", by_macs)
    job, log = run(tmp_path, *FAST, "plan.latency=0.9", "timings.repeats=3", "timings.shares=[0.5]", until="plan")
    assert log.of("done") == ["analyze", "timings", "plan"]
    timings = store.read_json(tmp_path / "timings.json")
    assert timings["whole"] > 0
    assert set(timings["layers"]) == {cost.layer for cost in job.graph.costs if cost.macs}
    assert job.planned.notes[-1].startswith("measured: ")
    assert job.planned.macs_after < 0.92 * job.planned.macs_before


def test_a_correction_out_of_reach_keeps_what_was_planned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = chain([1.0], repeat(9.0))  # the unpruned network's time, then what a busy machine makes of the pruned one's

    def disturbed(_: nn.Module, images: Tensor) -> Latency:
        return Latency(next(taken), 0.0, len(images), "cpu", 1)

    monkeypatch.setattr(choosing, "measure_latency", disturbed)
    job, _ = run(tmp_path, *FAST, "plan.latency=1.0", "timings.repeats=1", "timings.shares=[0.5]", until="plan")
    assert job.planned.notes[-1].endswith("not reached, since what layers take is not all that takes time")


def test_predicted_times_are_those_of_layers() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 4, 1))
    images = torch.zeros(2, 3, 16, 16)
    graph = channel_graph(model, images)

    def narrowed(share: float) -> tuple[nn.Module, dict[str, int]]:
        plan = first_channels(graph, share)
        return prune(model, plan), {group.group: group.width_after for group in plan.groups}

    found = measure_timings(model, images, graph, narrowed, shares=(0.5,), repeats=2)
    assert found.batch == 1
    assert (found.layers["0"].inputs, found.layers["0"].outputs) == ((2, 3), (4, 8))
    assert (found.layers["2"].inputs, found.layers["2"].outputs) == ((8,), (4, 8))
    assert all(time > 0 for times in found.layers.values() for row in times.milliseconds for time in row)
    for times in found.layers.values():
        assert np.all(np.diff(times.milliseconds, axis=0) >= 0)
        assert np.all(np.diff(times.milliseconds, axis=1) >= 0)
    for options in ({"shares": ()}, {"shares": (2.0,)}, {"repeats": 0}, {"batch": 0}):
        with pytest.raises(UserError, match="expected"):
            measure_timings(model, images, graph, narrowed, **options)


def test_prediction_is_linear_in_the_layers() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    graph: ChannelGraph = channel_graph(model, torch.zeros(1, 3, 8, 8))
    layers = {
        "0": LayerTimes((3,), (4, 8), ((1.0,), (2.0,))),
        "2": LayerTimes((4, 8), (4,), ((3.0, 5.0),)),
    }
    timings = Timings(layers, 2.0, 0.5, 14.5, 0.0, 1, "cpu", 1)
    assert timings.predict(graph, {}) == pytest.approx(0.5 + 2 * (2 + 5))
    assert timings.predict(graph, {"0": 6}) == pytest.approx(0.5 + 2 * (1.5 + 4))


def test_first_channels_respect_partitions() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=2), nn.ReLU(), nn.Conv2d(8, 2, 1))
    graph = channel_graph(model, torch.zeros(1, 3, 8, 8))
    assert first_channels(graph, 0.5).kept()["0"] == (0, 1, 4, 5)


@pytest.mark.parametrize("inline", [True, False])
def test_masks_by_hand(tmp_path: Path, inline: bool) -> None:
    masks = {"layer1.0.conv1": [0, 3, 5], "layer2.0.conv1": [1]}
    (tmp_path / "masks.json").write_text(json.dumps(masks))
    text = "{'layer1.0.conv1' = [0, 3, 5], 'layer2.0.conv1' = [1]}"
    job, _ = run(tmp_path / "run", *FAST, f"plan.masks={text if inline else tmp_path / 'masks.json'}", until="prune")
    assert job.planned.kept() == {name: tuple(kept) for name, kept in masks.items()}
    assert checkpoint.load(tmp_path / "run" / "pruned.safetensors").layer1[0].conv1.out_channels == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "is no mask file"), ('{"conv1": 3}', "is no mask file"), ('{"conv1": ["a"]}', "is no mask file")],
)
def test_damaged_mask_files(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "masks.json").write_text(text)
    with pytest.raises(UserError, match=message):
        run(tmp_path / "run", *FAST, f"plan.masks={tmp_path / 'masks.json'}", until="plan")
    with pytest.raises(UserError, match=r"no file 'gone\.json'"):
        run(tmp_path / "run", *FAST, "plan.masks=gone.json", until="plan")


def test_second_round_on_a_pruned_checkpoint(tmp_path: Path) -> None:
    first, _ = run(tmp_path / "1", *FAST, "plan.macs=0.7", "depth.remove=['layer3.1']", until="finetune")
    weights = f"model.weights={tmp_path / '1' / 'finetuned.safetensors'}"
    second, _ = run(tmp_path / "2", *FAST, weights, "plan.macs=0.6", until="evaluate")
    metrics = store.read_json(tmp_path / "2" / "metrics.json")
    assert metrics["base"]["macs"] == first.planned.macs_after
    loaded = {stage: infoprune.load(tmp_path / "2" / f"{stage}.safetensors") for stage in pipeline.STAGES}
    assert infoprune.profile(loaded["finetuned"], second.calibration[0][0]).macs == second.planned.macs_after
    images = second.calibration[0][0]
    assert torch.equal(loaded["base"](images), infoprune.load(tmp_path / "1" / "finetuned.safetensors")(images))
    plan = checkpoint.plan_of(tmp_path / "2" / "finetuned.safetensors")
    assert plan is not None
    assert (plan.macs_before, plan.removed) == (first.planned.macs_before, ("layer3.1",))
    _, log = run(tmp_path / "2", *FAST, weights, "plan.macs=0.6", until="evaluate")
    assert log.of("done") == []


def test_widths_go_by_sensitivity_unless_something_else_is_asked_for(tmp_path: Path) -> None:
    asked = [*FAST, "sensitivity.shares=[0.5]", "plan.min_share=0.5", "plan.macs=0.6"]
    job = pipeline.Run(recipe.read("digits", asked), tmp_path)
    job.until("plan")
    assert (tmp_path / "sensitivity.json").exists()
    assert all(group.reason.startswith("sensitivity width") for group in job.planned.groups)
    for other in ("plan.allocation=uniform", "plan.width_as=prior", "plan.masks={}"):
        job = pipeline.Run(recipe.read("digits", [*asked, other]), tmp_path / other)
        job.until("plan")
        assert not (tmp_path / other / "sensitivity.json").exists()


def test_models_that_cannot_be_traced_get_uniform_widths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise UserError("torch.fx cannot trace the model")

    monkeypatch.setattr(surveying, "measure_sensitivity", refuse)
    job = pipeline.Run(recipe.read("digits", list(FAST)), tmp_path / "1")
    job.until("plan")
    assert all(group.reason.startswith("uniform width") for group in job.planned.groups)
    asked = pipeline.Run(recipe.read("digits", [*FAST, "plan.allocation=sensitivity"]), tmp_path / "2")
    with pytest.raises(UserError, match="cannot trace"):
        asked.until("plan")


def test_gradient_steps_see_views_of_the_calibration_images(tmp_path: Path) -> None:
    read = recipe.read("digits", ["calibration.batches=2", "calibration.batch_size=32", "calibration.views=2"])
    job = pipeline.Run(read, tmp_path / "run")
    assert [len(images) for images, _ in job.views] == [32] * 4
    for place, (images, labels) in enumerate(job.views):
        own, own_labels = job.calibration[place % 2]
        assert torch.equal(labels, own_labels)  # every image where it is
        same = (images == own).flatten(1).all(1)
        assert same.sum() < 16
    assert not torch.equal(job.views[0][0], job.views[2][0])
    again = pipeline.Run(read, tmp_path / "again").views
    assert all(torch.equal(one[0], other[0]) for one, other in zip(job.views, again, strict=True))


def test_views_need_an_augmentation(tmp_path: Path) -> None:
    read = recipe.read("digits", ["calibration.views=1", "data.augment=false"])
    with pytest.raises(UserError, match=r"views = 1, but 'digits' changes no images"):
        _ = pipeline.Run(read, tmp_path / "run").views


def test_the_most_harmless_block_goes_first() -> None:
    finding = Finding("data_processing", removable=("a", "b"))
    worth = {("a",): 0.898, ("b",): 0.899, ("b", "a"): 0.8, ("a", "b"): 0.8}
    assert choose_blocks([finding], lambda blocks: worth[blocks], 0.9, max_loss=0.5).removed == ("b",)
    assert choose_blocks([finding], lambda _: 0.895, 0.9, max_loss=0.5).removed == ("a", "b")  # half a point is allowed


@pytest.mark.parametrize("least", [-0.5, 0.0, 1.0])
def test_shares_to_search_from_are_checked(least: float) -> None:
    with pytest.raises(UserError, match="expected shares between 0 and 1"):
        search(lambda _: 1.0, 1.0, max_loss=1.0, least=least)

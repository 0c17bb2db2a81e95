"""Plans beyond a budget in MACs: latency, masks by hand, second rounds, what is measured for widths."""

import json
from itertools import chain, repeat
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import infoprune
from infoprune.config import recipe
from infoprune.errors import UserError
from infoprune.evaluation.metrics import Latency
from infoprune.evaluation.profile import count_macs
from infoprune.graph.channels import ChannelGraph
from infoprune.io import checkpoint, storage
from infoprune.pipeline import choose
from infoprune.pipeline.artifacts import STAGES
from infoprune.pipeline.context import open_run
from infoprune.pipeline.run import run_until
from infoprune.pipeline.steps import sensitivity
from infoprune.pipeline.steps.plan import planned
from infoprune.planning import latency
from infoprune.planning.latency import LayerTimes, Timings, measure_timings
from infoprune.planning.planner import first_channels
from infoprune.pruning.channel_graph import channel_graph
from infoprune.pruning.prune import prune
from tests.pipeline.test_run import run

FAST = ("plan.rank_by=l2", "calibration.batches=2", "repair.method=batch_norm", "finetune.epochs=0")


def test_blocks_named_by_hand_go(tmp_path: Path) -> None:
    job, log = run(tmp_path, *FAST, "depth.remove=['layer1.1']", "plan.macs=0.6", until="evaluate")
    assert log.of("done") == ["analyze", "depth", "plan", "prune", "repair", "finetune", "evaluate"]
    assert planned(job).removed == ("layer1.1",)
    assert planned(job).macs_after <= 0.6 * planned(job).macs_before
    metrics = storage.read_json(tmp_path / "metrics.json")
    assert metrics["pruned"]["macs"] == planned(job).macs_after
    assert metrics["base"]["macs"] == planned(job).macs_before
    loaded = infoprune.load(tmp_path / "finetuned.safetensors")
    assert isinstance(loaded.layer1[1], nn.Identity)


def test_latency_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def by_macs(model: nn.Module, images: Tensor, **_: int) -> Latency:
        """A machine that nothing else disturbs."""
        return Latency(0.01 + 1e-6 * count_macs(model, images[:1]), 0.0, len(images), "cpu", 1)

    monkeypatch.setattr(latency, "measure_latency", by_macs)
    monkeypatch.setattr(choose, "measure_latency", by_macs)
    job, log = run(tmp_path, *FAST, "plan.latency=0.9", "timings.repeats=3", "timings.shares=[0.5]", until="plan")
    assert log.of("done") == ["analyze", "timings", "plan"]
    timings = storage.read_json(tmp_path / "timings.json")
    assert timings["whole"] > 0
    assert set(timings["layers"]) == {cost.layer for cost in job.graph.costs if cost.macs}
    assert planned(job).notes[-1].startswith("measured: ")
    assert planned(job).macs_after < 0.92 * planned(job).macs_before


def test_a_correction_out_of_reach_keeps_what_was_planned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = chain([1.0], repeat(9.0))  # the unpruned network's time, then what a busy machine makes of the pruned one's

    def disturbed(_: nn.Module, images: Tensor) -> Latency:
        return Latency(next(taken), 0.0, len(images), "cpu", 1)

    monkeypatch.setattr(choose, "measure_latency", disturbed)
    job, _ = run(tmp_path, *FAST, "plan.latency=1.0", "timings.repeats=1", "timings.shares=[0.5]", until="plan")
    assert planned(job).notes[-1].endswith("not reached, since what layers take is not all that takes time")


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
    assert planned(job).kept() == {name: tuple(kept) for name, kept in masks.items()}
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
    metrics = storage.read_json(tmp_path / "2" / "metrics.json")
    assert metrics["base"]["macs"] == planned(first).macs_after
    loaded = {stage: infoprune.load(tmp_path / "2" / f"{stage}.safetensors") for stage in STAGES}
    assert infoprune.profile(loaded["finetuned"], second.calibration[0][0]).macs == planned(second).macs_after
    images = second.calibration[0][0]
    assert torch.equal(loaded["base"](images), infoprune.load(tmp_path / "1" / "finetuned.safetensors")(images))
    plan = checkpoint.plan_of(tmp_path / "2" / "finetuned.safetensors")
    assert plan is not None
    assert (plan.macs_before, plan.removed) == (planned(first).macs_before, ("layer3.1",))
    _, log = run(tmp_path / "2", *FAST, weights, "plan.macs=0.6", until="evaluate")
    assert log.of("done") == []


def test_widths_go_by_sensitivity_unless_something_else_is_asked_for(tmp_path: Path) -> None:
    asked = [*FAST, "sensitivity.shares=[0.5]", "plan.min_share=0.5", "plan.macs=0.6"]
    job = open_run(recipe.read("digits", asked), tmp_path)
    run_until(job, "plan")
    assert (tmp_path / "sensitivity.json").exists()
    assert all(group.reason.startswith("sensitivity width") for group in planned(job).groups)
    for other in ("plan.allocation=uniform", "plan.width_as=prior", "plan.masks={}"):
        job = open_run(recipe.read("digits", [*asked, other]), tmp_path / other)
        run_until(job, "plan")
        assert not (tmp_path / other / "sensitivity.json").exists()


def test_sensitivity_is_measured_of_what_may_be_cut(tmp_path: Path) -> None:
    asked = [*FAST, "sensitivity.shares=[0.5]", "plan.macs=0.9", "plan.only=['layer1.*']"]
    job = open_run(recipe.read("digits", asked), tmp_path)
    run_until(job, "plan")
    measured = storage.read_json(tmp_path / "sensitivity.json")["losses"][planned(job).ranked_by]
    assert measured.keys() == {group.group for group in planned(job).groups}
    assert 0 < len(measured) < len(job.graph.groups)
    # Other patterns, and it is measured again.
    fewer = open_run(recipe.read("digits", [*asked, "plan.protect=['layer1.0.conv1']"]), tmp_path)
    run_until(fewer, "plan")
    again = storage.read_json(tmp_path / "sensitivity.json")["losses"][planned(job).ranked_by]
    assert measured.keys() - again.keys() == {"layer1.0.conv1"}


def test_models_that_cannot_be_traced_get_uniform_widths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise UserError("torch.fx cannot trace the model")

    monkeypatch.setattr(sensitivity, "measure_sensitivities", refuse)
    job = open_run(recipe.read("digits", list(FAST)), tmp_path / "1")
    run_until(job, "plan")
    assert all(group.reason.startswith("uniform width") for group in planned(job).groups)
    assert planned(job).notes[-1].endswith("sensitivity could not be measured: torch.fx cannot trace the model")
    asked = open_run(recipe.read("digits", [*FAST, "plan.allocation=sensitivity"]), tmp_path / "2")
    with pytest.raises(UserError, match="cannot trace"):
        run_until(asked, "plan")


def test_gradient_steps_see_views_of_the_calibration_images(tmp_path: Path) -> None:
    read = recipe.read("digits", ["calibration.batches=2", "calibration.batch_size=32", "calibration.views=2"])
    job = open_run(read, tmp_path / "run")
    assert [len(images) for images, _ in job.views] == [32] * 4
    for place, (images, labels) in enumerate(job.views):
        own, own_labels = job.calibration[place % 2]
        assert torch.equal(labels, own_labels)  # every image where it is
        same = (images == own).flatten(1).all(1)
        assert same.sum() < 16
    assert not torch.equal(job.views[0][0], job.views[2][0])
    again = open_run(read, tmp_path / "again").views
    assert all(torch.equal(one[0], other[0]) for one, other in zip(job.views, again, strict=True))


def test_views_need_an_augmentation(tmp_path: Path) -> None:
    read = recipe.read("digits", ["calibration.views=1", "data.augment=false"])
    with pytest.raises(UserError, match=r"views = 1, but 'digits' changes no images"):
        _ = open_run(read, tmp_path / "run").views

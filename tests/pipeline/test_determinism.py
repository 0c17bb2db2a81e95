"""Equal seeds give equal results, to the last bit; beside the golden results in test_pipeline.py."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from infoprune.config.recipe import read
from infoprune.io import storage
from infoprune.pipeline.context import open_run
from infoprune.pipeline.run import run_until

# Every analysis that a run may have, with a repair that draws positions and a training that augments and shuffles.
RECIPE = """
[run]
batch_size = 64
[model]
name = "cifar_resnet"
depth = 8
input_channels = 1
widths = [4, 8, 8]
[data]
name = "digits"
size = 8
[calibration]
batches = 2
batch_size = 32
[analyses.information_bottleneck]
permutations = 2
[analyses.response_information]
[analyses.energy_propagation]
[analyses.random]
[plan]
rank_by = "information_bottleneck"
macs = 0.6
[repair]
method = "reconstruct"
steps = 2
[finetune]
epochs = 1
mixup = 0.2
erasing = 0.2
[evaluate]
latency_repeats = 1
latency_warmup = 0
[export]
formats = ["state_dict"]
"""
STAGES = ("pruned", "repaired", "finetuned")


def run(folder: Path, threads: int, until: str = "evaluate", *overrides: str) -> Path:
    (folder / "recipe.toml").write_text(RECIPE)
    out = folder / "run"
    job = open_run(read(folder / "recipe.toml", [f"run.threads={threads}", *overrides]), out)
    run_until(job, until)
    return out


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A run with one thread."""
    before = torch.get_num_threads()
    yield run(tmp_path_factory.mktemp("one"), 1)
    torch.set_num_threads(before)


def findings(out: Path) -> dict[str, Any]:
    return {path.name: storage.read_json(path) for path in sorted((out / "findings").iterdir())}


def metrics(out: Path) -> dict[str, Any]:
    rows = storage.read_json(out / "metrics.json")
    return {stage: {**row, "latency_ms": None} for stage, row in rows.items() if stage != "made_from"}


def test_same_seed_same_machine(one: Path, tmp_path: Path) -> None:
    """Identical, to the last bit: findings, plan, weights of every stage, metrics."""
    torch.manual_seed(12345)  # whatever was drawn before
    torch.rand(7)
    again = run(tmp_path, 1)
    assert findings(again) == findings(one)
    assert storage.read_json(again / "plan.json") == storage.read_json(one / "plan.json")
    for stage in STAGES:
        assert storage.file_fingerprint(again / f"{stage}.safetensors") == storage.file_fingerprint(
            one / f"{stage}.safetensors"
        )
    assert metrics(again) == metrics(one)


def test_another_seed_is_another_run(one: Path, tmp_path: Path) -> None:
    again = run(tmp_path, 1, "plan", "run.seed=1", "plan.allocation=uniform")
    assert findings(again) != findings(one)


# What docs/resuming.md states: other numbers of threads add up in another order, in float64 where sums are long.
SAME, ALMOST = 1e-6, 1e-4


def numbers(value: Any) -> list[float]:
    """All numbers in an artifact, in order."""
    if isinstance(value, dict):
        return [each for key in value if key != "made_from" for each in numbers(value[key])]
    if isinstance(value, list):
        return [each for part in value for each in numbers(part)]
    return [float(value)] if isinstance(value, int | float) else []


def test_two_threads_find_the_same(one: Path, tmp_path: Path) -> None:
    two = run(tmp_path, 2)
    assert torch.get_num_threads() == 2
    for (name, first), second in zip(findings(one).items(), findings(two).values(), strict=True):
        assert numbers(second) == pytest.approx(numbers(first), rel=SAME, abs=SAME), name
    kept = [[group["kept"] for group in storage.read_json(out / "plan.json")["groups"]] for out in (one, two)]
    assert kept[0] == kept[1]
    for stage in STAGES:
        first, second = (storage.read_tensors(out / f"{stage}.safetensors") for out in (one, two))
        for name, tensor in first.items():
            torch.testing.assert_close(second[name], tensor, rtol=0, atol=ALMOST * float(tensor.abs().max()))

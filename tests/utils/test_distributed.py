"""Two processes on one CPU: what they find, score and learn is what one process does; a dead one is no lost run.

This file is also the script that torchrun starts.
"""

import json
import math
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from infoprune.analyses.base import Finding, Joinable
from infoprune.analyses.runner import analyze
from infoprune.config import registry
from infoprune.data.dataset import Batches
from infoprune.evaluation.accuracy import evaluate
from infoprune.io import storage
from infoprune.io.encoding import to_json
from infoprune.planning.plan import GroupPlan, Plan
from infoprune.pruning.channel_graph import channel_graph
from infoprune.pruning.prune import prune
from infoprune.repairing.repair import repair
from infoprune.training.finetune import finetune
from infoprune.utils import distributed

ROOT = Path(__file__).parents[2]


def torchrun(*arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *arguments]
    clean = {name: value for name, value in os.environ.items() if name != "INFOPRUNE_DATA"}
    return subprocess.run(
        command,
        env={**clean, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", **(env or {})},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(2, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 5, 3, padding=1), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 3)),
    )


def points(count: int) -> TensorDataset:
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(count) % 3
    images = torch.randn(count, 2, 6, 6, generator=generator) + labels.view(-1, 1, 1, 1)
    return TensorDataset(images, labels)


class Unjoined:
    """An analysis of the user's own, which knows nothing of other processes."""

    observes = (nn.Linear,)
    needs_gradients = False
    needs_labels = False

    def __init__(self) -> None:
        self.seen: list[int] = []

    def observe(self, view: Any) -> None:
        self.seen.append(view.batch.index)

    def conclude(self) -> Finding:
        return Finding("unjoined", importance={"batches": torch.tensor(self.seen)})


class LessLoss:
    """A metric whose value depends on every sample and its place."""

    def __call__(self, logits: Tensor, labels: Tensor) -> float:
        place = torch.arange(len(labels)) / len(labels)
        return -float((F.cross_entropy(logits, labels, reduction="none") * place).mean())


def metric(logits: Tensor, labels: Tensor) -> float:
    return LessLoss()(logits, labels)


def repaired(batches: distributed.Share[Any]) -> nn.Module:
    """A cut network after the refit from shared batches."""
    model = network()
    graph, kept = channel_graph(model, torch.zeros(1, 2, 6, 6)), {"0": (0, 2, 3, 5)}
    pruned = prune(model, Plan((GroupPlan("0", kept["0"], 6, 4, 0, 0, ""),), {}, 0, 0, graph.input_shape))
    repair(pruned, model, graph, kept, batches, positions=9)
    return pruned


def work(out: Path | None) -> dict[str, Any]:
    """Everything that one process does and two must do alike."""
    torch.set_num_threads(1)
    calibration = list(Batches(points(70), batch_size=10))  # seven batches: an odd number
    found = analyze(network(), distributed.Share(calibration), [*registry.names("analyses"), Unjoined()])
    corrected = repaired(distributed.Share(calibration))
    model = network()
    # 95 samples in batches of 16: the last one is uneven, and two processes cannot halve it.
    batches, held_out = (Batches(points(95), batch_size=16, seed=seed, shared=True) for seed in (0, None))
    before = asdict(evaluate(model, held_out))
    history = finetune(
        model,
        Batches(points(96), batch_size=16, seed=0, shared=True),
        held_out,
        epochs=2,
        ema=0.5,
        accumulation=2,
        metric=f"{__file__}:metric",
        keep="best",
    )
    weights = {name: value.tolist() for name, value in model.state_dict().items()}
    labels = [label for _, some in batches for label in some.tolist()]
    return {
        "findings": [to_json(finding) for finding in found],
        "repaired": {name: value.tolist() for name, value in corrected.state_dict().items()},
        "before": before,
        "history": [asdict(record) for record in history],
        "weights": weights,
        "count": len(labels),
        "steps": len(batches),
        "rank": distributed.rank(),
        "world": distributed.world(),
    }


def main(out: str) -> None:
    distributed.start("cpu")
    result = work(Path(out))
    Path(out, f"{distributed.rank()}.json").write_text(json.dumps(result))
    distributed.stop()


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    out = tmp_path_factory.mktemp("together")
    done = torchrun(__file__, str(out))
    assert done.returncode == 0, done.stderr
    return [json.loads((out / f"{rank}.json").read_text()) for rank in (0, 1)]


@pytest.fixture(scope="module")
def alone() -> dict[str, Any]:
    threads = torch.get_num_threads()
    result = work(None)
    torch.set_num_threads(threads)
    return result


def close(found: Any, expected: Any, tolerance: float, where: str = "") -> None:
    if isinstance(expected, dict):
        assert found.keys() == expected.keys(), where
        for key in expected:
            close(found[key], expected[key], tolerance, f"{where}/{key}")
    elif isinstance(expected, list):
        assert len(found) == len(expected), where
        for place, (one, other) in enumerate(zip(found, expected, strict=True)):
            close(one, other, tolerance, f"{where}/{place}")
    elif isinstance(expected, float) and not isinstance(expected, bool):
        assert found == pytest.approx(expected, abs=tolerance, nan_ok=True), where
    else:
        assert found == expected, where


def test_findings_are_those_of_one_process(together: list[dict[str, Any]], alone: dict[str, Any]) -> None:
    assert [result["world"] for result in together] == [2, 2]
    for result in together:
        close(result["findings"], alone["findings"], 1e-9)


def test_every_analysis_that_ships_does_a_part_of_the_work_on_each_process() -> None:
    for name in registry.names("analyses"):
        assert isinstance(registry.find("analyses", name)(), Joinable), name


def test_an_analysis_that_cannot_be_joined_sees_all_batches(together: list[dict[str, Any]]) -> None:
    for result in together:
        assert result["findings"][-1]["importance"]["batches"] == list(range(7))


def test_repair_is_that_of_one_process(together: list[dict[str, Any]], alone: dict[str, Any]) -> None:
    for result in together:
        close(result["repaired"], alone["repaired"], 1e-6)  # the sums are float64, the weights float32
    cut = network().state_dict()
    assert alone["repaired"]["2.weight"] != cut["2.weight"][:, [0, 2, 3, 5]].tolist()


def test_every_sample_is_scored_once(together: list[dict[str, Any]], alone: dict[str, Any]) -> None:
    for result in together:
        assert result["before"]["samples"] == 95
        assert result["before"]["accuracy"] == alone["before"]["accuracy"]
        assert result["before"]["loss"] == pytest.approx(alone["before"]["loss"], abs=1e-7)


def test_training_takes_the_same_steps(together: list[dict[str, Any]], alone: dict[str, Any]) -> None:
    # No norms and no augmentation, so that the only difference is in which order numbers are added.
    for result in together:
        close(result["weights"], alone["weights"], 1e-5)
        for record in [*result["history"], *alone["history"]]:
            record.pop("seconds", None)
        close(result["history"], alone["history"], 1e-5)
    assert together[0]["weights"] == together[1]["weights"]
    assert together[0]["history"] == together[1]["history"]


def test_all_take_equally_many_steps(together: list[dict[str, Any]]) -> None:
    assert [(result["count"], result["steps"]) for result in together] == [(48, 6), (48, 6)]


# --- one process ---


def test_one_process_gets_back_what_it_gave() -> None:
    tensor = torch.tensor([1, 2])
    assert distributed.sum_over_ranks([tensor])[0] is tensor
    assert distributed.from_first([1.5, math.inf]) == [1.5, math.inf]
    assert distributed.decide(lambda: True)
    assert not distributed.decide(lambda: False)
    assert distributed.start("cpu") == "cpu"
    distributed.wait()


# --- the whole job ---

DYING = """
import os
from torch.nn import functional as F

steps = 0


def loss(logits, labels):
    global steps
    steps += 1
    if os.environ.get("RANK") == os.environ.get("DIES") and steps == 3:
        os._exit(77)
    return F.cross_entropy(logits, labels)
"""


def job(out: Path, loss: Path, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    changes = [
        *("model.depth=8", "data.augment=false", "calibration.batches=3", "calibration.batch_size=32"),
        *("run.batch_size=600", "run.threads=1", "finetune.epochs=2", "finetune.distillation=0", "export.formats=[]"),
        *("evaluate.latency_repeats=2", "evaluate.latency_warmup=1", f"finetune.loss={loss}:loss"),
        *("train.epochs=0", "repair.method=batch_norm"),
    ]
    sets = [part for change in changes for part in ("--set", change)]
    recipe = ROOT / "recipes" / "digits.toml"
    plain = out.parent / "plain.toml"
    plain.write_text("\n".join(line for line in recipe.read_text().splitlines() if not line.startswith("weights")))
    return torchrun("-m", "infoprune", "run", str(plain), "--out", str(out), *sets, env=env)


def test_a_process_that_dies_ends_the_run_and_the_next_run_resumes(tmp_path: Path) -> None:
    loss = tmp_path / "dying.py"
    loss.write_text(DYING)
    out = tmp_path / "run"
    ended = job(out, loss, {"DIES": "1"})
    assert ended.returncode == 1
    assert "exitcode" in ended.stderr.replace(" ", "")
    assert "77" in ended.stderr
    assert not (out / "finetuned.safetensors").exists()
    assert (out / ".infoprune" / "finetuned.epochs.safetensors").exists()  # the first epoch is two steps
    resumed = job(out, loss, {})
    assert resumed.returncode == 0, resumed.stderr
    assert "✓ repair (up to date)" in resumed.stderr
    assert resumed.stderr.count("✓ finetune") == 1  # the others keep silent
    assert (out / "history.csv").read_text().count("\n") == 3
    assert set(storage.read_json(out / "metrics.json")) >= {"base", "finetuned"}
    assert (out / "finetuned-best.safetensors").exists()
    assert {path.name for path in (out / ".infoprune").iterdir()} == {"lock", "manifest.json", "tmp"}


if __name__ == "__main__":
    main(sys.argv[1])

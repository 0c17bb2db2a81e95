"""A training that was killed, at any moment, ends with the very weights that it would have had.

This file is also the script that is killed.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from infoprune.config import recipe
from infoprune.data.dataset import Batches
from infoprune.errors import UserError
from infoprune.evaluation.metrics import EpochRecord
from infoprune.io import storage
from infoprune.pipeline.context import open_run
from infoprune.pipeline.run import run_until
from infoprune.training.finetune import finetune
from infoprune.training.history import read_history, write_history
from infoprune.training.resume import EpochFile

ROOT = Path(__file__).parents[2]
STEPS = 4  # per epoch, of 100 samples
FULL: dict[str, Any] = {"epochs": 4, "ema": 0.9, "accumulation": 1, "keep": "best", "learning_rate": 0.1}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """These networks are so small that a second thread only costs, and bits depend on the number of threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Interrupt(Exception):
    """What stands for a kill where the process has to live on."""


def train(path: Path | None, stop: Any = None, **options: Any) -> tuple[dict[str, Tensor], list[EpochRecord]]:
    """A small training with all that has a state: norms, dropout, shuffling, momentum, augmentation."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(16, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 3)
    )
    labels = torch.arange(100) % 3
    data = TensorDataset((F.one_hot(labels, 16) * 2 + torch.randn(100, 16)).view(-1, 1, 4, 4), labels)

    def noise(images: Tensor, generator: torch.Generator) -> Tensor:
        return images + 0.1 * torch.randn(images.shape, generator=generator)

    batches = Batches(data, batch_size=25, seed=3, augment=noise)
    resume = None if path is None else EpochFile(path)
    history = finetune(model, batches, Batches(data, batch_size=50), None, stop, resume, **{**FULL, **options})
    return model.state_dict(), history


def stopping_at(step: int) -> Any:
    def stop(done: int, _: int) -> None:
        if done == step:
            raise Interrupt

    return stop


def same(one: tuple[Any, Any], other: tuple[Any, Any]) -> bool:
    """Weights and histories to the bit, but for the seconds."""

    def figures(records: list[EpochRecord]) -> str:
        return str([(r.epoch, r.learning_rate, r.train_loss, r.validation_loss, r.validation_metric) for r in records])

    return figures(one[1]) == figures(other[1]) and all(torch.equal(one[0][name], other[0][name]) for name in one[0])


def main(path: str, moment: str) -> None:
    """Trains until the moment, and there kills itself as the kernel would."""
    torch.set_num_threads(1)

    def die(*_: Any, **__: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    if moment == "saving":

        def torn(_: Any, name: Path, **__: Any) -> None:
            Path(name).write_bytes(b"half")
            if len(list(Path(path).parent.glob("*.safetensors"))):  # the second time
                die()

        whole = storage.save_file
        storage.save_file = lambda *args, **keywords: (torn if Path(path).exists() else whole)(*args, **keywords)
        train(Path(path))
    else:
        train(Path(path), lambda done, _: die() if done == int(moment) else None)


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Trainings killed in the first epoch, in the middle of the third, and while the second was being saved."""
    folder = tmp_path_factory.mktemp("killed")
    moments = ("2", str(2 * STEPS + 2), "saving")
    for moment in moments:
        (folder / moment).mkdir()
    paths = {moment: folder / moment / "epochs.safetensors" for moment in moments}
    started = [subprocess.Popen([sys.executable, __file__, str(path), moment]) for moment, path in paths.items()]
    assert [process.wait(120) for process in started] == [-signal.SIGKILL] * len(started)
    return paths


@pytest.mark.parametrize(("moment", "epochs"), [("2", 0), (str(2 * STEPS + 2), 2), ("saving", 1)])
def test_killed_training_ends_with_the_same_bits(killed: dict[str, Path], moment: str, epochs: int) -> None:
    path = killed[moment]
    assert path.exists() == (epochs > 0)
    if epochs:
        assert len(json.loads(storage.read_metadata(path)["training"])["notes"]["history"]) == epochs
    steps: list[int] = []
    resumed = train(path, lambda done, _: steps.append(done))
    assert steps[0] == epochs * STEPS + 1, "it started from the front"
    assert same(resumed, train(None))
    EpochFile(path).clear()
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize(
    "options",
    [
        {"optimizer": "adamw", "ema": 0.0, "keep": "last"},
        {"momentum": 0.0, "schedule": "one_cycle", "gradient_clip": 0.5, "accumulation": 3},
        {"precision": "bfloat16", "channels_last": True, "patience": 4},
        {"mixup": 0.4, "cutmix": 1.0, "label_smoothing": 0.1, "erasing": 0.5},
    ],
    ids=str,
)
@pytest.mark.parametrize("step", [1, 5, 8])
def test_every_state_is_saved(tmp_path: Path, options: dict[str, Any], step: int) -> None:
    path = tmp_path / "epochs.safetensors"
    if options.get("accumulation"):
        step = -(-step // 3)
    with pytest.raises(Interrupt):
        train(path, stopping_at(step), **options)
    assert same(train(path, **options), train(None, **options))


def test_a_finished_training_is_not_done_again(tmp_path: Path) -> None:
    path = tmp_path / "epochs.safetensors"
    first = train(path)
    assert same(train(path, stopping_at(1)), first)


def test_early_stop_survives_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "epochs.safetensors"
    options = {"epochs": 40, "patience": 2, "learning_rate": 0.5}
    plain = train(None, **options)
    epochs = len(plain[1])
    assert epochs < 40
    with pytest.raises(Interrupt):
        train(path, stopping_at(epochs * STEPS - 1), **options)
    assert same(train(path, **options), plain)
    assert same(train(path, stopping_at(1), **options), plain)


@pytest.mark.parametrize("change", [{"learning_rate": 0.2}, {"epochs": 5}, {"seed": 1}, {"keep": "last"}])
def test_changed_options_start_anew(tmp_path: Path, change: dict[str, Any]) -> None:
    path = tmp_path / "epochs.safetensors"
    with pytest.raises(Interrupt):
        train(path, stopping_at(2 * STEPS + 1))
    assert same(train(path, **change), train(None, **change))


def test_other_inputs_start_anew(tmp_path: Path) -> None:
    path = tmp_path / "epochs.safetensors"
    EpochFile(path, {"data": "a"}).save({}, {"x": torch.ones(1)}, {})
    assert EpochFile(path, {"data": "b"}).load({}) is None
    assert EpochFile(path, {"data": "a"}).load({"epochs": 1}) is None
    assert EpochFile(path, {"data": "a"}).load({}) is not None


def changed(path: Path, change: Callable[[dict[str, Any], dict[str, Tensor]], Any]) -> None:
    """Writes a state again, with a checksum that fits, after a change of its header and tensors.

    The change is made in place, but for a header of another type, which it gives.
    """
    header, tensors = json.loads(storage.read_metadata(path)["training"]), storage.read_tensors(path)
    given = change(header, tensors)
    header["checksum"] = storage.value_fingerprint([storage.tensors_fingerprint(tensors), header.get("notes")])
    storage.write_tensors(path, tensors, {"training": json.dumps(header if given is None else given)})


def put(*names: Any, value: Any) -> Callable[[dict[str, Any], dict[str, Tensor]], None]:
    """A change of one field of a header."""

    def change(header: Any, _: object) -> None:
        for name in names[:-1]:
            header = header[name]
        header[names[-1]] = value

    return change


def drop(*names: Any) -> Callable[[dict[str, Any], dict[str, Tensor]], None]:
    """A change that takes a field out of a header."""

    def change(header: Any, _: object) -> None:
        for name in names[:-1]:
            header = header[name]
        del header[names[-1]]

    return change


def tensor(name: str, value: Tensor | None) -> Callable[[dict[str, Any], dict[str, Tensor]], None]:
    """A change of one tensor, or of whether there is one."""

    def change(_: object, tensors: dict[str, Tensor]) -> None:
        if value is None:
            del tensors[name]
        else:
            tensors[name] = value

    return change


FIELDS = ("history", "best", "step", "scaler", "iterations")
DAMAGES: dict[str, Any] = {
    "a list for a header": lambda header, tensors: [],
    "no header": lambda header, tensors: {},
    "no origin": drop("made_from"),
    "no notes": drop("notes"),
    "null for notes": put("notes", value=None),
    "a list for notes": put("notes", value=[]),
    **{f"no {field}": drop("notes", field) for field in FIELDS},
    **{f"text for {field}": put("notes", field, value="x") for field in FIELDS},
    **{f"null for {field}": put("notes", field, value=None) for field in FIELDS},
    "a checksum of something else": lambda header, tensors: {**header, "checksum": "0" * 64},
    "a scaler where there is none": put("notes", "scaler", value={"scale": 1.0}),
    "a history of numbers": put("notes", "history", value=[1, 2]),
    "an epoch without a loss": drop("notes", "history", 0, "train_loss"),
    "an unknown epoch": put("notes", "history", 1, "epoch", value=7),
    "more epochs than asked for": lambda header, _: header["notes"].update(history=header["notes"]["history"] * 9),
    "half an epoch": put("notes", "step", value=3),
    "a best epoch to come": put("notes", "best", value=[0.5, -1.0, 4]),
    "two numbers for the best": put("notes", "best", value=[0.5, -1.0]),
    "iterations below zero": put("notes", "iterations", value=-1),
    "endless iterations": put("notes", "iterations", value=10**30),
    "no weight": tensor("model.1.weight", None),
    "no running mean": tensor("average.module.2.running_mean", None),
    "no best weight": tensor("best.1.weight", None),
    "another weight": tensor("model.9.weight", torch.ones(1)),
    "a weight of another shape": tensor("model.1.weight", torch.ones(8, 15)),
    "a weight of integers": tensor("model.1.weight", torch.ones(8, 16, dtype=torch.int64)),
    "momentum of another shape": tensor("optimizer.0.momentum_buffer", torch.ones(3)),
    "momentum of nothing": tensor("optimizer.99.momentum_buffer", torch.ones(3)),
    "momentum without a number": tensor("optimizer.x", torch.ones(3)),
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The state of a training after two epochs."""
    torch.set_num_threads(1)
    path = tmp_path_factory.mktemp("saved") / "epochs.safetensors"
    with pytest.raises(Interrupt):
        train(path, stopping_at(2 * STEPS + 1))
    return path.read_bytes()


@pytest.fixture(scope="module")
def plain() -> tuple[dict[str, Tensor], list[EpochRecord]]:
    """The training without an interruption."""
    torch.set_num_threads(1)
    return train(None)


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_state_is_left_alone(
    tmp_path: Path, saved: bytes, plain: Any, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    path, steps = tmp_path / "epochs.safetensors", list[int]()
    path.write_bytes(saved)
    changed(path, DAMAGES[name])
    assert same(train(path, lambda done, _: steps.append(done)), plain)
    assert steps[0] == 1, "it went on from a damaged state"
    # A state without an origin is that of another training, which is nothing to warn of.
    assert ("training starts from the beginning" in caplog.text) == (name not in ("no origin", "no header"))


def test_an_intact_state_that_was_written_again_is_gone_on_from(tmp_path: Path, saved: bytes, plain: Any) -> None:
    """The changes above are what keeps training from going on, not the way in which they are made."""
    path, steps = tmp_path / "epochs.safetensors", list[int]()
    path.write_bytes(saved)
    changed(path, lambda header, tensors: None)
    assert same(train(path, lambda done, _: steps.append(done)), plain)
    assert steps[0] == 2 * STEPS + 1


def test_adamw_lacks_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path, options = tmp_path / "epochs.safetensors", {"optimizer": "adamw", "learning_rate": 0.01, "epochs": 2}
    with pytest.raises(Interrupt):
        train(path, stopping_at(STEPS + 1), **options)
    changed(path, tensor("optimizer.0.exp_avg_sq", None))
    assert same(train(path, **options), train(None, **options))
    assert "it lacks 'optimizer.0.exp_avg_sq'" in caplog.text


@pytest.mark.parametrize("content", [b"torn", b"", None, "null", "[]", "3", "{", "[" * 100_000])
def test_a_file_that_is_no_state_is_left_alone(
    tmp_path: Path, content: bytes | str | None, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "epochs.safetensors"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        storage.write_tensors(path, {"x": torch.ones(1)}, {} if content is None else {"training": content})
    assert EpochFile(path).load({}) is None
    assert "training starts from the beginning" in caplog.text
    assert EpochFile(path).weights("best") == {}


def test_weights_of_another_training_are_not_kept(tmp_path: Path) -> None:
    path = tmp_path / "epochs.safetensors"
    EpochFile(path, {"data": "a"}).save({}, {"best.x": torch.ones(1)}, {})
    assert EpochFile(path, {"data": "b"}).weights("best") == {}
    assert [*EpochFile(path, {"data": "a"}).weights("best")] == ["x"]


def test_histories_come_back(tmp_path: Path) -> None:
    history = train(None)[1]
    write_history(tmp_path / "history.csv", history)
    assert str(read_history(tmp_path / "history.csv")) == str(history)  # NaN equals nothing, itself included
    (tmp_path / "history.csv").write_text("epoch\nx\n")
    with pytest.raises(UserError, match="no history"):
        read_history(tmp_path / "history.csv")


# --- the step of a run ---

DYING = """
import os, signal
from torch.nn import functional as F

steps = 0


def loss(logits, labels):
    global steps
    steps += 1
    if str(steps) == os.environ.get("DIES_AT"):
        os.kill(os.getpid(), signal.SIGKILL)
    return F.cross_entropy(logits, labels)
"""


def test_killed_step_of_a_run_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    loss = tmp_path / "dying.py"
    loss.write_text(DYING)
    changes = [
        *("model.depth=8", "calibration.batches=2", "calibration.batch_size=32", "run.threads=1"),
        *("run.batch_size=400", "finetune.epochs=3", f"finetune.loss={loss}:loss", "repair.method=batch_norm"),
    ]
    plain = tmp_path / "plain.toml"
    text = (ROOT / "recipes" / "digits.toml").read_text()
    plain.write_text("\n".join(line for line in text.splitlines() if not line.startswith("weights")))

    def finetuned(out: Path, *more: str) -> dict[str, Tensor]:
        run_until(open_run(recipe.read(plain, [*changes, *more]), out), "finetune")
        return storage.read_tensors(out / "finetuned.safetensors")

    sets = [part for change in changes for part in ("--set", change)]
    out, state = tmp_path / "run", tmp_path / "run" / ".infoprune" / "finetuned.epochs.safetensors"
    command = [sys.executable, "-m", "infoprune", "finetune", str(plain), "--out", str(out), *sets]
    killed = subprocess.run(command, env={**os.environ, "DIES_AT": "5"}, capture_output=True, timeout=120, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert state.exists()
    before = state.read_bytes()
    whole = finetuned(tmp_path / "whole")
    found = finetuned(out)
    assert all(torch.equal(found[name], whole[name]) for name in whole)
    for name in ("finetuned-best.safetensors", "history.csv"):
        assert (out / name).exists(), name
    assert {path.name for path in (out / ".infoprune").iterdir()} == {"lock", "manifest.json", "tmp"}
    # A state that a changed recipe finds is not its own.
    (out / "finetuned.safetensors").unlink()
    state.write_bytes(before)
    other = finetuned(out, "finetune.weight_decay=0.1")
    assert not all(torch.equal(other[name], whole[name]) for name in whole)
    expected = finetuned(tmp_path / "other", "finetune.weight_decay=0.1")
    assert all(torch.equal(other[name], expected[name]) for name in expected)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])

"""What happens to a run from outside: kills, full disks, lost files and processes, clocks, older versions."""

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch.utils.data import Dataset

from benchmarks.faults.kills import FILES, RECIPE
from infoprune import cli
from infoprune.data.dataset import Batches
from infoprune.errors import RunError, UserError, shortages
from infoprune.io import checkpoint, storage
from infoprune.pipeline import artifacts
from infoprune.pipeline.run_directory import RunDirectory

ROOT = Path(__file__).parents[2]
QUICK = ["finetune.epochs=1", 'export.formats=["state_dict"]', "plan.allocation=uniform"]


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def call(tmp_path: Path) -> Callable[..., tuple[int, str]]:
    """A step of the small recipe in a run directory: exit code and what was said."""
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(RECIPE)

    def run(step: str, out: Path, *sets: str) -> tuple[int, str]:
        parts = [part for each in (*QUICK, *sets) for part in ("--set", each)]
        result = CliRunner().invoke(cli.main, [step, str(recipe), "--out", str(out), *parts])
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
        return result.exit_code, " ".join(result.output.split())

    return run


def test_killed_before_a_file_of_each_step(tmp_path: Path) -> None:
    """Whole files after each kill, and in the end those of a run that was never killed."""
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.faults", "--steps"]
    found = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert found.returncode == 0, found.stderr
    assert found.stdout.count("killed at") == len(FILES) >= 5
    assert found.stdout.endswith("equal to a run that was never killed\n")


@contextmanager
def tmpfs(folder: Path, size: str) -> Iterator[None]:
    """A small disk."""
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip("no right to mount a small disk; a limit on file sizes stands for it in the other test")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_full_disk(call: Callable[..., tuple[int, str]], tmp_path: Path) -> None:
    with tmpfs(tmp_path / "disk", "300k"):
        code, said = call("repair", tmp_path / "disk" / "run")
        assert code == 2
        assert "No space left on device" in said
        assert "make room" in said
        own = tmp_path / "disk" / "run" / ".infoprune"
        assert {path.name for path in own.rglob("*")} <= {"lock", "manifest.json", "tmp"}
        subprocess.run(["mount", "-o", "remount,size=50m", str(tmp_path / "disk")], check=True)
        code, said = call("repair", tmp_path / "disk" / "run")
        assert code == 0, said
        assert "analyze (up to date)" in said


def no_room(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_full_disk_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage.write_json(tmp_path / "plan.json", {"a": 1})
    storage.write_tensors(tmp_path / "w.safetensors", {"w": torch.ones(2)}, {})
    monkeypatch.setattr(os, "fsync", no_room)
    for write in (
        lambda: storage.write_json(tmp_path / "plan.json", {"a": 2}),
        lambda: storage.write_tensors(tmp_path / "w.safetensors", {"w": torch.zeros(2)}, {}),
    ):
        with pytest.raises(UserError, match=r"No space left on device.*make room"):
            write()
    assert storage.read_json(tmp_path / "plan.json") == {"a": 1}
    assert storage.read_tensors(tmp_path / "w.safetensors")["w"].tolist() == [1, 1]
    assert {path.name for path in tmp_path.iterdir()} == {"plan.json", "w.safetensors"}


def test_read_only_directory(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("readonly")
    folder.chmod(0o555)
    for parent in list(folder.parents)[:2]:  # pytest's own are private
        parent.chmod(0o755)
    root = os.geteuid() == 0
    try:
        if root:
            os.seteuid(65534)  # to whom permissions apply
        with pytest.raises(UserError, match=r"Permission denied.*choose another folder with --out"):
            RunDirectory(folder).claim()
    finally:
        if root:
            os.seteuid(0)
        folder.chmod(0o755)


def test_directory_that_becomes_read_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any, **__: Any) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), "run/plan.json")

    monkeypatch.setattr(os, "replace", refused)
    with pytest.raises(UserError, match=r"Permission denied 'run/plan.json'; make room or fix the permissions"):
        storage.write_json(tmp_path / "plan.json", {})


def test_data_that_vanishes_between_steps(call: Callable[..., tuple[int, str]], tmp_path: Path) -> None:
    from PIL import Image

    for split in ("train", "test"):
        for label in range(2):
            (tmp_path / "images" / split / str(label)).mkdir(parents=True)
            for number in range(10):
                Image.new("L", (16, 16), 20 * number).save(tmp_path / "images" / split / str(label) / f"{number}.png")
    sets = [f"data.{key}={value}" for key, value in {"name": "image_folder", "size": 16, "workers": 0}.items()]
    sets += [f"data.root='{tmp_path}/images'", "model.input_channels=3", "model.classes=2", "calibration.batch_size=8"]
    assert call("plan", tmp_path / "run", *sets)[0] == 0
    for path in (tmp_path / "images" / "test").rglob("*.png"):
        path.unlink()
    code, said = call("evaluate", tmp_path / "run", *sets)
    assert code == 2
    assert "holds no complete set of classes" in said


class Fragile(Dataset[Any]):
    """Whose worker process is killed, as by a system short of memory, or which loses a file."""

    def __init__(self, act: Callable[[], None]) -> None:
        self.act = act

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        if index == 3:
            self.act()
        return torch.zeros(1, 4, 4), 0


def test_killed_loader() -> None:
    batches = Batches(Fragile(lambda: os.kill(os.getpid(), signal.SIGKILL)), batch_size=2, workers=1)
    with pytest.raises(RunError, match=r"a process that loads data was killed.*lower data.workers"):
        list(batches)


@pytest.mark.parametrize("workers", [0, 1])
def test_lost_file(workers: int) -> None:
    batches = Batches(Fragile(lambda: open("/nowhere/3.png").close()), batch_size=2, workers=workers)
    with pytest.raises(UserError, match=r"a Fragile cannot be read: FileNotFoundError.*'/nowhere/3.png'") as failure:
        list(batches)
    assert "Traceback" not in str(failure.value)


def test_memory_that_runs_out(
    call: Callable[..., tuple[int, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def repair(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    with monkeypatch.context() as small:
        small.setattr("infoprune.pipeline.steps.repair.repair", repair)
        code, said = call("repair", tmp_path / "run")
    assert code == 2
    assert "repair: out of memory (CUDA out of memory. Tried to allocate 20.00 GiB); lower [run] batch_size" in said
    assert "prune (up to date)" in call("repair", tmp_path / "run")[1]
    with pytest.raises(RuntimeError, match=r"^shapes$"), shortages("analyze"):  # a bug stays a bug
        raise RuntimeError("shapes")


def test_clock_that_was_set_back(call: Callable[..., tuple[int, str]], tmp_path: Path) -> None:
    """What is up to date is told by contents, not by times."""
    out = tmp_path / "run"
    assert call("repair", out)[0] == 0
    for path in out.rglob("*"):
        os.utime(path, (time.time() + 1e8, time.time() + 1e8))
    assert call("repair", out)[1].count("up to date") == 4
    assert call("repair", out, "plan.macs=0.7")[1].count("up to date") == 1


def test_older_version(call: Callable[..., tuple[int, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What another version made is made again; a format that cannot be read is refused with a remedy."""
    out = tmp_path / "run"
    with monkeypatch.context() as older:
        older.setattr(artifacts, "versions", lambda: {"infoprune": "0.0.1"})
        assert call("repair", out)[0] == 0
    code, said = call("repair", out)
    assert code == 0
    assert "up to date" not in said
    with monkeypatch.context() as older:
        older.setattr(checkpoint, "FORMAT", 0)
        (out / "repaired.safetensors").unlink()
        (out / "pruned.safetensors").unlink()
        assert call("repair", out)[0] == 0
    code, said = call("finetune", out)  # reads what is there
    assert code == 2
    assert "has checkpoint format 0" in said
    assert "remove it to have it made again" in said
    for stage in ("pruned", "repaired"):
        (out / f"{stage}.safetensors").unlink()
    assert call("repair", out)[0] == 0

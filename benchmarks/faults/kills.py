"""Kills a run with SIGKILL again and again and compares what the same command then ends with.

The recipe takes a few seconds and goes through every step: a small residual network on the digits that come with
scikit-learn. Each run is a fork of a process that has imported everything, so that every moment falls into the work.
After every kill all files that have their names must be whole, files of the user's that lie in the folder must be as
they were, and in the end all must equal those of a run that was never killed: byte for byte, except for what is
measured in time.
"""

import os
import random
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx

from benchmarks.faults import foreign
from benchmarks.faults.project import differences
from infoprune.config.recipe import read
from infoprune.io import storage
from infoprune.pipeline import run as pipeline
from infoprune.pipeline.run_directory import OWN

RECIPE = """
[run]
threads = 1
[model]
name = "cifar_resnet"
depth = 8
input_channels = 1
[data]
name = "digits"
[calibration]
batches = 2
batch_size = 32
[plan]
rank_by = "l2"
macs = 0.6
[finetune]
epochs = 3
[evaluate]
latency_repeats = 2
latency_warmup = 1
"""
# One file of each step, in the order in which they appear; the training's state appears once an epoch.
FILES = ("l2.json", "plan.json", "pruned.safetensors", "repaired.safetensors", "finetuned.epochs.safetensors")
FILES += ("finetuned.safetensors", "metrics.json", "model.onnx", "report.html")
EQUAL, OTHERWISE = "equal to a run that was never killed", "otherwise"
BAD = (OTHERWISE, foreign.TOUCHED)


class Steps:
    """Writes down in a file which step runs, for whoever kills the process."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def step(self, name: str, state: str) -> None:
        """A step is "running", "done" or "up to date"."""
        self.path.write_text(name)

    def advance(self, what: str, done: int, total: int) -> None:
        """Not of interest."""


def run(recipe: Path, out: Path, last_words: Path) -> None:
    """All steps, in this process."""
    pipeline.run(read(recipe), out, Steps(last_words), force=True)


def forked(act: Callable[[], None]) -> int:
    """Starts a process that does something, and gives its number."""
    sys.stdout.flush()
    process = os.fork()
    if process == 0:
        try:
            act()
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    return process


def ended(process: int) -> int:
    """Waits; 0 where it ended well, minus the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def deadly(name: str) -> None:
    """Makes this process kill itself in place of giving a file this name."""
    replace = os.replace

    def instead(source: Any, target: Any, **options: Any) -> None:
        if Path(target).name == name:
            os.kill(os.getpid(), signal.SIGKILL)
        replace(source, target, **options)

    os.replace = instead


def check_whole(out: Path) -> None:
    """Raises where a file that has its name is torn."""
    users = {out / name for name in foreign.BESIDE}
    for path in sorted(path for path in out.rglob("*") if path.is_file() and path not in users):
        if OWN in path.parts and path.name not in ("manifest.json", "finetuned.epochs.safetensors"):
            continue  # on its way to its name
        if path.suffix == ".json":
            storage.read_json(path)
        elif path.suffix == ".safetensors":
            storage.read_tensors(path)
        elif path.suffix == ".onnx":
            onnx.checker.check_model(path)
        elif path.suffix == ".html":
            assert path.read_text().rstrip().endswith("</html>"), path


def at_each_step(folder: Path, recipe: Path, whole: Path) -> None:
    """One folder, killed before a file of each step gets its name."""
    out = folder / "steps"
    _start(out)
    before = users_files(out)
    for name in FILES:

        def act(name: str = name) -> None:
            deadly(name)
            run(recipe, out, folder / "step")

        code = ended(forked(act))
        assert code == -signal.SIGKILL, f"the process was to be killed at {name}, and ended with {code}"
        check_whole(out)
        assert users_files(out) == before
        print(f"killed at {name}, in {(folder / 'step').read_text()}", flush=True)
    assert ended(forked(lambda: run(recipe, out, folder / "step"))) == 0
    assert users_files(out) == before
    assert not (odd := differences(out, whole)), odd
    print("equal to a run that was never killed")


def at_random(
    recipe: Path, folder: Path, whole: Path, seconds: float, kills: int, seed: int
) -> tuple[list[str], Counter[str]]:
    """A fresh folder for every moment; a table of where it fell, and how often each outcome came."""
    draw, fell, total, bad = random.Random(seed), Counter[str](), Counter[str](), []
    for number in range(kills):
        out, words = folder / f"kill{number}", folder / "step"
        _start(out)
        words.write_text("start")
        before = users_files(out)
        process = forked(lambda out=out, words=words: run(recipe, out, words))
        time.sleep(draw.uniform(0, seconds))
        os.kill(process, signal.SIGKILL)
        fell[words.read_text() if ended(process) else "end"] += 1
        check_whole(out)
        touched = users_files(out) != before
        code = ended(forked(lambda out=out, words=words: run(recipe, out, words)))
        odd = differences(out, whole) if code == 0 else [f"exit code {code}"]
        outcome = foreign.TOUCHED if touched or users_files(out) != before else OTHERWISE if odd else EQUAL
        total[outcome] += 1
        bad += [f"- kill {number}: {outcome}: {', '.join(odd)}"] if outcome != EQUAL else []
        shutil.rmtree(out)
        if number % 10 == 9:
            print(f"kills: {number + 1} of {kills}, {len(bad)} bad", flush=True)
    lines = ["| killed in | times |", "|---|---|", *(f"| {name} | {count} |" for name, count in fell.items())]
    return [*lines, "", *bad], total


def users_files(out: Path) -> dict[str, tuple[bytes | str, int]]:
    """Content and time of the user's files in a run directory and outside."""
    planted = {str(out / name) for name in (*foreign.BESIDE, "elsewhere")}
    found = foreign.trace(out, out.parent / "outside")
    return {path: each for path, each in found.items() if path in planted or "outside" in path}


def measure(folder: Path, kills: int, seed: int) -> tuple[list[str], Counter[str]]:
    """Kills at moments drawn evenly over the length of a run, each in a fresh folder, and runs again there once.

    Returns:
        The lines of a table, and how often each outcome came.
    """
    recipe, whole = prepared(folder)
    start = time.monotonic()
    _start(folder / "again")
    assert ended(forked(lambda: run(recipe, folder / "again", folder / "step"))) == 0
    seconds = time.monotonic() - start
    assert not (odd := differences(folder / "again", whole)), f"two runs differ without any kill: {odd}"
    table, total = at_random(recipe, folder, whole, seconds, kills, seed)
    return [f"A run takes {seconds:.1f} s here; moments are drawn evenly over that.", "", *table], total


def prepared(folder: Path) -> tuple[Path, Path]:
    """A recipe, and the directory of a run that was never killed, beside files of the user's."""
    recipe, whole = folder / "recipe.toml", folder / "whole"
    recipe.write_text(RECIPE)
    (folder / "outside").mkdir()
    _start(whole)
    assert ended(forked(lambda: run(recipe, whole, folder / "step"))) == 0
    return recipe, whole


def _start(out: Path) -> None:
    """A folder with files of the user's."""
    out.mkdir()
    foreign.plant(out, out.parent / "outside")


def steps(folder: Path) -> None:
    """Kills one folder's run before it puts a file of each step in its place, and runs again until it is whole."""
    at_each_step(folder, *prepared(folder))

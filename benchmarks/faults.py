"""Kills a run with SIGKILL again and again and compares what the same command then ends with.

    python -m benchmarks.faults [--kills 100] [--seed 0] [--output NOTE.md]
    python -m benchmarks.faults --steps

The recipe takes a few seconds and goes through every step: a small residual network on the digits that come with
scikit-learn. Each run is a fork of a process that has imported everything, so that every moment falls into the work.
`--kills` kills at moments drawn evenly over the length of a run, each in a fresh folder, and runs again there once;
`--steps` kills one folder's run before it puts a file of each step in its place, and runs again until it is whole.

After every kill all files that have their names must be whole, and in the end all must equal those of a run that was
never killed: byte for byte, except for what is measured in time (latencies in metrics.json, seconds in history.csv,
and with them the report, the model card, and the fingerprints of these files).
"""

import argparse
import csv
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import torch

from benchmarks.information.machine import header
from infoprune import pipeline, store
from infoprune.recipe import read
from infoprune.run_directory import OWN

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
    pipeline.run(read(recipe), out, Steps(last_words))


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
    for path in sorted(path for path in out.rglob("*") if path.is_file()):
        if OWN in path.parts and path.name not in ("manifest.json", "finetuned.epochs.safetensors"):
            continue  # on its way to its name
        if path.suffix == ".json":
            store.read_json(path)
        elif path.suffix == ".safetensors":
            store.read_tensors(path)
        elif path.suffix == ".onnx":
            onnx.checker.check_model(path)
        elif path.suffix == ".html":
            assert path.read_text().rstrip().endswith("</html>"), path


def content(path: Path) -> Any:
    """What has to be equal of a file."""
    if path.name == "manifest.json":  # the hashes of what is measured in time differ
        return {name: entry["of"] for name, entry in json.loads(path.read_text())["files"].items()}
    if path.name == "metrics.json":
        return _without(json.loads(path.read_text()), ("latency_ms",))
    if path.name == "history.csv":
        return [{key: value for key, value in row.items() if key != "seconds"} for row in csv.DictReader(path.open())]
    if path.name in ("report.json", "export.json"):
        return _without(json.loads(path.read_text()), ("metrics.json", "history.csv", "export/export.json"))
    return None if path.suffix in (".html", ".md") else path.read_bytes()


def _without(value: Any, keys: tuple[str, ...]) -> Any:
    if isinstance(value, dict):
        return {key: _without(inner, keys) for key, inner in value.items() if key not in keys}
    return value


def differences(out: Path, whole: Path) -> list[str]:
    """Names of files that only one of two folders has, or that differ."""
    found = [{path.relative_to(each) for path in each.rglob("*") if path.is_file()} for each in (out, whole)]
    odd = [str(path) for path in sorted(found[0] ^ found[1])]
    return odd + [str(path) for path in sorted(found[0] & found[1]) if content(out / path) != content(whole / path)]


def at_each_step(recipe: Path, folder: Path, whole: Path) -> None:
    """One folder, killed before a file of each step gets its name."""
    out = folder / "steps"
    for name in FILES:

        def act(name: str = name) -> None:
            deadly(name)
            run(recipe, out, folder / "step")

        code = ended(forked(act))
        assert code == -signal.SIGKILL, f"the process was to be killed at {name}, and ended with {code}"
        check_whole(out)
        print(f"killed at {name}, in {(folder / 'step').read_text()}", flush=True)
    assert ended(forked(lambda: run(recipe, out, folder / "step"))) == 0
    assert not (odd := differences(out, whole)), odd
    print("equal to a run that was never killed")


def at_random(recipe: Path, folder: Path, whole: Path, seconds: float, kills: int, seed: int) -> list[str]:
    """A fresh folder for every moment; a table of where it fell."""
    draw, fell, worse = random.Random(seed), Counter[str](), []
    for number in range(kills):
        out, words = folder / f"kill{number}", folder / "step"
        words.write_text("start")
        process = forked(lambda out=out, words=words: run(recipe, out, words))
        time.sleep(draw.uniform(0, seconds))
        os.kill(process, signal.SIGKILL)
        fell[words.read_text() if ended(process) else "end"] += 1
        check_whole(out) if out.exists() else None
        code = ended(forked(lambda out=out, words=words: run(recipe, out, words)))
        odd = differences(out, whole) if code == 0 else [f"exit code {code}"]
        worse += [f"{number}: {', '.join(odd)}"] if odd else []
        shutil.rmtree(out)
        if number % 10 == 9:
            print(f"{number + 1} of {kills}, {len(worse)} differ", flush=True)
    lines = ["| killed in | times |", "|---|---|", *(f"| {name} | {count} |" for name, count in fell.items())]
    return [*lines, "", f"{kills} kills, {len(worse)} of the reruns ended otherwise.", *worse]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", action="store_true")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        recipe, whole = folder / "recipe.toml", folder / "whole"
        recipe.write_text(RECIPE)
        assert ended(forked(lambda: run(recipe, whole, folder / "step"))) == 0
        if args.steps:
            at_each_step(recipe, folder, whole)
            return
        start = time.monotonic()
        assert ended(forked(lambda: run(recipe, folder / "again", folder / "step"))) == 0
        seconds = time.monotonic() - start
        assert not (odd := differences(folder / "again", whole)), f"two runs differ without any kill: {odd}"
        table = at_random(recipe, folder, whole, seconds, args.kills, args.seed)
    about = f"A run takes {seconds:.1f} s here; moments are drawn evenly over that."
    lines = ["# Killed runs", "", *header(f"python -m benchmarks.faults --kills {args.kills}"), "", about, "", *table]
    print("\n".join(lines))
    if args.output:
        args.output.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

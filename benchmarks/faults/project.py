"""A user's small project (model, data, loss, metric and analysis of their own), and the command line on it."""

import csv
import json
import logging
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from traceback import format_exception
from typing import Any

import numpy as np
import torch
from click.testing import CliRunner
from safetensors.torch import save_file

from infoprune import cli
from infoprune.config import registry
from infoprune.pipeline.run_directory import OWN

FILES = {
    "own_filters.py": """\
import torch

FIRST = 4


def activation(maps):
    return torch.relu(maps)
""",
    "own_nets.py": """\
import torch
from own_filters import FIRST, activation
from torch import nn


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(6, 5, 3, padding=1), nn.BatchNorm2d(5)
        self.conv2 = nn.Conv2d(5, 6, 3, padding=1)

    def forward(self, images):
        return images + self.conv2(torch.relu(self.norm1(self.conv1(images))))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Conv2d(1, FIRST, 3), nn.BatchNorm2d(FIRST)
        self.second, self.block = nn.Conv2d(FIRST, 6, 3), Block()
        self.head = nn.Linear(6, 3)

    def forward(self, images):
        maps = activation(self.second(torch.relu(self.norm(self.first(images)))))
        return self.head(torch.relu(self.block(maps)).mean((2, 3)))


def net():
    torch.manual_seed(1)
    return Net()
""",
    "own_data.py": """\
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, TensorDataset


def load():
    samples = np.load(Path(__file__).with_name("samples.npz"))
    images, labels = torch.from_numpy(samples["images"]), torch.from_numpy(samples["labels"])
    return {name: DataLoader(TensorDataset(images, labels)) for name in ("train", "validation", "test")}
""",
    "own_training.py": """\
from torch.nn.functional import cross_entropy


def loss(logits, labels):
    return cross_entropy(logits, labels)


def metric(logits, labels):
    return float((logits.argmax(1) == labels).float().mean())
""",
    "own_scores.py": """\
import torch
from torch import nn
from infoprune.analyses.base import Finding


class Means:
    observes = (nn.Conv2d,)
    needs_gradients = False
    needs_labels = False
    gives = ("importance",)

    def __init__(self):
        self.scores = {}

    def observe(self, view):
        mean = view.activations.detach().mean((0, 2, 3))
        self.scores[view.layer] = self.scores.get(view.layer, 0) + mean

    def conclude(self):
        return Finding("means", importance=self.scores)
""",
    "recipe.toml": """\
[run]
threads = 1
batch_size = 16
[model]
name = "own_nets:net"
weights = "weights.safetensors"
[data]
name = "own_data:load"
[calibration]
batches = 2
batch_size = 16
[analyses.l2]
[analyses."own_scores:Means"]
[plan]
rank_by = "l2"
macs = 0.7
[finetune]
epochs = 2
loss = "own_training:loss"
metric = "own_training:metric"
[train]
epochs = 1
[plane]
points = 2
[compare]
criteria = ["l2"]
shares = [0.7]
seeds = 1
controls = false
[evaluate]
latency_repeats = 1
latency_warmup = 0
[export]
formats = ["state_dict", "source"]
""",
}


@dataclass(frozen=True)
class Ending:
    """How a command ended.

    Attributes:
        code: its exit code; 1 also where it ended with a traceback.
        said: everything that it printed and logged, on one line.
        traceback: of an exception that came out of it; empty where none did.
    """

    code: int
    said: str
    traceback: str

    def ran(self, step: str) -> bool:
        """Whether a step said that it was done and not up to date."""
        return f"✓ {step} " in f"{self.said} " and f"✓ {step} (up to date)" not in self.said


class Project:
    """The files of a user, and commands on them in this process.

    Args:
        folder: where the files are written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.recipe = folder, folder / "recipe.toml"
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in FILES.items():
            (folder / name).write_text(text)
        draw = np.random.default_rng(2)
        self.save_samples(draw.random((96, 1, 8, 8), dtype=np.float32), np.arange(96) % 3)
        with self._alone():
            sys.path.insert(0, str(folder))
            save_file(registry.users_own("own_nets:net")().state_dict(), folder / "weights.safetensors")

    def save_samples(self, images: Any, labels: Any) -> None:
        """The data: images `samples x 1 x 8 x 8` and labels 0..2."""
        np.savez(self.folder / "samples.npz", images=images, labels=labels)

    def samples(self) -> tuple[Any, Any]:
        """Images and labels."""
        found = np.load(self.folder / "samples.npz")
        return found["images"], found["labels"]

    def call(self, command: str, out: Path | str, *arguments: str, sets: tuple[str, ...] = ()) -> Ending:
        """A command of infoprune on the recipe, as in a process of its own."""
        given = [command, str(self.recipe), "--out", str(out), *arguments]
        given += [part for each in sets for part in ("--set", each)]
        threads, heard = torch.get_num_threads(), _Heard()
        logger = logging.getLogger("infoprune")
        handlers, level = logger.handlers[:], logger.level
        logger.addHandler(heard)
        try:
            with self._alone():
                result = CliRunner().invoke(cli.main, given, env={"COLUMNS": "1000"})
        finally:
            logger.handlers, logger.level = handlers, level
            torch.set_num_threads(threads)
        said = " ".join([*result.output.split(), *heard.messages])
        escaped = result.exc_info is not None and not isinstance(result.exception, SystemExit | None)
        return Ending(result.exit_code, said, "".join(format_exception(*result.exc_info)) if escaped else "")

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Forgets the modules of the user's code afterwards, as the end of a process does."""
        modules, path, folders = set(sys.modules), sys.path[:], registry.folders()
        sys.dont_write_bytecode, bytecode = True, sys.dont_write_bytecode  # it would outlive edits within a second
        try:
            yield
        finally:
            for name in set(sys.modules) - modules:
                if str(self.folder) in str(getattr(sys.modules[name], "__file__", "")):
                    del sys.modules[name]
            sys.path[:] = path
            sys.dont_write_bytecode = bytecode
            registry._FOLDERS[:] = folders[1:]


class _Heard(logging.Handler):
    """Keeps what is logged, whether or not a terminal shows it."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


def content(path: Path) -> Any:
    """What has to be equal of a file: all but what is measured in time, and fingerprints of files that hold such.

    Of a page that shows such figures, all but its figures and the lines with latencies; of timings.json, its entries.
    """
    if path.name == "manifest.json":  # the hashes of what is measured in time differ
        return {name: entry["of"] for name, entry in json.loads(path.read_text())["files"].items()}
    if path.suffix == ".csv":
        with path.open(newline="") as file:
            return [_without(row, TIMES) for row in csv.DictReader(file)]
    if path.name in MEASURED:
        return _without(json.loads(path.read_text()), (*TIMES, *MEASURED))
    if path.name == "timings.json":
        return sorted(json.loads(path.read_text()))
    if path.suffix in (".html", ".md"):
        lines = path.read_text(encoding="utf-8").splitlines()
        return [re.sub(r"[\d.]+", "", line) for line in lines if not LATENCY.search(line)]
    return path.read_bytes()


TIMES = ("latency_ms", "seconds")
LATENCY = re.compile(r" ms\b|forward pass")
MEASURED = ("metrics.json", "history.csv", "export/export.json", "export.json", "report.json", "compare.json")


def _without(value: Any, keys: tuple[str, ...]) -> Any:
    if isinstance(value, dict):
        return {key: _without(inner, keys) for key, inner in value.items() if key not in keys}
    return [_without(each, keys) for each in value] if isinstance(value, list) else value


def differences(out: Path, whole: Path) -> list[str]:
    """Names of files that only one of two run directories has, or that differ; changed ones put aside do not count."""
    found = [{path.relative_to(each) for path in each.rglob("*") if path.is_file()} for each in (out, whole)]
    mine, other = ({path for path in each if path.parts[:2] != (OWN, "changed")} for each in found)
    odd = [str(path) for path in sorted(mine ^ other)]
    return odd + [str(path) for path in sorted(mine & other) if content(out / path) != content(whole / path)]

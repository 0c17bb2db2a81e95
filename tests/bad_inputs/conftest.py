"""A small job of a user's own, the command line in this process, and the judge of how a case may end."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

NETS = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.first, self.norm = nn.Conv2d(1, width, 3), nn.BatchNorm2d(width)
        self.second, self.head = nn.Conv2d(width, 6, 3), nn.Linear(6, 3)

    def forward(self, images):
        maps = torch.relu(self.second(torch.relu(self.norm(self.first(images)))))
        return self.head(maps.mean((2, 3)))


def net(width=4):
    torch.manual_seed(1)
    return Net(width)
"""
DATA = """
import torch
from torch.utils.data import TensorDataset
from infoprune.data.dataset import Data


def load(count=16):
    draw = torch.Generator().manual_seed(2)
    def split():
        return TensorDataset(torch.rand(count, 1, 8, 8, generator=draw), torch.arange(count) % 3)
    return Data("small", split(), split(), split(), 3, torch.Tensor.float, "fixed")
"""
RECIPE = """
[run]
threads = 1
batch_size = 8
[model]
name = "{folder}/nets.py:net"
weights = "{folder}/weights.safetensors"
[data]
name = "{folder}/data.py:load"
[calibration]
batches = 2
batch_size = 8
[plan]
rank_by = "l2"
macs = 0.7
allocation = "uniform"
[finetune]
epochs = 1
[train]
epochs = 1
[evaluate]
latency_repeats = 1
latency_warmup = 0
[export]
formats = ["state_dict"]
"""


@dataclass
class Ending:
    """How a command ended: its exit code, and all that it said, on one line."""

    code: int
    said: str


class Workshop:
    """A folder with a user's model, data, weights and recipe, and the command line on them.

    Attributes:
        folder: of the inputs, none of which a command may change.
        out: the run directory.
    """

    def __init__(self, folder: Path, out: Path) -> None:
        self.folder, self.out, self.recipe = folder, out, folder / "recipe.toml"
        for name, text in (("nets.py", NETS), ("data.py", DATA), ("recipe.toml", RECIPE.format(folder=folder))):
            (folder / name).write_text(text)
        from infoprune.config import registry
        from infoprune.io import storage

        self.weights = folder / "weights.safetensors"
        storage.write_tensors(self.weights, registry.find("models", f"{folder}/nets.py:net")().state_dict(), {})

    def call(self, *arguments: str | Path, sets: tuple[str, ...] | list[str] = ()) -> Ending:
        """Runs a command; fails the test where it ends as no command may.

        That is: with a traceback or a warning, with an exit code other than 0 and 2, with no message or several, or
        with an input changed.
        """
        from infoprune import cli

        parts = [str(argument) for argument in arguments] + [part for each in sets for part in ("--set", each)]
        before = self._inputs()
        result = CliRunner().invoke(cli.main, parts)
        said = " ".join(result.output.split())
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise AssertionError(f"{parts} ended with a traceback") from result.exception
        assert result.exit_code in (0, 2), f"{parts} ended with {result.exit_code}: {said}"
        assert self._inputs() == before, f"{parts} changed an input"
        messages = sum(line.lower().startswith("error: ") for line in result.output.splitlines())
        assert messages == (result.exit_code == 2), f"{parts} gave {messages} messages: {said}"
        assert "Traceback" not in said
        return Ending(result.exit_code, said)

    def step(self, step: str, *sets: str, recipe: Path | None = None) -> Ending:
        """One step, with all before it, on the recipe here or another one."""
        return self.call(step, recipe or self.recipe, "--out", self.out, "-q", sets=sets)

    def refuses(self, step: str, *sets: str, recipe: Path | None = None) -> str:
        """The message with which a step ends."""
        ending = self.step(step, *sets, recipe=recipe)
        assert ending.code == 2, f"{step} {sets} was done: {ending.said}"
        return ending.said

    def _inputs(self) -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in self.folder.rglob("*") if path.is_file() and path.suffix != ".pyc"}


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workshop]:
    """One for all cases of a file: what they share is up to date after the first."""
    threads = torch.get_num_threads()
    yield Workshop(tmp_path_factory.mktemp("inputs"), tmp_path_factory.mktemp("runs") / "run")
    torch.set_num_threads(threads)

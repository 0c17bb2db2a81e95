"""Code of a user's own that calls `exit`: one message that names the place, whatever it wanted to end with."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from infoprune import cli
from infoprune.cli.display import failures
from infoprune.config import registry
from infoprune.data.dataset import Batches
from infoprune.errors import UserError
from infoprune.evaluation.metrics import ModelReference
from infoprune.io import checkpoint

CODE = """
import sys
import torch
from torch import nn
from torch.nn import functional as F
from infoprune.data.dataset import Data


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.head = nn.Conv2d(1, 4, 3), nn.Linear(4, 3)

    def forward(self, images):
        maps = torch.relu(self.first(images)).mean((2, 3))  # forward
        return self.head(maps)


def net():
    torch.manual_seed(1)  # build
    return Net()


class Images(torch.utils.data.Dataset):
    def __len__(self):
        return 16

    def __getitem__(self, place):
        draw = torch.Generator().manual_seed(place)  # sample
        return torch.rand(1, 8, 8, generator=draw), place % 3


def load(workers=0):
    workers = workers  # load
    return Data("small", Images(), Images(), Images(), 3, torch.Tensor.float, "fixed", workers=workers)


def loss(logits, labels):
    labels = labels  # loss
    return F.cross_entropy(logits, labels)


def metric(logits, labels):
    labels = labels  # metric
    return float((logits.argmax(1) == labels).float().mean())


class Own:
    observes = (nn.Conv2d,)
    needs_gradients = needs_labels = False

    def __init__(self, *, option: int = 1):
        self.option = option  # analysis

    def observe(self, observed):
        self.option = 2  # observe

    def conclude(self):
        self.option = 3  # conclude
"""
RECIPE = """
[run]
threads = 1
batch_size = 8
[model]
name = "own.py:net"
[data]
name = "own.py:load"
[calibration]
batches = 2
batch_size = 8
[plan]
rank_by = "l2"
macs = 0.7
allocation = "uniform"
[finetune]
epochs = 1
loss = "own.py:loss"
metric = "own.py:metric"
"""
CALLS = {
    "sys.exit()": "SystemExit",
    "sys.exit(0)": "SystemExit: 0",
    "sys.exit('all is said')": "SystemExit: all is said",
    "raise SystemExit(1)": "SystemExit: 1",
    "exit(5)": "SystemExit: 5",
    "__import__('argparse').ArgumentParser().parse_args(['--no-such'])": "SystemExit: 2",
}
ANALYSIS = '[analyses."own.py:Own"]\noption = 2\n'


def run(folder: Path, place: str, call: str, more: str = "", *sets: str) -> tuple[int, str, int]:
    """Runs with a call of `exit` where the code says `# place`; the exit code, what was said, and the line.

    Args:
        folder: for the code, the recipe and the run.
        place: "import" for the first line.
        call: a statement that ends the process.
        more: what else the recipe says.
        sets: overrides of it.
    """
    lines = CODE.replace(f"# {place}\n", f"\n# {place}\n").splitlines()
    at = next((number for number, line in enumerate(lines) if line == f"# {place}"), 0)
    indent = " " * (len(lines[at - 1]) - len(lines[at - 1].lstrip())) if at else ""
    lines[at] = f"{indent}{call}"
    (folder / "own.py").write_text("import sys\n" * (not at) + "\n".join(lines) + "\n")
    (folder / "recipe.toml").write_text(RECIPE + more)
    parts = [part for each in sets for part in ("--set", each)]
    command = ["finetune", str(folder / "recipe.toml"), "--out", str(folder / "run"), "-q", *parts]
    result = CliRunner().invoke(cli.main, command)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
    return result.exit_code, " ".join(result.output.split()), at + 1 + (not at)


@pytest.mark.parametrize(
    ("place", "sets"),
    [
        ("import", []),
        ("build", []),
        ("forward", []),
        ("load", []),
        ("sample", []),
        ("sample", ["data.workers=2"]),
        ("loss", []),
        ("metric", []),
    ],
    ids=str,
)
def test_exits_are_told(tmp_path: Path, place: str, sets: list[str]) -> None:
    code, said, line = run(tmp_path, place, "sys.exit(3)", "", *sets)
    assert code == 2, said
    assert said.count("error: ") == 1, said
    assert f"SystemExit: 3 (own.py, line {line})" in said


@pytest.mark.parametrize("place", ["analysis", "observe", "conclude"])
def test_exits_of_an_analysis_are_told(tmp_path: Path, place: str) -> None:
    code, said, line = run(tmp_path, place, "sys.exit(3)", ANALYSIS)
    assert code == 2, said
    assert said.count("error: ") == 1, said
    assert f"SystemExit: 3 (own.py, line {line})" in said


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("place", ["build", "forward"])
def test_whatever_the_exit_code(tmp_path: Path, place: str, call: str) -> None:
    code, said, line = run(tmp_path, place, call)
    assert code == 2, said
    assert f"{CALLS[call]} (own.py, line {line})" in said


def test_in_python_too(tmp_path: Path) -> None:
    (tmp_path / "leaves.py").write_text("raise SystemExit(0)\n")
    (tmp_path / "own.py").write_text("def net():\n    raise SystemExit('no')\n")
    with pytest.raises(UserError, match=r"importing .* fails: SystemExit: 0 \(leaves.py, line 1\)"):
        registry.find("models", f"{tmp_path}/leaves.py:net")
    with pytest.raises(UserError, match=r"SystemExit: no \(own.py, line 2\)"):
        checkpoint.build(ModelReference(f"{tmp_path}/own.py:net"))
    with pytest.raises(UserError, match="SystemExit"):
        checkpoint.load_data(f"{tmp_path}/own.py:net")


class Leaving:
    """A data set that ends the process at its fourth sample."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, place: int) -> Any:
        if place == 3:
            raise SystemExit(7)
        return 0.0, place


@pytest.mark.parametrize("workers", [0, 1])
def test_batches_tell_of_it(workers: int) -> None:
    batches = Batches(Leaving(), batch_size=2, workers=workers)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"ended the process by SystemExit: 7 \(test_exits.py, line \d+\)"):
        list(batches)


@pytest.mark.parametrize("passing", [KeyboardInterrupt, GeneratorExit, lambda: click.exceptions.Exit(0)])
def test_what_passes(passing: Callable[[], BaseException]) -> None:
    raised = passing()
    with pytest.raises(type(raised)), failures({}):
        raise raised


class Own(BaseException):
    """What `except Exception` does not catch."""


def test_exceptions_of_ones_own_kind_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended, failures({}):
        raise Own("stop here")
    assert ended.value.code == 1
    said = capsys.readouterr().err
    assert said.startswith("error: code of your own raised Own: stop here (test_exits.py, line ")
    assert "raise a subclass of Exception instead" in said


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["run", "--help"], ["completion", "bash"]])
def test_commands_that_end_early_end_well(arguments: list[str]) -> None:
    assert CliRunner().invoke(cli.main, arguments).exit_code == 0

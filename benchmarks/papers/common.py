"""What the commands for the papers' figures share: small trainings, calibration batches, notes with a picture."""

import argparse
import copy
import dataclasses
import io
import os
import re
import time
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Subset, TensorDataset

from benchmarks.information.machine import header
from infoprune.analyses.base import Finding
from infoprune.analyses.runner import analyze
from infoprune.data.dataset import Batches, Data
from infoprune.evaluation.accuracy import evaluate
from infoprune.io.checkpoint import load_data
from infoprune.models import alexnet, lenet
from infoprune.training.finetune import finetune

RESULTS = Path(__file__).parent.parent / "results" / "papers"
SEVERAL = ("mnist", "fashion_mnist", "fruits360")
"""Data sets of "Understanding CNNs…" that are at hand; HASYv2 is not."""
FAMILIES = {"mnist": lenet.build, "fashion_mnist": lenet.build, "fruits360": alexnet.build}
BATCH = 128
"""Samples per mini-batch, as in the papers."""
Pair = tuple[Tensor, Tensor]
Stages = dict[str, nn.Module]
"""A network at several moments of its training."""


class Report:
    """One command: its options, its clock, and the note and picture that it writes.

    Args:
        doc: the module's docstring; its first line is the note's title.
        name: of the module and of what it writes.
        seeds: how many by default; 0 where nothing depends on them.
        options: further options with their defaults.
    """

    def __init__(self, doc: str, name: str, *, seeds: int = 3, **options: Any) -> None:
        parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
        if seeds:
            options = {"seeds": seeds, **options}
        parser.add_argument("--output", type=Path, help="folder of the note and the picture; printed only if not given")
        for option, default in options.items():
            kind = {"nargs": "+", "type": type(default[0])} if isinstance(default, list) else {"type": type(default)}
            parser.add_argument(f"--{option.replace('_', '-')}", default=default, **kind)
        parser.add_argument("--name", default=name, help="of the note and the picture")
        self.options = parser.parse_args()
        self.name = self.options.name
        torch.set_num_threads(1)
        given = []
        for option in options:
            value = getattr(self.options, option)
            given.append(
                f"--{option.replace('_', '-')} {' '.join(map(str, value)) if isinstance(value, list) else value}"
            )
        given += [f"--name {self.name}"] if self.name != name else []
        command = f"INFOPRUNE_DATA=DATA python -m benchmarks.papers.{name} {' '.join(given)}"
        self._began = time.process_time()
        self._lines = [f"# {doc.splitlines()[0].rstrip('.')}", "", *header(command)]

    @property
    def seeds(self) -> range:
        """Seeds of initialisation, order of the images and mini-batches."""
        return range(self.options.seeds)

    def say(self, *lines: str) -> None:
        """Adds to the note, and shows it at once."""
        print(*lines, sep="\n", flush=True)
        self._lines += lines

    def table(self, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        """A table, shown row by row as it comes about."""
        self.say("", "| " + " | ".join(columns) + " |", "|" + "---|" * len(columns))
        for row in rows:
            self.say("| " + " | ".join(row) + " |")
        self.say("")

    def close(self, figure: Any = None) -> None:
        """Writes the note and the picture; what stands below the line "## Reading" in an older note is kept."""
        self.say(f"Processor time: {(time.process_time() - self._began) / 60:.1f} minutes, one thread.")
        folder = self.options.output
        if folder is None:
            return
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.name}.md"
        if figure is not None:
            drawn = io.StringIO()
            figure.savefig(drawn, format="svg", metadata={"Date": None})
            (folder / f"{self.name}.svg").write_text(slim(drawn.getvalue()), encoding="utf-8")
            self._lines += ["", f"![{self._lines[0].removeprefix('# ')}]({self.name}.svg)"]
        old = path.read_text(encoding="utf-8") if path.exists() else ""
        reading = old[old.index("\n## Reading") :] if "\n## Reading" in old else ""
        path.write_text("\n".join(self._lines).rstrip() + "\n" + reading, encoding="utf-8")


def slim(svg: str) -> str:
    """A smaller file of the same picture: matplotlib gives each point its own clipping, outline and six decimals."""
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r"\n\s+", "\n", re.sub(r"(\d\.\d\d)\d+", r"\1", svg))
    svg = re.sub(r'style="(fill: (#\w{6})); stroke: \2"', r'style="\1"', svg)
    return re.sub(r"<g clip-path=[^>]*>\n(<use [^>]*/>)\n</g>", r"\1", svg)


def panels(rows: int, columns: int, **options: Any) -> tuple[Any, Any]:
    """A figure and its panels, `rows x columns`, in the notes' style."""
    import matplotlib as mpl

    mpl.use("svg")
    import matplotlib.pyplot as plt

    mpl.rcParams |= {"svg.hashsalt": "infoprune", "svg.fonttype": "none", "font.size": 8, "axes.grid": True}
    mpl.rcParams |= {"grid.alpha": 0.3, "legend.fontsize": 7}
    return plt.subplots(rows, columns, layout="constrained", squeeze=False, **options)


def load(name: str) -> Data:
    """A data set whose images reach the network as pixels 0..1.

    With standardised pixels the paper's kernel saturates on the images alone (6.997 bits of log2 128 = 7 on MNIST); on
    0..1 it does not (6.18 there). So that is what its figures must have been made with.
    """
    return dataclasses.replace(load_data(name), prepare=lambda images: images.float() / 255)


def training_batches(data: Data, images: int, seed: int) -> Batches:
    """The first `images` of the training split, which is in random order, shuffled again each epoch."""
    train = data.train
    fewer = (
        TensorDataset(*(tensor[:images] for tensor in train.tensors))
        if isinstance(train, TensorDataset)
        else (Subset(train, range(images)))
    )
    return Batches(fewer, batch_size=BATCH, prepare=data.prepare, augment=data.augment, seed=seed)


def calibration(data: Data, count: int, seed: int = 0, split: str = "validation") -> list[Pair]:
    """Mini-batches of images that were not trained on, in an order that the seed draws."""
    return list(islice(data.batches(split, batch_size=BATCH, seed=seed), count))  # type: ignore[arg-type]


def stages(
    build: Callable[[], nn.Module],
    data: Data,
    *,
    images: int,
    epochs: int,
    learning_rate: float,
    seed: int = 0,
) -> Stages:
    """A network at initialisation, after one epoch and at the end of its training."""
    torch.manual_seed(seed)
    model = build()
    batches = training_batches(data, images, seed)
    found: Stages = {"initial": copy.deepcopy(model).eval()}

    def keep(step: int, _: int) -> None:
        if step == len(batches):
            found["one epoch"] = copy.deepcopy(model).eval()

    # The paper's momentum; its constant rate is replaced by a rise and a cosine, as everywhere here.
    options = {"learning_rate": learning_rate, "momentum": 0.95, "weight_decay": 0.0}
    finetune(model, batches, on_step=keep, epochs=epochs, seed=seed, **options)  # type: ignore[arg-type]
    found["end"] = model.eval()
    return found


def found_in(model: nn.Module, batches: Sequence[Pair], layers: Sequence[str], *analyses: Any) -> list[Finding]:
    """What analyses find in named layers, activations too: the papers' T is what a layer hands on."""
    for analysis in analyses:
        analysis.observes = (nn.Conv2d, nn.Linear, nn.ReLU, nn.Sigmoid, nn.Tanh)
    return analyze(model, batches, list(analyses), layers=layers)


def accuracy(model: nn.Module, data: Data) -> float:
    """Per cent right of the test split."""
    return 100 * evaluate(model, data.batches("test", batch_size=500)).accuracy


def mean_and_spread(values: Sequence[float], digits: int = 2) -> str:
    """Mean and standard deviation over seeds, for a table."""
    found = torch.tensor(values, dtype=torch.float64)
    spread = f" ± {found.std():.{digits}f}" if len(values) > 1 else ""
    return f"{found.mean():.{digits}f}{spread}"


def data_folder() -> Path:
    """The folder of data and weights."""
    return Path(os.environ["INFOPRUNE_DATA"])

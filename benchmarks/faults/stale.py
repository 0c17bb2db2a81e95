"""Changes what a run depends on under the same name, and looks whether the same command notices."""

import shutil
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import numpy as np
from PIL import Image

from benchmarks.faults.project import Ending, Project, differences
from infoprune.pipeline import artifacts
from infoprune.pipeline.run import COMMANDS as STEPS

NOTICED, ACCEPTED, UNNAMED, NEEDLESS, TRACEBACK = (
    "noticed",
    "stale accepted",
    "not named",
    "needlessly made",
    "traceback",
)
BAD = (ACCEPTED, UNNAMED, NEEDLESS, TRACEBACK)


@dataclass(frozen=True)
class Change:
    """Something that changes under the same name.

    Attributes:
        act: changes it.
        named: what `-v` has to call it; empty where nothing depends on it.
        first: the first step that depends on it; those before it stay up to date.
        prepare: what is done to the project before the first run.
        meanwhile: a context of the second run.
    """

    act: Callable[[Project], object]
    named: str
    first: str
    prepare: Callable[[Project], object] = lambda project: None
    meanwhile: Callable[[], AbstractContextManager[object]] = nullcontext


def _edit(name: str, old: str, new: str) -> Callable[[Project], object]:
    def act(project: Project) -> None:
        path = project.folder / name
        text = path.read_text()
        if old not in text:
            raise ValueError(f"{name} lacks {old}")
        path.write_text(text.replace(old, new, 1))

    return act


def _labels(project: Project) -> None:
    images, labels = project.samples()
    labels[[7, 23, 40, 61, 90]] = (labels[[7, 23, 40, 61, 90]] + 1) % 3
    project.save_samples(images, labels)


def _images(project: Project) -> None:
    """All but 16, those at which one would look for a quick impression of the whole."""
    images, labels = project.samples()
    few = np.linspace(0, len(images) - 1, 16).round().astype(int)
    others = np.random.default_rng(9).random(images.shape, dtype=np.float32)
    others[few] = images[few]
    project.save_samples(others, labels)


_no_weights = _edit("recipe.toml", 'weights = "weights.safetensors"\n', "")


def _seeded_by_a_file(project: Project) -> None:
    """Initial weights by a seed of numpy that no code tells."""
    _no_weights(project)
    (project.folder / "seed.txt").write_text("1")
    code = (
        "    seed = int(Path(__file__).with_name('seed.txt').read_text())\n"
        "    made = Net()\n"
        "    draw = np.random.default_rng(seed).normal(size=tuple(made.first.weight.shape))\n"
        "    made.first.weight.data.copy_(torch.from_numpy(draw))\n"
        "    return made\n"
    )
    _edit("own_nets.py", "    return Net()\n", code)(project)
    _edit("own_nets.py", "import torch\n", "from pathlib import Path\n\nimport numpy as np\nimport torch\n")(project)


def _image_folder(project: Project) -> None:
    """The samples as image files instead."""
    images, labels = project.samples()
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        for split in ("train", "test"):
            path = project.folder / "images" / split / str(label) / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray((255 * image[0]).astype(np.uint8)).convert("RGB").save(path)
    options = f'name = "image_folder"\nroot = "{project.folder}/images"\nsize = 8\nworkers = 0\n'
    _edit("recipe.toml", 'name = "own_data:load"\n', options)(project)
    _edit("recipe.toml", 'weights = "weights.safetensors"\n', "")(project)
    _edit("own_nets.py", "nn.Conv2d(1, FIRST, 3)", "nn.Conv2d(3, FIRST, 3)")(project)


def _other_image(project: Project) -> None:
    Image.new("RGB", (8, 8), (200, 10, 90)).save(project.folder / "images" / "train" / "0" / "3.png")


def _other_torch() -> AbstractContextManager[object]:
    found = {**artifacts.versions(), "torch": "2.99.0"}
    return patch.object(artifacts, "versions", lambda: found)


CHANGES: dict[str, Change] = {
    "the forward pass of an own model": Change(
        _edit("own_nets.py", "activation(self.second(", "torch.sigmoid(self.second("),
        "origin.code.own_nets",
        "analyze",
    ),
    "how an own model is built": Change(
        _edit("own_nets.py", "nn.BatchNorm2d(FIRST)", "nn.BatchNorm2d(FIRST, eps=0.1)"),
        "origin.code.own_nets",
        "analyze",
    ),
    "a module that an own model imports": Change(
        _edit("own_filters.py", "torch.relu(maps)", "torch.tanh(maps)"), "own_filters.py", "analyze"
    ),
    "an own data function": Change(
        _edit("own_data.py", 'samples["images"])', 'samples["images"] / 2)'), "origin.code.own_data", "analyze"
    ),
    "an own loss": Change(
        _edit("own_training.py", "cross_entropy(logits, labels)", "2 * cross_entropy(logits, labels)"),
        "code.own_training:loss",
        "finetune",
    ),
    "an own metric": Change(
        _edit("own_training.py", ".float().mean())", ".float().sum())"), "code.own_training:metric", "finetune"
    ),
    "an own analysis": Change(
        _edit("own_scores.py", ".mean((0, 2, 3))", ".amax((0, 2, 3))"), "code.own_scores", "analyze"
    ),
    "initial weights, by the code": Change(
        _edit("own_nets.py", "manual_seed(1)", "manual_seed(2)"), "origin.weights", "analyze", _no_weights
    ),
    "initial weights, by a seed in a file": Change(
        lambda project: (project.folder / "seed.txt").write_text("2"), "origin.weights", "analyze", _seeded_by_a_file
    ),
    "an image under the same name": Change(_other_image, "origin.data.train", "analyze", _image_folder),
    "5 of 96 labels": Change(_labels, "origin.data.train.labels", "analyze"),
    "all images but 16": Change(_images, "origin.data.train", "analyze"),
    "another version of torch": Change(lambda project: None, "versions.torch", "analyze", meanwhile=_other_torch),
    "a comment in a file that nothing imports": Change(
        lambda project: (project.folder / "unused.py").write_text("# a comment\n"), "", ""
    ),
    "the times of all files": Change(
        lambda project: [path.touch() for path in project.folder.glob("own_*.py")], "", ""
    ),
}


def outcome(name: str, folder: Path, command: str = "report") -> tuple[str, Ending]:
    """Runs, changes, runs again, and judges; a run of the changed project in another directory says what is right.

    Args:
        name: of an entry of `CHANGES`.
        folder: for the project and its run directories; left as it was.
        command: to give each time.
    """
    change, project = CHANGES[name], Project(folder / "project")
    try:
        change.prepare(project)
        out, fresh = folder / "out", folder / "fresh"
        first = project.call(command, out)
        if first.code or first.traceback:
            raise RuntimeError(first.traceback or first.said)
        change.act(project)
        with change.meanwhile():
            ending = project.call(command, out, "-v")
            project.call(command, fresh)
        return _judge(change, ending, differences(out, fresh)), ending
    finally:
        for path in ("project", "out", "fresh"):
            shutil.rmtree(folder / path, ignore_errors=True)


def _judge(change: Change, ending: Ending, odd: list[str]) -> str:
    if ending.traceback or ending.code:
        return TRACEBACK
    before = STEPS.index(change.first) if change.first else len(STEPS)
    if any(ending.ran(step) for step in STEPS[:before]):
        return NEEDLESS
    if odd or (change.first and not ending.ran(change.first)):
        return ACCEPTED
    changed = ending.said.partition("is made again; changed: ")[2]
    return NOTICED if change.named in changed else UNNAMED


def measure(folder: Path) -> tuple[list[str], Counter[str]]:
    """All changes: the lines of a table, and how often each outcome came."""
    lines, bad, total = (
        ["| what changed | outcome | made again from | named |", "|---|---|---|---|"],
        [],
        Counter[str](),
    )
    for name, change in CHANGES.items():
        found, ending = outcome(name, folder)
        said = next((step for step in STEPS if ending.ran(step)), "nothing")
        lines.append(f"| {name} | {found} | {said} | {change.named} |")
        bad += [f"- {name}: {found}: {ending.said[-300:]}"] if found in BAD else []
        total[found] += 1
    print(f"stale: {total.total()} cases", flush=True)
    return [*lines, "", *bad], total

"""Puts files of the user's into the folder given as --out, and looks whether any command touches them."""

import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.faults.project import Ending, Project
from infoprune.pipeline.run_directory import OWN

COMMANDS = ("inspect", "widths", "depth", "analyze", "plan", "prune", "repair", "finetune", "evaluate", "export")
COMMANDS += ("report", "run", "train", "compare")
# Names that no run needs, some of them like those of temporary files.
BESIDE = (
    ".vimrc.original",
    ".env.bak_prod",
    ".bashrc.20240101",
    ".config.settings",
    ".plan.json.abcd1234.json",
    ".export-keys/id_rsa",
    ".report-archive/2024.txt",
    "sub/.env.original",
    "probe",
    "notes.txt",
    "user.txt",
)
# Names that a run needs.
CLASHES = ("report.html", "history.csv", "report.json", "plan.json", "export/MODEL_CARD.md", "export/model.safetensors")
CLASHES += ("finetuned-best.safetensors",)
LINKED = ("export", "findings")  # as links to folders elsewhere
UNTOUCHED, TOUCHED, TRACEBACK, OTHERWISE = "as specified", "user's file touched", "traceback", "otherwise"
BAD = (TOUCHED, TRACEBACK, OTHERWISE)


@dataclass(frozen=True)
class Case:
    """One command in a folder that holds files of the user's.

    Attributes:
        command: of the command line.
        clash: the file or linked folder whose name a run needs; empty where there is none.
        force: whether --force is given.
        later: whether the files came after the folder had become a run directory.
    """

    command: str
    clash: str
    force: bool
    later: bool

    @property
    def refused(self) -> bool:
        """Whether the command has to be refused."""
        return bool(self.clash) or not (self.force or self.later)

    def __str__(self) -> str:
        words = [self.command, self.clash, "--force" * self.force, "later" * self.later]
        return " ".join(word for word in words if word)


def cases(commands: tuple[str, ...] = COMMANDS) -> Iterator[Case]:
    """All of them."""
    for command in commands:
        for clash in ("", *CLASHES, *LINKED):
            for force in (False, True):
                yield from (Case(command, clash, force, later) for later in (False, True))


def plant(out: Path, outside: Path) -> None:
    """Files that no run needs the names of, and a link that leads to more of them elsewhere."""
    for folder in (out, outside):
        for name in BESIDE:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(f"mine: {name}")
    (out / "elsewhere").symlink_to(outside.resolve())


def _plant_clash(out: Path, outside: Path, name: str) -> None:
    place = out / name
    if name not in LINKED:
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text("mine")
        return
    target = outside / name
    if place.exists():
        shutil.move(place, target)
    target.mkdir(exist_ok=True)
    for each in ("l2.json", "model.safetensors", "MODEL_CARD.md"):
        if not (target / each).exists():
            (target / each).write_text("mine")
    place.symlink_to(target.resolve())


def trace(*folders: Path) -> dict[str, tuple[bytes | str, int]]:
    """Content, or target of a link, and time of change, of everything outside of the folder that is infoprune's."""
    found: dict[str, tuple[bytes | str, int]] = {}
    for path in (path for folder in folders for path in folder.rglob("*") if OWN not in path.parts):
        if path.is_symlink() or path.is_file():
            content = os.readlink(path) if path.is_symlink() else path.read_bytes()
            found[str(path)] = content, path.lstat().st_mtime_ns
    return found


class Table:
    """All cases of one project.

    Args:
        project: the user's files.
        folder: for run directories.
    """

    def __init__(self, project: Project, folder: Path) -> None:
        self.project, self.folder = project, folder / "foreign"
        self.analysed = self.folder / "analysed"
        if (ending := project.call("analyze", self.analysed)).code:
            raise RuntimeError(ending.said)

    def outcome(self, case: Case) -> tuple[str, Ending]:
        """Plants the files, gives the command, and judges."""
        out, outside = self.folder / "out", self.folder / "outside"
        if case.later:
            shutil.copytree(self.analysed, out)
        else:
            out.mkdir()
        outside.mkdir()
        try:
            ours = set() if case.clash else set(trace(out))
            plant(out, outside)
            if case.clash:
                _plant_clash(out, outside, case.clash)
            before = {path: each for path, each in trace(out, outside).items() if path not in ours}
            ending = self.project.call(case.command, out, *["--force"] * case.force)
            after = trace(out, outside)
            if any(after.get(path) != each for path, each in before.items()):
                return TOUCHED, ending
            if case.refused and (set(after) != set(before) or (out / OWN).exists() != case.later):
                return OTHERWISE, ending  # something was begun
            return self._judge(case, ending), ending
        finally:
            shutil.rmtree(out)
            shutil.rmtree(outside)

    def _judge(self, case: Case, ending: Ending) -> str:
        if ending.traceback:
            return TRACEBACK
        if not case.refused:
            return UNTOUCHED if ending.code == 0 else OTHERWISE
        # A folder of the user's is refused as a whole unless --force is given; then for the name that clashes.
        named = (case.clash if case.force or case.later else "add --force") in ending.said
        return UNTOUCHED if ending.code == 2 and named and "--out" in ending.said else OTHERWISE


def _second_round(project: Project, out: Path) -> str:
    return f"model.weights={out}/finetuned.safetensors"


def _by_link(project: Project, out: Path) -> str:
    (project.folder / "soft.safetensors").symlink_to(out / "finetuned.safetensors")
    return "model.weights=soft.safetensors"


def _by_hard_link(project: Project, out: Path) -> str:
    os.link(out / "finetuned.safetensors", project.folder / "hard.safetensors")
    return "model.weights=hard.safetensors"


def _through_a_folder(project: Project, out: Path) -> str:
    (project.folder / "linked").symlink_to(out)
    return "model.weights=linked/pruned.safetensors"


def _own_weights(project: Project, out: Path) -> str:
    shutil.copy(project.folder / "weights.safetensors", out / "mine.safetensors")
    return f"model.weights={out}/mine.safetensors"


def _masks(project: Project, out: Path) -> str:
    (out / "masks.json").write_text('{"first": [0, 1]}')
    return f"plan.masks={out}/masks.json"


def _plan_as_masks(project: Project, out: Path) -> str:
    return f"plan.masks={out}/plan.json"


# Inputs that lie in the run directory.
INPUTS: dict[str, Callable[[Project, Path], str]] = {
    "a second round into the same directory": _second_round,
    "weights behind a symbolic link": _by_link,
    "weights behind a hard link": _by_hard_link,
    "weights behind a linked folder": _through_a_folder,
    "weights of the user's": _own_weights,
    "masks of the user's": _masks,
    "the plan as masks": _plan_as_masks,
}


def refuses_input(project: Project, done: Path, folder: Path, name: str, command: str = "report") -> tuple[str, Ending]:
    """Whether an input in the run directory is refused before anything is changed there.

    Args:
        project: the user's files; a case may add a link there.
        done: a run directory that went all the way.
        folder: for a copy of it.
        name: of an entry of `INPUTS`.
        command: to give.
    """
    out, known = folder / "out", set(project.folder.iterdir())
    shutil.copytree(done, out)
    try:
        given = INPUTS[name](project, out)
        before = trace(out)
        ending = project.call(command, out, sets=(given,))
        told = ending.code == 2 and "choose another run directory with --out, or copy the file" in ending.said
        if ending.traceback:
            return TRACEBACK, ending
        if trace(out) != before:
            return TOUCHED, ending
        return (UNTOUCHED if told else OTHERWISE), ending
    finally:
        shutil.rmtree(out)
        for path in set(project.folder.iterdir()) - known:
            path.unlink()


def measure(project: Project, folder: Path) -> tuple[list[str], Counter[str]]:
    """All cases: the lines of a table, and how often each outcome came."""
    table, rows, bad = Table(project, folder), dict[str, Counter[str]](), list[str]()

    def count(row: str, what: str, outcome: str, ending: Ending) -> None:
        rows.setdefault(row, Counter())[outcome] += 1
        if outcome in BAD:
            bad.append(f"- {what}: {outcome}: {ending.said[-300:]}")

    for case in cases():
        kind = "names that no run needs" if not case.clash else f"{case.clash}{' as a link' * (case.clash in LINKED)}"
        count(f"{kind} | {'refused' if case.refused else 'done'}", str(case), *table.outcome(case))
    done = folder / "foreign" / "done"
    project.call("report", done)
    for name in INPUTS:
        for command in COMMANDS:
            count(
                f"{name} | refused",
                f"{name}, {command}",
                *refuses_input(project, done, folder / "foreign", name, command),
            )
    columns = (UNTOUCHED, *BAD)
    lines = [f"| files of the user's | commands are | {' | '.join(columns)} |", "|---" * (len(columns) + 2) + "|"]
    lines += [f"| {row} | {' | '.join(str(found[column]) for column in columns)} |" for row, found in rows.items()]
    print(f"foreign: {sum(map(Counter.total, rows.values()))} cases", flush=True)
    return [*lines, "", *bad], sum(rows.values(), Counter())

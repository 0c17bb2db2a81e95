"""Damages every file of a run directory in many ways, and judges what the same command then makes of it."""

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from unittest.mock import patch

from benchmarks.faults.project import Ending, Project, differences
from infoprune.errors import RunError
from infoprune.pipeline.run_directory import OWN
from infoprune.training.resume import EpochFile

MANIFEST, STATE, USERS = f"{OWN}/manifest.json", f"{OWN}/finetuned.epochs.safetensors", "user.txt"
# What may come of a damaged file, and what must not.
AGAIN, REFUSED, EDITED = "made again", "refused by name", "used as edited by hand"
ACCEPTED, NAMELESS, TRACEBACK, TOUCHED = "accepted", "refused without need or name", "traceback", "user's file touched"
BAD = (ACCEPTED, NAMELESS, TRACEBACK, TOUCHED)
# Which step makes an artifact, and is to say so.
OWNERS = {
    "sensitivity.json": "sensitivity",
    "timings.json": "timings",
    "depth.json": "depth",
    "plan.json": "plan",
    "pruned.safetensors": "prune",
    "repaired.safetensors": "repair",
    "finetuned.safetensors": "finetune",
    "trained.safetensors": "train",
    "metrics.json": "evaluate",
    "export/export.json": "export",
    "report.json": "report",
}
# The command that ends with that step.
COMMANDS = {"analyze": "analyze", "sensitivity": "plan", "timings": "plan", "depth": "plan"}

# Without its manifest, or by that of another run, a directory's files are not known to be as they were written.
LOST_MANIFEST = (f"{OWN}' has no manifest", "trained.safetensors' holds weights of an earlier training")

# Steps that take longest, and the damages that a short table leaves out there, since others are like them.
LONG = ("finetune", "export", "report")
LIKE_OTHERS = ("middle byte", "one bit early", "one bit late", "halved", "[]", "null")

Damage = Callable[[Path, Path, Path], object]


@dataclass(frozen=True)
class Scenario:
    """One way to come to artifacts.

    Attributes:
        command: that makes them.
        sets: options of the recipe that differ.
        only: the files to damage; all that are listed if empty.
        measured: files that depend on times measured again.
        stopped: whether a training is stopped after its first epoch, and the directory damaged then.
    """

    command: str
    sets: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    measured: tuple[str, ...] = ()
    stopped: bool = False


TRACED = ("model.onnx", "model.pt2", "model-int8.onnx", "model-int8-dynamic.onnx")
LOWER = ("model-float16.safetensors", "model-bfloat16.safetensors")
ALL_FORMATS = 'export.formats=["state_dict","source","onnx","program","int8","int8_dynamic"]'
ALL_DTYPES = 'export.dtypes=["float32","float16","bfloat16"]'
SCENARIOS = {
    "run": Scenario("report"),
    "all formats": Scenario("export", (ALL_FORMATS, ALL_DTYPES), tuple(f"export/{name}" for name in (*TRACED, *LOWER))),
    "search": Scenario("plan", ("search.max_loss=90",), ("search.json",)),
    "choice": Scenario("plan", ('plan.rank_by="best"', 'choose.among=["l2","own_scores:Means"]'), ("choice.json",)),
    "depth": Scenario("plan", ('depth.remove=["block"]',), ("depth.json",)),
    "timings": Scenario("plan", ("plan.latency=1.0", "timings.repeats=1"), ("timings.json",), ("plan.json",)),
    "training": Scenario("train"),
    "comparison": Scenario("compare"),
    "advised widths": Scenario("widths", only=("widths.json",)),
    "advised depth": Scenario("depth", only=("depth_advice.json",)),
    "stopped training": Scenario("finetune", only=(STATE,), stopped=True),
}


def _bytes(change: Callable[[bytearray], object]) -> Damage:
    def damage(file: Path, other: Path, users: Path) -> None:
        content = bytearray(file.read_bytes())
        change(content)
        file.write_bytes(content)

    return damage


def _at(share: float, mask: int) -> Damage:
    """Changes the bits of a mask in the byte at this share of the file."""

    def change(content: bytearray) -> None:
        content[round(share * (len(content) - 1))] ^= mask

    return _bytes(change)


def _json(change: Callable[[dict[str, Any]], object]) -> Damage:
    def damage(file: Path, other: Path, users: Path) -> None:
        value = json.loads(file.read_text())
        change(value)
        file.write_text(json.dumps(value))

    return damage


def _replaced(file: Path, other: Path, users: Path) -> None:
    shutil.copyfile(other, file)


def _folder(file: Path, other: Path, users: Path) -> None:
    file.unlink()
    file.mkdir()
    (file / USERS).write_text("mine")


def _linked(file: Path, other: Path, users: Path) -> None:
    file.unlink()
    file.symlink_to(users)


def _digit(file: Path, other: Path, users: Path) -> None:
    """Changes the last digit of the first number of a finding's importance."""
    text = file.read_text()
    place = text.index(",", text.index("[", text.index('"importance"'))) - 1
    file.write_text(text[:place] + ("1" if text[place] != "1" else "2") + text[place + 1 :])


ANY: dict[str, Damage] = {
    "first byte": _at(0, 0xFF),
    "middle byte": _at(0.5, 0xFF),
    "last byte": _at(1, 0xFF),
    "one bit early": _at(0.1, 0x01),
    "one bit in the middle": _at(0.5, 0x01),
    "one bit late": _at(0.9, 0x01),
    "halved": _bytes(lambda content: content.__delitem__(slice(len(content) // 2, None))),
    "emptied": _bytes(bytearray.clear),
    "removed": lambda file, other, users: file.unlink(),
    "that of another run": _replaced,
    "a folder": _folder,
    "a link": _linked,
}
JSON: dict[str, Damage] = {
    "{}": lambda file, other, users: file.write_text("{}"),
    "[]": lambda file, other, users: file.write_text("[]"),
    "null": lambda file, other, users: file.write_text("null"),
    "made_from = []": _json(lambda value: value.update(made_from=[])),
}
OWN_DAMAGES: dict[str, dict[str, Damage]] = {
    "export/export.json": {
        "files = -1": _json(lambda value: value.update(files=-1)),
        "files = []": _json(lambda value: value.update(files=[])),
        "no files": _json(lambda value: value.pop("files")),
        "names a user's file": _json(lambda value: value["files"][0].update(path=f"../{USERS}")),
        "names the model card": _json(lambda value: value["files"][0].update(path="MODEL_CARD.md")),
    },
    "metrics.json": {"accuracy = 5.0": _json(lambda value: value["finetuned"].update(accuracy=5.0))},
    "plan.json": {
        "macs_before = 987654321": _json(lambda value: value.update(macs_before=987654321)),
        "macs_after = -5": _json(lambda value: value.update(macs_after=-5)),
        "a group twice": _json(lambda value: value["groups"].append(value["groups"][0])),
        "one filter less": _json(lambda value: value["groups"][0]["kept"].pop()),
    },
    "findings/l2.json": {"one digit": _digit},
}


class Table:
    """All cases of one scenario.

    Args:
        project: the user's files.
        name: of the scenario.
        folder: for run directories.
        short: run only until the step that makes the damaged file, and try fewer damages where that takes long.
    """

    def __init__(self, project: Project, name: str, folder: Path, short: bool) -> None:
        self.project, self.scenario, self.folder = project, SCENARIOS[name], folder / name.replace(" ", "-")
        self.short, self.sets = short, self.scenario.sets
        self.start, self.whole, self.other = (self.folder / each for each in ("start", "whole", "other"))
        self._run(self.whole)
        (self.whole / USERS).write_text("mine")
        self._run(self.other, "run.seed=1", "plan.macs=0.6", "train.learning_rate=0.003", stopped=self.scenario.stopped)
        if self.scenario.stopped:
            self._run(self.start, stopped=True)
            (self.start / USERS).write_text("mine")
        else:
            self.start = self.whole

    def _run(self, out: Path, *sets: str, stopped: bool = False) -> None:
        save = EpochFile.save

        def save_and_stop(state: EpochFile, *given: Any) -> None:
            save(state, *given)
            raise RunError("stopped")

        with patch.object(EpochFile, "save", save_and_stop if stopped else save):
            ending = self.project.call(self.scenario.command, out, sets=(*self.sets, *sets))
        if (ending.code, ending.traceback) != (int(stopped), ""):
            raise RuntimeError(ending.traceback or ending.said)

    @cached_property
    def listed(self) -> dict[str, str]:
        """Files that the manifest lists, each with the artifact that it is a part of."""
        files = json.loads((self.whole / MANIFEST).read_text())["files"]
        return {name: entry["of"] for name, entry in files.items()}

    def cases(self) -> Iterator[tuple[str, str]]:
        """Names of a file and of a damage."""
        everything = [*self.listed, *([] if self.scenario.only else [MANIFEST])]
        for name in self.scenario.only or everything:
            left_out = LIKE_OTHERS if self.short and self._owner(name) in LONG else ()
            yield from ((name, damage) for damage in self._damages(name) if damage not in left_out)

    def _damages(self, name: str) -> dict[str, Damage]:
        found = {**ANY, **(JSON if name.endswith(".json") else {}), **OWN_DAMAGES.get(name, {})}
        return {
            key: each for key, each in found.items() if key != "that of another run" or (self.other / name).exists()
        }

    def outcome(self, name: str, damage: str) -> tuple[str, Ending]:
        """Damages a file of a copy, gives the command again, and judges."""
        out, users = self.folder / "out", self.folder / USERS
        shutil.copytree(self.start, out)
        users.write_text("mine")
        planted = [users, out / USERS]
        try:
            self._damages(name)[damage](out / name, self.other / name, users)
            planted += [out / name / USERS] if damage == "a folder" else []
            before = [_trace(path) for path in planted]
            ending = self.project.call(self._command(name), out, sets=self.sets)
            touched = [_trace(path) for path in planted] != before
            return TOUCHED if touched else self._judge(name, damage, ending, out), ending
        finally:
            shutil.rmtree(out)

    def _owner(self, name: str) -> str:
        """The step that is to say that it ran; empty where none says so."""
        return "analyze" if name.startswith("findings/") else OWNERS.get(self.listed.get(name, ""), "")

    def _command(self, name: str) -> str:
        owner = self._owner(name)
        return COMMANDS.get(owner, owner) if self.short and owner else self.scenario.command

    def _judge(self, name: str, damage: str, ending: Ending, out: Path) -> str:
        if ending.traceback:
            return TRACEBACK
        if ending.code:
            # Weights trained from scratch are only made again where that is asked for.
            trained = self.listed.get(name) == "trained.safetensors" or (name, self.scenario.command) == (
                MANIFEST,
                "train",
            )
            refusable = trained or name in (MANIFEST, "plan.json") or damage in ("a folder", "a link")
            named = name in ending.said or (name == MANIFEST and any(each in ending.said for each in LOST_MANIFEST))
            return REFUSED if refusable and ending.code == 2 and named else NAMELESS
        # By the manifest of another run, the plan is one that somebody changed.
        if name in ("plan.json", MANIFEST) and "was edited by hand" in ending.said:
            return EDITED if self._is_counted(out) else ACCEPTED
        if set(differences(out, self.whole)) - set(self.scenario.measured):
            return ACCEPTED
        owner = self._owner(name)
        return AGAIN if not owner or ending.ran(owner) else ACCEPTED

    def _is_counted(self, out: Path) -> bool:
        """Whether an edited plan says so, and its figures follow from the channels that it keeps."""
        plan, whole = (json.loads((each / "plan.json").read_text()) for each in (out, self.whole))
        same = [row["kept"] for row in plan["groups"]] == [row["kept"] for row in whole["groups"]]
        figures = [(plan["macs_before"], plan["macs_after"]), (whole["macs_before"], whole["macs_after"])]
        return (
            any("edited by hand" in note for note in plan["notes"])
            and all(row["width_after"] == len(row["kept"]) for row in plan["groups"])
            and (figures[0] == figures[1] if same else 0 < figures[0][1] < figures[0][0] == figures[1][0])
        )


def _trace(path: Path) -> tuple[bytes, int] | None:
    return (path.read_bytes(), os.lstat(path).st_mtime_ns) if path.exists() else None


def measure(project: Project, folder: Path) -> tuple[list[str], Counter[str]]:
    """All scenarios in full: the lines of a table, and how often each outcome came."""
    total: Counter[str] = Counter()
    columns = (AGAIN, REFUSED, EDITED, *BAD)
    lines = [f"| file | damages | {' | '.join(columns)} |", "|---" * (len(columns) + 2) + "|"]
    bad = []
    for name in SCENARIOS:
        table, counted = Table(project, name, folder, short=False), dict[str, Counter[str]]()
        for file, damage in table.cases():
            outcome, ending = table.outcome(file, damage)
            counted.setdefault(file, Counter())[outcome] += 1
            bad += [f"- {file}, {damage}: {outcome}: {ending.said[-300:]}"] if outcome in BAD else []
        for file, found in counted.items():
            shown = " | ".join(str(found[column]) for column in columns)
            lines.append(f"| {file} ({name}) | {found.total()} | {shown} |")
            total += found
        print(f"damage, {name}: {sum(map(Counter.total, counted.values()))} cases", flush=True)
    return [*lines, "", *bad], total

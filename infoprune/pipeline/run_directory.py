"""A run directory: a folder whose manifest lists the files that infoprune wrote there, each with its fingerprint.

What the manifest does not list belongs to the user: it is never read as an artifact, replaced or removed.
"""

import itertools
import json
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from filelock import FileLock, Timeout

from infoprune.errors import UserError, shortages
from infoprune.io import storage
from infoprune.io.encoding import from_json

OWN = ".infoprune"  # the one folder of a run directory that only infoprune uses
LOGGER = logging.getLogger(__name__)
ABOUT = "The files below were written by infoprune. It never replaces or removes any other file of this folder."
FORMAT = 1
# What `storage.write_atomically` leaves of a file of this folder where the process is killed.
TORN = re.compile(r"\.(manifest\.json|\w+\.epochs\.safetensors)\.[a-z0-9_]{8}\.\w+")

State = Literal["absent", "whole", "previous", "changed", "foreign"]


@dataclass(frozen=True)
class Entry:
    """One file that infoprune wrote.

    Attributes:
        sha256: of its content.
        of: name of the artifact that it is a part of; its own name where it stands for itself.
        origin: fingerprint of the options and inputs that the artifact came from.
        replaces: SHA-256 of the file that it takes the place of. The entry is written before the file gets its name,
            so a process that is killed in between leaves the earlier file under this entry.
    """

    sha256: str
    of: str
    origin: str = ""
    replaces: str = ""


class RunDirectory:
    """The files of one run; names are relative to the folder, with `/` between parts.

    Args:
        path: the folder; `claim` makes it.

    Raises:
        UserError: for an empty path, as an unset shell variable gives.
    """

    def __init__(self, path: Path | str) -> None:
        if not str(path):
            raise UserError("the run directory is '' (an unset variable?); name a folder with --out")
        self.path = Path(path)
        self._manifest = self.path / OWN / "manifest.json"
        self._hashes: dict[str, tuple[tuple[int, ...], str]] = {}

    def claim(self, names: Iterable[str] = (), force: bool = False) -> None:
        """Makes the folder a run directory and keeps other processes out for as long as this object lives.

        Args:
            names: files that the run may write: where one is there that infoprune did not write, nothing starts.
            force: accept a folder that holds other files; they stay as they are.

        Raises:
            UserError: for a folder that holds files of the user's and no run, unless forced; for a file of the user's
                under a name that the run needs; for a damaged manifest; where another process works there, or nothing
                can be written.
        """
        with shortages(f"writing in '{self.path}'", "choose another folder with --out"):
            self._check_folder(force)
            self._refuse_clashes(names)
            (self.path / OWN).mkdir(parents=True, exist_ok=True)
            self._lock = _locked(self.path)
            if not self._manifest.exists():
                self._write_manifest({})
            self._sweep()

    def _check_folder(self, force: bool) -> None:
        own = self.path / OWN
        if OWN in self.path.resolve().parts:
            raise UserError(
                f"'{self.path}' lies in a folder that infoprune keeps for itself; choose another with --out"
            )
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"'{self.path}' is a file; choose a folder with --out")
        for place in (own, self._manifest, self._scratch, self._aside):
            if place.is_symlink():
                raise UserError(f"'{place}' is a link; infoprune writes through none: choose another folder with --out")
        if self._manifest.exists():
            return
        if own.exists() and any(each.name != "lock" and not TORN.fullmatch(each.name) for each in own.iterdir()):
            raise UserError(
                f"'{own}' has no manifest, so infoprune cannot tell its own files in '{self.path}'; choose another "
                "folder with --out"
            )
        others = sorted(each.name for each in self.path.iterdir() if each.name != OWN) if self.path.exists() else []
        if others and not force:
            shown = ", ".join(others[:3]) + (" …" if len(others) > 3 else "")
            raise UserError(
                f"'{self.path}' is no run directory and holds other files ({shown}); choose a new or empty folder with "
                "--out, or add --force: your files then stay as they are"
            )

    def _refuse_clashes(self, names: Iterable[str]) -> None:
        clashes = [name for name in names if self.state(name) == "foreign"]
        if clashes:
            shown = ", ".join(clashes[:3]) + (" …" if len(clashes) > 3 else "")
            raise UserError(
                f"'{self.path}' holds {shown}, which infoprune did not write but needs the name of; move it away, or "
                "choose another folder with --out"
            )

    def _sweep(self) -> None:
        """Removes what a process that was killed while it wrote has left, in the folder that only infoprune uses."""
        shutil.rmtree(self._scratch, ignore_errors=True)  # follows no links
        for path in (self.path / OWN).iterdir():
            if TORN.fullmatch(path.name) and path.is_file() and not path.is_symlink():
                path.unlink(missing_ok=True)

    @property
    def _scratch(self) -> Path:
        return self.path / OWN / "tmp"

    @property
    def _aside(self) -> Path:
        return self.path / OWN / "changed"

    def private(self, name: str) -> Path:
        """A file for infoprune alone, beside the manifest; not listed in it."""
        return self.path / OWN / name

    def entries(self) -> dict[str, Entry]:
        """Every file that infoprune wrote, by name.

        Raises:
            UserError: for a damaged or edited manifest.
        """
        if not self._manifest.exists():
            return {}
        remedy = "choose another folder with --out"
        found = storage.read_json(self._manifest, remedy)
        if found.get("format") != FORMAT or found.get("checksum") != storage.value_fingerprint(found.get("files")):
            raise UserError(
                f"'{self._manifest}' was damaged or edited, so infoprune cannot tell its own files there; {remedy}"
            )
        entries = from_json(found["files"], dict[str, Entry], str(self._manifest))
        if any(".." in PurePosixPath(name).parts or PurePosixPath(name).is_absolute() for name in entries):
            raise UserError(f"'{self._manifest}' lists files outside '{self.path}'; {remedy}")
        return entries

    def _write_manifest(self, entries: Mapping[str, Entry]) -> None:
        rows = {name: asdict(entries[name]) for name in sorted(entries)}
        files = {name: {key: value for key, value in row.items() if value} for name, row in rows.items()}
        content = {"about": ABOUT, "format": FORMAT, "checksum": storage.value_fingerprint(files), "files": files}
        storage.write_atomically(
            self._manifest, lambda temporary: temporary.write_text(json.dumps(content, indent=1) + "\n", "utf-8")
        )

    def fingerprint(self, name: str) -> str:
        """SHA-256 of a file's content, computed again only where the file was touched.

        Raises:
            UserError: where it cannot be read.
        """
        path = self.path / name
        try:
            found = path.stat()
        except OSError as error:
            raise UserError(f"cannot read '{path}': {error.strerror}") from error
        touched = (found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
        if self._hashes.get(name, ((),))[0] != touched:
            self._hashes[name] = touched, storage.file_fingerprint(path)
        return self._hashes[name][1]

    def has(self, name: str) -> bool:
        """Whether a file is there that infoprune wrote, changed since or not."""
        return self.state(name) not in ("absent", "foreign")

    def state(self, name: str) -> State:
        """What became of a file: "whole" as it was written, "changed" since, or "foreign": not written by infoprune.

        A file is "previous" where its entry announces another one, which a killed process could not put in its place.
        """
        place, entry = self.path / name, self.entries().get(name)
        if self._led_astray(name):
            return "foreign"
        if not os.path.lexists(place):
            return "absent"
        if entry is None or place.is_symlink() or not place.is_file():
            return "foreign"
        states: dict[str, State] = {entry.replaces: "previous", entry.sha256: "whole"}
        return states.get(self.fingerprint(name), "changed")

    def _led_astray(self, name: str) -> bool:
        """Whether a folder between the run directory and a file is a link, which leads elsewhere, or no folder."""
        folders = [self.path / parent for parent in PurePosixPath(name).parents if str(parent) != "."]
        return any(os.path.lexists(folder) and (folder.is_symlink() or not folder.is_dir()) for folder in folders)

    def is_current(self, name: str, origin: str) -> bool:
        """Whether an artifact and all of its parts are there as they were written, from this origin."""
        parts = self._parts(name)
        return name in parts and all(
            entry.origin == origin and self.state(part) == "whole" for part, entry in parts.items()
        )

    def changed(self, name: str) -> list[str]:
        """Files of an artifact that were changed since they were written."""
        return [part for part in self._parts(name) if self.state(part) in ("changed", "foreign")]

    def damaged(self, name: str) -> list[str]:
        """Files of an artifact that are not there as they were written."""
        return [part for part in self._parts(name) if self.state(part) != "whole"]

    def _parts(self, name: str) -> dict[str, Entry]:
        return {part: entry for part, entry in self.entries().items() if entry.of == name}

    def recall(self, name: str) -> dict[str, Any]:
        """The content of a JSON file as it was written; empty where it is missing or was changed since."""
        state = self.state(name)
        if state == "changed":
            LOGGER.warning("%s changed after the run wrote it and is not used", self.path / name)
        return storage.read_json(self.path / name) if state == "whole" else {}

    def write(self, name: str, write: Callable[[Path], object], of: str = "", origin: str = "") -> None:
        """Writes a file whole or not at all, and lists it.

        Args:
            name: of the file.
            write: writes it to the path that it is given.
            of: name of the artifact that it is a part of; itself if not given.
            origin: fingerprint of the options and inputs that the artifact came from.

        Raises:
            UserError: where a file of the user's has that name, or nothing can be written.
        """
        with self.scratch() as folder:
            temporary = folder / PurePosixPath(name).name
            write(temporary)
            self.place(temporary, name, of, origin)

    def write_json(self, name: str, value: Mapping[str, Any], of: str = "", origin: str = "") -> None:
        """Writes a JSON object; arguments as for `write`."""
        self.write(name, lambda temporary: storage.write_json(temporary, value), of, origin)

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """A folder for files on their way to their names, which goes with what is left in it."""
        with shortages(f"writing in '{self.path}'"):
            self._scratch.mkdir(exist_ok=True)
            with tempfile.TemporaryDirectory(dir=self._scratch) as folder:
                yield Path(folder)

    def place(self, file: Path, name: str, of: str = "", origin: str = "") -> None:
        """Gives a file from `scratch` its name; arguments as for `write`."""
        target, state = self.path / name, self.state(name)
        self._refuse_clashes([name])
        with shortages(f"writing '{target}'"):
            if state == "changed":
                self._put_aside(name)
            before = self.fingerprint(name) if state in ("whole", "previous") else ""
            storage.settle(file)
            entry = Entry(storage.file_fingerprint(file), of or name, origin, before)
            others = {key: replace(each, replaces="") for key, each in self.entries().items()}
            self._write_manifest({**others, name: entry})
            target.parent.mkdir(exist_ok=True)
            os.replace(file, target)

    def _put_aside(self, name: str) -> None:
        """Moves a file that somebody changed out of the way: the change may be somebody's work."""
        self._aside.mkdir(exist_ok=True)
        places = (self._aside / f"{name.replace('/', '.')}.{number}" for number in itertools.count(1))
        os.replace(self.path / name, next(place for place in places if not os.path.lexists(place)))

    def remove(self, name: str) -> None:
        """Removes a file that infoprune wrote, and its entry; one that was changed since is put aside, others stay."""
        state, entries = self.state(name), self.entries()
        if name not in entries:
            return
        if state in ("whole", "previous"):
            (self.path / name).unlink()
        elif state == "changed":
            self._put_aside(name)
        self._write_manifest({key: each for key, each in entries.items() if key != name})

    def retire(self, name: str, origin: str) -> None:
        """Removes the parts of an artifact that came from another origin than the one it has now."""
        for part, entry in self._parts(name).items():
            if entry.origin != origin:
                self.remove(part)

    def name_of(self, file: Path) -> str | None:
        """The name by which this directory holds a file, also through links; `None` where it lies elsewhere."""
        real, root = file.resolve(), self.path.resolve()
        if real.is_relative_to(root):
            return real.relative_to(root).as_posix()
        held = (name for name in self.entries() if self.has(name))
        return next((name for name in held if os.path.samefile(self.path / name, file)), None)


def _locked(folder: Path) -> FileLock:
    """A lock that lives as long as it is referred to, or this process."""
    lock = FileLock(folder / OWN / "lock", timeout=0, is_singleton=True)
    try:
        lock.acquire()
    except Timeout as error:
        raise UserError(
            f"another process is working in '{folder}'; wait until it has ended, or choose another folder with --out"
        ) from error
    return lock

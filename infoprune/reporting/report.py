"""One self-contained page that says what was decided, why, and what it cost; or two runs side by side."""

import os
import re
import tempfile
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

from infoprune.errors import UserError
from infoprune.reporting.contents import LayerChange, ReportContents
from infoprune.reporting.vocabulary import STAGES

# In the head of every page; of one that may be replaced, the hash of its content follows.
GENERATOR = '<meta name="generator" content="infoprune '

__all__ = ["LayerChange", "ReportContents", "render", "report", "report_side_by_side"]


def report(path: Path | str, contents: ReportContents) -> Path:
    """Writes the page: one HTML file that needs no network and no script; equal contents make equal files.

    Args:
        path: the file to write; its directory is made where it does not exist.
        contents: what the page shows.

    Returns:
        The path of the written file.

    Raises:
        UserError: where the file cannot be written or a stage is unknown.
    """
    _check(contents)
    return _write(Path(path), render(contents))


def report_side_by_side(path: Path | str, runs: Sequence[ReportContents]) -> Path:
    """Writes a page that sets runs beside each other: what was decided, widths, training, recipes.

    Args:
        path: the file to write; its directory is made where it does not exist.
        runs: two or more; how they differ is shown against the first.

    Returns:
        The path of the written file.

    Raises:
        UserError: where the file cannot be written or is there and no page of this package, a stage is unknown, or
            there is nothing to compare.
    """
    from infoprune.reporting import pages

    if len(runs) < 2:
        raise UserError(f"{len(runs)} run to set side by side; name two or more")
    for contents in runs:
        _check(contents)
    _check_replaceable(Path(path))
    return _write(Path(path), _sealed(pages.side_by_side(runs)))


def render(contents: ReportContents) -> str:
    """The page's text."""
    from infoprune.reporting import pages

    return pages.single(contents)


def _check(contents: ReportContents) -> None:
    unknown = set(contents.metrics) - set(STAGES)
    if unknown:
        raise UserError(f"metrics has the stages {sorted(unknown)}; the report knows {', '.join(STAGES)}")


def _sealed(page: str) -> str:
    """A page whose head holds the hash of its content, by which it is known again."""
    return page.replace(GENERATOR, f"{GENERATOR}{_hash(page)} ", 1)


def _hash(page: str) -> str:
    return f"sha256:{sha256(page.encode()).hexdigest()}"


def _check_replaceable(path: Path) -> None:
    """Refuses to replace what is no page of this package, or was changed since: it may be somebody's work."""
    if not os.path.lexists(path):
        return
    if path.is_file() and not path.is_symlink():
        try:
            page = path.read_text(encoding="utf-8", errors="replace")
        except OSError as error:
            raise UserError(f"cannot read '{path}', which is to be replaced: {error.strerror}; name another") from error
        seal = re.search(rf"(?<={re.escape(GENERATOR)})(sha256:[0-9a-f]{{64}}) ", page)
        if seal and seal[1] == _hash(page.replace(seal[0], "", 1)):
            return
    raise UserError(
        f"'{path}' is there, and is no page of this command, or was changed since; name another file, or remove it"
    )


def _write(path: Path, page: str) -> Path:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # A folder of its own, so that the file has the permissions of any new file, and goes with the folder on error.
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".report-") as scratch:
            written = Path(scratch) / path.name
            written.write_text(page, encoding="utf-8")
            os.replace(written, path)
    except OSError as error:
        raise UserError(f"cannot write '{path}': {error.strerror}; choose another place or free it") from error
    return path

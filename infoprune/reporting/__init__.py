"""One self-contained page that says what was decided, why, and what it cost; or two runs side by side."""

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from infoprune.errors import UserError
from infoprune.reporting.contents import LayerChange, ReportContents
from infoprune.reporting.vocabulary import STAGES

# By this, in its first bytes, a page of this package is known.
GENERATOR, HEAD = '<meta name="generator" content="infoprune ', 1024

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
    return _write(Path(path), pages.side_by_side(runs))


def render(contents: ReportContents) -> str:
    """The page's text."""
    from infoprune.reporting import pages

    return pages.single(contents)


def _check(contents: ReportContents) -> None:
    unknown = set(contents.metrics) - set(STAGES)
    if unknown:
        raise UserError(f"metrics has the stages {sorted(unknown)}; the report knows {', '.join(STAGES)}")


def _check_replaceable(path: Path) -> None:
    """Refuses to replace what is no page of this package: it may be somebody's work."""
    if not os.path.lexists(path):
        return
    if path.is_file() and not path.is_symlink():
        try:
            with path.open("rb") as file:
                head = file.read(HEAD)
        except OSError as error:
            raise UserError(f"cannot read '{path}', which is to be replaced: {error.strerror}; name another") from error
        if GENERATOR.encode() in head:
            return
    raise UserError(f"'{path}' is there, and is no page that infoprune wrote; name another file, or remove it")


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

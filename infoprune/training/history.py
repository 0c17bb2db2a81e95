"""The history of a training as CSV: one row per epoch, one column per field of its record."""

import csv
import dataclasses
import io
from collections.abc import Sequence
from pathlib import Path

import msgspec

from infoprune.errors import UserError
from infoprune.evaluation.metrics import EpochRecord
from infoprune.io import storage


def write_history(path: Path, history: Sequence[EpochRecord]) -> None:
    """Writes the rows, whole or not at all."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in dataclasses.fields(EpochRecord)])
    writer.writeheader()
    writer.writerows(dataclasses.asdict(record) for record in history)
    storage.write_atomically(path, lambda temporary: temporary.write_text(text.getvalue(), encoding="utf-8"))


def read_history(path: Path) -> list[EpochRecord]:
    """The rows of a file that `write_history` wrote.

    Raises:
        UserError: where the file is missing or has other columns.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return msgspec.convert(list(csv.DictReader(file)), list[EpochRecord], strict=False)
    except (OSError, UnicodeDecodeError, msgspec.ValidationError) as error:
        raise UserError(
            f"'{path}' is no history of a training: {error}; remove finetuned.safetensors to redo it"
        ) from error

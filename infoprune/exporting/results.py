"""Files that hold a model for other tools."""

from dataclasses import dataclass
from pathlib import Path

from infoprune.utils.tables import Table, Tabular, size


@dataclass(frozen=True)
class ExportResult(Tabular):
    """One written file and how far its outputs are from the model's own.

    Attributes:
        format: "state_dict", "source", "onnx", "program", "int8" or "int8_dynamic".
        dtype: precision of what is in it: "float32", "float16", "bfloat16" or "int8".
        path: the file.
        bytes: its size.
        max_abs_difference: largest over all outputs and batches, in units of the output.
        max_rel_difference: the same relative to the largest absolute output of the model on that batch.
        batches: the batch sizes on which both were run.
        accuracy: share of correct predictions on the split that the final figures are of, 0..1, where rounding makes
            it the file's own; `None` where it is the model's.
    """

    format: str
    dtype: str
    path: Path
    bytes: int
    max_abs_difference: float
    max_rel_difference: float
    batches: tuple[int, ...]
    accuracy: float | None = None

    def table(self) -> Table:
        """One row."""
        return Exports([self]).table()


class Exports(Tabular, list[ExportResult]):
    """All files of one export."""

    def table(self) -> Table:
        """One row per file."""
        rows = [
            (
                file.path.name,
                file.format if file.format.startswith(file.dtype) else f"{file.format}, {file.dtype}",
                size(file.bytes),
                f"{file.max_rel_difference:.1e}" if file.max_rel_difference else "0",
                "" if file.accuracy is None else f"{file.accuracy:.2%}",
            )
            for file in self
        ]
        notes = (
            "differences are shares of the largest output; accuracy is given where rounding makes it the file's own",
        )
        return Table("Exported files", ("file", "format", "size", "difference", "accuracy"), rows, notes)

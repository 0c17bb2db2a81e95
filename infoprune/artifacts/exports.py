"""Files that hold a model for other tools."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class ExportResult:
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


class Exports(list[ExportResult]):
    """All files of one export."""

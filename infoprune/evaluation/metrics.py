"""What was measured of a model, and how to build it again."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from infoprune.utils.tables import Table, Tabular, milliseconds, short, size


@dataclass(frozen=True)
class EpochRecord:
    """One epoch of training: losses in nats per sample, accuracies 0..1; validation is NaN where there is none.

    The metric is the user's own, on the validation split; NaN where there is none.
    """

    epoch: int
    learning_rate: float
    train_loss: float
    train_accuracy: float
    validation_loss: float
    validation_accuracy: float
    seconds: float
    validation_metric: float = math.nan


@dataclass(frozen=True)
class Score:
    """How a model does on a split: share of correct predictions 0..1, mean cross-entropy in nats, number of samples."""

    accuracy: float
    loss: float
    samples: int


@dataclass(frozen=True)
class Latency:
    """Time of one forward pass in milliseconds over repeated runs."""

    median: float
    iqr: float
    batch: int
    device: str
    threads: int


@dataclass(frozen=True)
class Verification:
    """Largest difference between the outputs of the pruned model and of its masked reference model.

    Attributes:
        max_abs_difference: in units of the output.
        max_rel_difference: relative to the largest absolute output of the masked reference model.
        dtype: the precision in which it was decided.
    """

    max_abs_difference: float
    max_rel_difference: float
    dtype: str


@dataclass(frozen=True)
class StageMetrics(Tabular):
    """One row of the final table.

    Attributes:
        accuracy: share of correct predictions on the test split, 0..1.
        loss: mean cross-entropy there, in nats.
        parameters: number of trainable and frozen parameters, buffers not counted.
        macs: multiply-accumulates per sample of convolutions and matrix products.
        bytes: size of the weights file.
        latency_ms: one forward pass.
    """

    accuracy: float
    loss: float
    parameters: int
    macs: int
    bytes: int
    latency_ms: Latency

    def table(self) -> Table:
        """One row."""
        return Metrics({"": self}).table()


class Metrics(Tabular, dict[str, StageMetrics]):
    """The stages measured, by name."""

    def table(self) -> Table:
        """One row per stage; cost also as a share of the first one's."""
        first = next(iter(self.values()), None)
        if first is None:
            return Table("Nothing measured", ("stage",), ())
        rows = [
            (
                stage,
                f"{row.accuracy:.2%}",
                f"{short(row.parameters)} {row.parameters / max(1, first.parameters):.0%}",
                f"{short(row.macs)} {row.macs / max(1, first.macs):.1%}",
                size(row.bytes),
                milliseconds(row.latency_ms.median, row.latency_ms.iqr / 2),
            )
            for stage, row in self.items()
        ]
        time = first.latency_ms
        note = (
            f"MACs per sample; latency of one forward pass: median ± half the IQR, batch {time.batch}, {time.device}, "
            f"{time.threads} threads"
        )
        heads = ("stage", "accuracy", "parameters", "MACs", "file", "latency")
        return Table("Measured on the test split", heads, rows, (note,))


@dataclass(frozen=True)
class Cell:
    """One criterion at one budget with one seed.

    Attributes:
        criterion: an analysis that ranks under the recipe's own plan, `uniform.NAME` at uniform widths,
            `torch_pruning.NAME` as that library comes, "recipe", or a control.
        share: budget in multiply-accumulates, as a share of the unpruned network's.
        seed: of what is random in it.
        macs, parameters: what is left.
        latency_ms: median time of a forward pass.
        cut, repaired, finetuned: share of correct predictions on the test split, 0..1; `None` where not asked for.
        validation: the same on the validation split, of the last stage.
        seconds: what it took to choose the filters: analysis, sensitivities, planning.
    """

    criterion: str
    share: float
    seed: int
    macs: int
    parameters: int
    latency_ms: float
    cut: float | None
    repaired: float | None
    finetuned: float | None
    validation: float
    seconds: float


@dataclass(frozen=True)
class ModelReference:
    """How to build the unpruned architecture again.

    Attributes:
        name: a model family of ours, or the user's own `package.module:function`.
        arguments: keyword arguments for it.
    """

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)

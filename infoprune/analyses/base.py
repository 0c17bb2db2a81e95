"""What an analysis sees of one layer on one batch."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeVar, runtime_checkable

from torch import Tensor, nn

from infoprune.utils.tables import Table, Tabular

Value = TypeVar("Value")


class Memo:
    """Computes a thing for whoever asks first and hands the same thing to whoever asks next."""

    def __init__(self) -> None:
        self._kept: dict[Hashable, Any] = {}

    def once(self, key: Hashable, compute: Callable[[], Value]) -> Value:
        """The value under `key`, computed at the first call."""
        if key not in self._kept:
            self._kept[key] = compute()
        value: Value = self._kept[key]
        return value


class BatchView(Memo):
    """One calibration batch as every layer sees it.

    Attributes:
        inputs: the network's input, `samples x channels x height x width`.
        labels: class indices, `samples`; `None` where the batches carry none.
        index: number of this batch, from 0.
    """

    def __init__(self, inputs: Tensor, labels: Tensor | None, index: int) -> None:
        super().__init__()
        self.inputs, self.labels, self.index = inputs, labels, index


class LayerView(Memo):
    """One layer on one calibration batch; it dies with the forward hook that made it.

    Attributes:
        layer: the module's dotted name in the model.
        module: the layer itself.
        activations: what it put out, `samples x filters [x height x width]`, detached.
        gradients: loss gradient at that output, same shape; `None` unless an analysis asked for gradients.
        batch: what all layers share on this batch.
    """

    def __init__(
        self, layer: str, module: nn.Module, activations: Tensor, batch: BatchView, gradients: Tensor | None = None
    ) -> None:
        super().__init__()
        self.layer, self.module, self.activations, self.gradients = layer, module, activations, gradients
        self.batch = batch


@dataclass(frozen=True)
class Measure:
    """One figure of a layer, or one per filter.

    Attributes:
        value: a number (`()`) for the layer or one per filter (`filters`), averaged over mini-batches.
        low: lower end of the 95 % interval over mini-batches, shaped as `value`; `None` with fewer than two batches.
        high: its upper end.
        unit: "bits" unless said otherwise.
    """

    value: Tensor
    low: Tensor | None = None
    high: Tensor | None = None
    unit: str = "bits"


@dataclass(frozen=True)
class Curve:
    """A figure of a layer along an axis, for drawing.

    Attributes:
        x: places along the axis, `points`.
        y: the figure there, `points`.
        low: lower end of its interval or of the band that chance leaves, `points`; `None` where there is none.
        high: its upper end.
        axis: what lies along the axis.
        unit: of the figure.
    """

    x: Tensor
    y: Tensor
    low: Tensor | None = None
    high: Tensor | None = None
    axis: str = "filters"
    unit: str = "bits"


@dataclass(frozen=True)
class Flag:
    """A reason not to conclude from a layer's figures."""

    layer: str
    kind: Literal["saturated", "undefined"]
    reason: str


@dataclass(frozen=True)
class Finding(Tabular):
    """What one analysis knows about a model.

    Attributes:
        analysis: its name in the recipe.
        importance: per layer, one score per filter (`filters`); the larger, the more reason to keep the filter.
        widths: per layer, the recommended number of filters.
        removable: names of blocks that the analysis would remove.
        measures: per layer, named figures.
        flags: what not to trust, and why.
        curves: per layer, named figures along an axis; nothing is decided by them.
    """

    analysis: str
    importance: Mapping[str, Tensor] = field(default_factory=dict)
    widths: Mapping[str, int] = field(default_factory=dict)
    removable: tuple[str, ...] = ()
    measures: Mapping[str, Mapping[str, Measure]] = field(default_factory=dict)
    flags: tuple[Flag, ...] = ()
    curves: Mapping[str, Mapping[str, Curve]] = field(default_factory=dict)

    def table(self) -> Table:
        """One row per layer: figures of it, and the median of those of its filters."""
        flags = {flag.layer: f"{flag.kind}: {flag.reason}" for flag in self.flags}
        layers = dict.fromkeys([*self.importance, *self.widths, *self.measures, *flags])
        named = {name: measure.unit for found in self.measures.values() for name, measure in found.items()}
        columns = {
            **({"importance": self.importance} if self.importance else {}),
            **({"width": self.widths} if self.widths else {}),
            **{
                f"{name}, {unit}": {layer: found[name] for layer, found in self.measures.items() if name in found}
                for name, unit in named.items()
            },
            **({"flag": flags} if flags else {}),
        }
        rows = [(layer, *(_cell(column.get(layer)) for column in columns.values())) for layer in layers]
        notes = ("medians over the filters of a layer, where there is one figure per filter",)
        removable = (f"would remove {', '.join(self.removable)}",) if self.removable else ()
        return Table(f"Finding of {self.analysis}", ("layer", *columns), rows, (*removable, *notes))

    def plot(self) -> Any:
        """The figures of the report on this finding, which a notebook shows, and `save` writes as a page.

        Artifacts know nothing of reports: this asks the package by the name that a user would.
        """
        import infoprune

        return infoprune.plot(self)


def _cell(value: Any) -> str:
    """A name, a number, or a figure with its interval."""
    if isinstance(value, Measure):
        if value.value.dim() == 0 and value.low is not None and value.high is not None:
            return f"{float(value.value):.4g} [{float(value.low):.4g}, {float(value.high):.4g}]"
        value = value.value
    if isinstance(value, Tensor):
        return f"{float(value.double().nanquantile(0.5)):.4g}" if value.numel() else ""
    return "" if value is None else str(value)


@runtime_checkable
class Analysis(Protocol):
    """What a file under `analyses/` defines: the constructor's keyword arguments are its options.

    It may also say in `gives` what its finding holds of "importance", "widths" and "removable", so that an option that
    asks it for something else is refused before anything runs; one that does not is taken to give them all.

    Attributes:
        observes: the kinds of module it wants to see.
        needs_gradients: whether views must carry the loss gradient at the layer's output.
        needs_labels: whether it cannot work without labels.
    """

    observes: tuple[type[nn.Module], ...]
    needs_gradients: bool
    needs_labels: bool

    def observe(self, view: LayerView) -> None:
        """Adds one layer on one batch to running sums."""

    def conclude(self) -> Finding:
        """Turns the running sums into a finding."""


@runtime_checkable
class Joinable(Protocol):
    """An analysis of which several processes can each do a part; one without these sees all batches on each of them."""

    def sums(self) -> Mapping[str, Tensor]:
        """The running sums of the batches seen here, by name; empty where batches change nothing."""

    def join(self, parts: Sequence[Mapping[str, Tensor]]) -> None:
        """Replaces them by those of all batches: `parts` are the sums of every process, this one included."""

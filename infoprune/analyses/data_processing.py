"""Where information about the image is lost on the way, and which blocks neither lose nor gain any."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from infoprune.analyses._kernels import Kernels, labels_of
from infoprune.analyses._reading import ACTIVATIONS
from infoprune.analyses.base import Finding, Flag, LayerView, Measure
from infoprune.config.ranges import KernelFactor, Order, Permutations, ProperShare, Seed, in_range
from infoprune.information.entropy import SATURATION_BITS
from infoprune.information.resampling import Interval, bootstrap_interval

FIGURES = ("input", "label", "input_debiased", "label_debiased", "error", "batches")


@dataclass
class _Layer:
    """One layer's figures, one number per mini-batch, and what it takes to see the blocks."""

    weighted: bool
    shape: tuple[int, int]
    """Channels in and out; equal for an activation."""
    keeps_size: bool
    input: list[float] = field(default_factory=list)
    label: list[float] = field(default_factory=list)
    input_debiased: list[float] = field(default_factory=list)
    label_debiased: list[float] = field(default_factory=list)
    error: list[float] = field(default_factory=list)
    batches: list[int] = field(default_factory=list)
    margin: float = math.inf


class DataProcessing:
    """The two data-processing inequalities, and blocks to remove ("Understanding CNNs…", Sec. III.A).

    Forward I(X;T_1) ≥ I(X;T_2) ≥ … ≥ I(X;T_K); backward I(δ_K;δ_{K−1}) ≥ … ≥ I(δ_K;δ_1), δ_k the loss gradient at layer
    k's output. Each step's drop stands at the later layer with a bootstrap interval over mini-batches; "violated" is 1
    where the whole interval is below 0. I(T;Y), and both less their chance value, stand beside. Layers of different
    size have different kernels, so that a violation of a few tenths of a bit can be the estimator's, and up to one bit
    where maps turn into single numbers.

    A block is removable where, from what comes in to what comes out, neither the loss of I(X;T) nor the gain of I(T;Y),
    both less their chance value, lies above the noise. Blocks are recognised by names: modules whose convolutions lead
    from a width back to it without striding and end in an activation (residual blocks with an identity shortcut), and
    single convolutions of equal width outside of such. Heuristic, to be confirmed by measurement on validation data.

    Where the paper errs: the inequalities hold for a Markov chain, which shortcuts break, and its estimates at h = 5
    saturate, whereby every layer knows all of X; nothing is concluded from saturated layers here. The default
    standardises and widens the kernels; the preset "paper" is α = 1.01, h = 5 forward and 0.1 for the errors.

    Args:
        preset: "corrected", or "paper": α = 1.01, Silverman's width, plain products.
        alpha: Rényi order; the preset's if not given.
        gamma: factor of the standardized width.
        h: factor of the Silverman width for activations.
        error_h: factor of the Silverman width for errors.
        permutations: of the samples, whose mean information is taken off as bias before blocks are judged; 0 for none.
        level: confidence of the bootstrap intervals.
        seed: of permutations and bootstrap.
    """

    observes: tuple[type[nn.Module], ...] = (nn.Conv2d, nn.Linear, *ACTIVATIONS)
    needs_gradients = True
    needs_labels = True
    across_layers = True
    gives = ("removable",)
    name = "data_processing"

    @in_range("[analyses.data_processing]")
    def __init__(
        self,
        *,
        preset: Literal["corrected", "paper"] = "corrected",
        alpha: Order | None = None,
        gamma: KernelFactor = 1.0,
        h: KernelFactor = 5.0,
        error_h: KernelFactor = 0.1,
        permutations: Permutations = 10,
        level: ProperShare = 0.95,
        seed: Seed = 0,
    ) -> None:
        self.kernels = Kernels.of(self.name, preset, alpha, gamma, h)
        self.errors = Kernels.of(self.name, preset, alpha, gamma, error_h)
        self.permutations, self.level, self.seed = permutations, level, seed
        self._layers: dict[str, _Layer] = {}

    def observe(self, view: LayerView) -> None:
        """Adds I(X;T), I(T;Y) and I(δ_K;δ) of one layer on one batch; views come from the last layer to the first."""
        labels = labels_of(self.name, view)
        # An activation that is one module used several times: the last call, whose gradient comes first, stands for it.
        if view.gradients is None or not view.batch.once((id(self), view.layer), _Once).first():
            return
        layer = self._layers.setdefault(view.layer, _of(view))
        point = self.kernels.point(view, labels, self.permutations, self.seed)
        layer.input.append(point.input)
        layer.label.append(point.label)
        layer.input_debiased.append(point.input_debiased)
        layer.label_debiased.append(point.label_debiased)
        layer.batches.append(view.batch.index)
        layer.margin = min(layer.margin, point.margin)
        # The scale of a loss gradient means nothing, and a mean over the batch makes it tiny.
        error = view.gradients * len(labels)
        gram = self.errors.of_set(error)
        last = view.batch.once((id(self), "last error"), lambda: gram)
        own, of_last, joint = self.errors.entropy(gram, last, gram * last).tolist()
        layer.error.append(own + of_last - joint)

    def sums(self) -> dict[str, Tensor]:
        """The figures of this process's batches, by layer: `mini-batches x figures`."""
        found = {}
        for name, layer in self._layers.items():
            rows = [getattr(layer, figure) for figure in FIGURES]
            found[f"{name}/figures"] = torch.tensor(rows, dtype=torch.float64).T
            found[f"{name}/margin"] = torch.tensor(layer.margin, dtype=torch.float64)
        return found

    def join(self, parts: Sequence[Mapping[str, Tensor]]) -> None:
        """Takes in those of all processes, in the order of the batches."""
        for name, layer in self._layers.items():
            rows = torch.cat([part[f"{name}/figures"] for part in parts])
            rows = rows[rows[:, -1].argsort(stable=True)]
            for figure, values in zip(FIGURES, rows.T.tolist(), strict=True):
                setattr(layer, figure, values)
            layer.margin = min(float(part[f"{name}/margin"]) for part in parts)

    def conclude(self) -> Finding:
        """Measures of every layer with intervals, removable blocks, and saturated layers flagged."""
        order = list(reversed(self._layers))
        measures = {name: self._measures(name) for name in order}
        path = [name for name in order if self._layers[name].weighted]
        for before, after in pairwise(path):
            self._drops(measures, before, after)
        saturated = {name for name in order if self._layers[name].margin < SATURATION_BITS}
        flags = [
            Flag(
                name,
                "saturated",
                f"S(X,T) comes within {max(0.0, self._layers[name].margin):.3f} bit of log2 n: it neither loses nor "
                "keeps, and no depth is concluded from it",
            )
            for name in order
            if name in saturated
        ]
        removable = []
        for block, ends in self.blocks().items():
            if ends is not None and not set(ends) & saturated:
                loss, gain = self._between(*ends)
                measures[block] = {
                    **measures.get(block, {}),
                    "block: loss of I(X;T)": loss,
                    "block: gain of I(T;Y)": gain,
                }
                if _idle(loss) and _idle(gain):
                    removable.append(block)
        return Finding(self.name, removable=tuple(removable), measures=measures, flags=tuple(flags))

    def _interval(self, values: list[float]) -> Interval:
        generator = torch.Generator().manual_seed(self.seed)
        return bootstrap_interval(torch.tensor(values, dtype=torch.float64), level=self.level, generator=generator)

    def _measures(self, name: str) -> dict[str, Measure]:
        layer = self._layers[name]
        terms = {"I(X;T)": layer.input, "I(T;Y)": layer.label, "I(δK;δ)": layer.error}
        if self.permutations:
            terms |= {"I(X;T) debiased": layer.input_debiased, "I(T;Y) debiased": layer.label_debiased}
        return {term: _measure(self._interval(values), len(values)) for term, values in terms.items()}

    def _drops(self, measures: dict[str, dict[str, Measure]], before: str, after: str) -> None:
        """The forward drop at the later layer, and the backward one, towards the first layer, at the earlier."""
        first, second = self._layers[before], self._layers[after]
        for kind, place, drop in (
            ("forward", after, _difference(first.input, second.input)),
            ("backward", before, _difference(second.error, first.error)),
        ):
            found = self._interval(drop)
            measures[place][f"{kind} drop"] = _measure(found, len(drop))
            measures[place][f"{kind} violated"] = Measure(torch.tensor(float(found.high < 0)), unit="yes or no")

    def _between(self, before: str, after: str) -> tuple[Measure, Measure]:
        """What is lost of I(X;T) and gained of I(T;Y) between two layers, both less their chance value."""
        first, second = self._layers[before], self._layers[after]
        loss = _difference(first.input_debiased, second.input_debiased)
        gain = _difference(second.label_debiased, first.label_debiased)
        found = [_measure(self._interval(each), len(each)) for each in (loss, gain)]
        return found[0], found[1]

    def blocks(self) -> dict[str, tuple[str, str] | None]:
        """Blocks that could be removed, with what was observed before and at their end, if anything was."""
        return _candidates(list(reversed(self._layers)), self._layers)


def _idle(change: Measure) -> bool:
    """Whether a change is not above the noise; one batch shows no noise."""
    return change.low is not None and not bool(change.low > 0)


class _Once:
    """True the first time."""

    def __init__(self) -> None:
        self._seen = False

    def first(self) -> bool:
        seen, self._seen = self._seen, True
        return not seen


def _of(view: LayerView) -> _Layer:
    module, width = view.module, view.activations.shape[1]
    if isinstance(module, nn.Conv2d):
        return _Layer(True, (module.in_channels, width), all(step == 1 for step in module.stride))
    if isinstance(module, nn.Linear):
        return _Layer(True, (module.in_features, width), True)
    return _Layer(False, (width, width), True)


def _difference(first: list[float], second: list[float]) -> list[float]:
    return [a - b for a, b in zip(first, second, strict=False)]


def _measure(found: Interval, batches: int) -> Measure:
    return Measure(found.mean, found.low, found.high) if batches > 1 else Measure(found.mean)


def _candidates(order: list[str], layers: dict[str, _Layer]) -> dict[str, tuple[str, str] | None]:
    """Blocks whose width and size come out as they went in, with the layers before and at their end, if observed."""
    weighted = [name for name in order if layers[name].weighted]
    parents = {name[:at] for name in weighted for at in range(len(name)) if name[at] == "."}
    found: dict[str, tuple[str, str] | None] = {}
    covered: set[str] = set()
    # From the smallest parent up, so that a stage made of blocks does not hide them; of parents with the same
    # convolutions, which follow each other here, the outermost is the block and takes the shortcut with it.
    inside = {parent: [name for name in weighted if name.startswith(f"{parent}.")] for parent in parents}
    for parent in sorted(parents, key=lambda parent: (len(inside[parent]), -len(parent), parent)):
        own = inside[parent]
        same = {other for other in found if inside[other] == own}
        if len(own) < 2 or not _keeps(own, layers) or (covered & set(own) and not same):
            continue
        ends = _ends(parent, own, order, layers)
        inner = [found.pop(other) for other in same]
        found[parent] = ends or next((each for each in inner if each), None)
        covered |= set(own)
    for name in weighted:
        before = order.index(name) - 1
        if name not in covered and layers[name].shape[0] == layers[name].shape[1] and _keeps([name], layers):
            found[name] = (order[before], name) if before >= 0 else None
    return found


def _keeps(own: list[str], layers: dict[str, _Layer]) -> bool:
    return layers[own[0]].shape[0] == layers[own[-1]].shape[1] and all(layers[name].keeps_size for name in own)


def _ends(parent: str, own: list[str], order: list[str], layers: dict[str, _Layer]) -> tuple[str, str] | None:
    """What was observed last before the block, and the activation behind its sum; None where no module shows it."""
    before = order.index(own[0]) - 1
    behind = [name for name in order[order.index(own[-1]) + 1 :] if name.startswith(f"{parent}.")]
    return (order[before], behind[0]) if before >= 0 and behind else None

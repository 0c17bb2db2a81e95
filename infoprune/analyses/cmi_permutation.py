"""How many of a layer's filters it takes until the rest says nothing new about the class."""

import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal

import torch
from msgspec import Meta
from torch import Tensor, nn

from infoprune.analyses._kernels import Kernels, labels_of
from infoprune.analyses.base import Curve, Finding, Flag, LayerView, Measure
from infoprune.config.ranges import KernelFactor, ProperShare, Seed, in_range
from infoprune.information.entropy import SATURATION_BITS, label_entropy, label_mutual_information
from infoprune.information.permutation import TIE_BITS, cmi_permutation
from infoprune.information.selection import VARIANTS, Selection, packed, unpacked, width_interval


@dataclass
class _Layer:
    """What the mini-batches of one layer came to."""

    ranks: Tensor
    selections: list[Selection] = field(default_factory=list)
    batches: list[int] = field(default_factory=list)


class CmiPermutation:
    """Width by CMI-permutation ("Understanding CNNs…", Appendix B, Algorithm 1; Yu and Príncipe, 1811.11971).

    Filters join greedily by I(Y; {T_s, t}); a permutation test on I({T_r − t}; Y | {T_s, t}) decides when to stop,
    on each mini-batch again, and the recommended width is the mean over mini-batches, rounded up. Importance is the
    order of joining: 1 for the first, falling by 1/C; filters that never join score below 1/C, by I(T_i; Y).

    Where the paper errs: once S(T_s) ≈ log2 n both sides of its test are round-off, and its ≥ counts ties against
    going on, so that it underestimates (5 of 128, 21 of 512, as the paper remarks itself). The default widens the
    kernel of a set by √C, sees labels by a delta kernel, never counts a tie as evidence, corrects for choosing the
    best of many candidates, and stops as "saturated" where the entropy has no room left. A layer of which fewer
    than half the mini-batches came to a verdict gets no width. The preset "paper" is Algorithm 1 as printed; what
    it counts stands under the measure "width", and becomes a recommendation only where it is not saturated.
    Heuristic: the test has power where filters are redundant; for complementary filters it stops early, so that the
    width is a lower estimate.

    Args:
        preset: "corrected", or "paper": α = 1.01, Silverman's width, plain products, RBF labels, ties count.
        significance: level of the permutation test.
        permutations: P, drawn for each tested filter.
        batches: mini-batches of each layer that are looked at, from the first on; time grows with their number.
        max_filters: a selection that reaches this number stops undecided; 0 for no limit.
        gamma: factor of the standardized width.
        h: factor of the Silverman width.
        seed: of the permutations.
    """

    observes: tuple[type[nn.Module], ...] = (nn.Conv2d, nn.Linear)
    needs_gradients = False
    needs_labels = True
    gives = ("importance", "widths")
    name = "cmi_permutation"

    @in_range("[analyses.cmi_permutation]")
    def __init__(
        self,
        *,
        preset: Literal["corrected", "paper"] = "corrected",
        significance: ProperShare = 0.05,
        permutations: Annotated[int, Meta(ge=1, le=100_000)] = 40,
        batches: Annotated[int, Meta(ge=1, le=1_000_000)] = 3,
        max_filters: Annotated[int, Meta(ge=0, le=65_536)] = 0,
        gamma: KernelFactor = 1.0,
        h: KernelFactor = 5.0,
        seed: Seed = 0,
    ) -> None:
        self.kernels = Kernels.of(self.name, preset, None, gamma, h)
        self.preset, self.significance, self.permutations = preset, significance, permutations
        self.batches, self.max_filters, self.seed = batches, max_filters, seed
        self._layers: dict[str, _Layer] = {}

    def observe(self, view: LayerView) -> None:
        """Selects filters on one batch, while `batches` wants more of this layer."""
        labels = labels_of(self.name, view)
        exponents = self.kernels.exponents(view)
        count = len(exponents)
        layer = self._layers.setdefault(view.layer, _Layer(torch.zeros(count, dtype=torch.float64)))
        if view.batch.index >= self.batches:
            return
        key = (self.seed * 1009 + view.batch.index) * 1_000_003 + zlib.crc32(view.layer.encode())
        selection = cmi_permutation(
            exponents,
            labels,
            variant=VARIANTS[self.preset],
            permutations=self.permutations,
            significance=self.significance,
            max_filters=self.max_filters or None,
            generator=torch.Generator().manual_seed(key),
        )
        layer.selections.append(selection)
        layer.batches.append(view.batch.index)
        # At most H(Y), so that the share is at most 1 and never reaches a filter that joined.
        alone = label_mutual_information(torch.exp(-exponents), labels, alpha=self.kernels.alpha).cpu()
        ranks = alone.clamp_min(0) / max(float(label_entropy(labels, alpha=self.kernels.alpha)), 1e-9) / (count + 1)
        joined = torch.tensor(selection.order, dtype=torch.long)
        ranks[joined] = 1 - torch.arange(len(joined), dtype=torch.float64) / count
        layer.ranks += ranks

    def sums(self) -> dict[str, Tensor]:
        """The selections on this process's batches, by layer."""
        return {
            f"{name}/{part}": value
            for name, layer in self._layers.items()
            for part, value in {
                **packed(layer.selections),
                "ranks": layer.ranks,
                "batches": torch.tensor(layer.batches, dtype=torch.long),
            }.items()
        }

    def join(self, parts: Sequence[Mapping[str, Tensor]]) -> None:
        """Takes in those of all processes, in the order of the batches."""
        for name, layer in self._layers.items():
            own = [
                {key.removeprefix(f"{name}/"): part[key] for key in part if key.startswith(f"{name}/")}
                for part in parts
            ]
            found = [pair for part in own for pair in zip(part["batches"].tolist(), unpacked(part), strict=True)]
            found.sort(key=lambda pair: pair[0])
            layer.batches, layer.selections = [batch for batch, _ in found], [selection for _, selection in found]
            layer.ranks = torch.stack([part["ranks"] for part in own]).sum(0)

    def conclude(self) -> Finding:
        """Importance by order of joining, widths where the test decided, and flags where it could not."""
        importance, widths, measures, flags = {}, {}, {}, []
        for name, layer in self._layers.items():
            importance[name] = layer.ranks / len(layer.selections)
            decided = [selection for selection in layer.selections if _decided(selection)]
            measures[name] = _measures(layer, self.seed)
            if 2 * len(decided) < len(layer.selections):
                stops = ", ".join(sorted({s.stop for s in layer.selections if not _decided(s)}))
                reason = (
                    f"{len(layer.selections) - len(decided)} of {len(layer.selections)} selections ended without a "
                    f"verdict ({stops}): larger batches or a wider kernel are needed; no width is concluded"
                )
                flags.append(Flag(name, "saturated", reason))
            else:
                mean = sum(selection.width for selection in decided) / len(decided)
                # A layer in which no filter passes still needs one to pass anything on.
                widths[name] = max(1, math.ceil(mean - 1e-9))
        curves = {
            name: {"CMI": _curve(layer.selections[0])}
            for name, layer in self._layers.items()
            if layer.selections[0].steps
        }
        return Finding(
            self.name, importance=importance, widths=widths, measures=measures, flags=tuple(flags), curves=curves
        )

    def selections(self, layer: str) -> list[Selection]:
        """Every tested filter of every mini-batch, for drawing the chance band (Fig. 6)."""
        return list(self._layers[layer].selections)


def _curve(selection: Selection) -> Curve:
    """What the rest still says about Y after each tested filter, and the band that chance leaves (Fig. 6)."""
    rows = [(step.conditional, step.permuted_low, step.permuted_high) for step in selection.steps]
    y, low, high = torch.tensor(rows, dtype=torch.float64).round(decimals=6).T
    return Curve(torch.arange(1, len(rows) + 1), y, low, high)


def _decided(selection: Selection) -> bool:
    """Whether a width follows: from a test with room left, or because the rest says exactly nothing more about Y."""
    if not selection.steps:
        return selection.conclusive
    last = selection.steps[-1]
    nothing_left = selection.stop == "ties" and last.conditional <= TIE_BITS
    return last.margin >= SATURATION_BITS and (selection.conclusive or nothing_left)


def _measures(layer: _Layer, seed: int) -> dict[str, Measure]:
    """Selected width with its bootstrap interval over mini-batches, and the last information about Y."""
    found = width_interval(layer.selections, generator=torch.Generator().manual_seed(seed))
    low, high = (found.low, found.high) if len(layer.selections) > 1 else (None, None)
    known = [max((step.information for step in selection.steps), default=0.0) for selection in layer.selections]
    margins = [selection.steps[-1].margin if selection.steps else math.nan for selection in layer.selections]
    return {
        "width": Measure(found.mean, low, high, "filters"),
        "I(Y;Ts)": Measure(torch.tensor(sum(known) / len(known))),
        "log2 n − S(Ts)": Measure(torch.tensor(sum(margins) / len(margins))),
    }

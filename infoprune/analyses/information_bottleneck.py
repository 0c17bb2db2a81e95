"""Per-filter information-bottleneck score: what a filter keeps of the image against what it says about the class."""

import zlib
from typing import Annotated, Literal

import torch
from msgspec import Meta
from torch import Tensor, nn

from infoprune.analyses._kernels import PRESETS, Kernels, labels_of
from infoprune.analyses._running import RunningByLayer, require, saturated
from infoprune.analyses.base import Finding, LayerView
from infoprune.config.ranges import KernelFactor, Order, Permutations, Seed, in_range
from infoprune.information.scoring import FilterInformation, filter_information


class InformationBottleneck(RunningByLayer):
    """IB_i = I(X;T_i) − β I(T_i;Y); the smaller, the more important the filter (Yu et al., 1804.06537, Sec. IV).

    Both terms are matrix-based Rényi estimates in bits, averaged over mini-batches. X is the network's input, T_i
    the filter's own output map, Y the label under a delta kernel. The paper's RBF width saturates on maps of more
    than a few pixels, so that all filters look alike; the default standardises each variable first (Tapia and
    Estévez, 2020), which also makes the score blind to the scale and shift of a batch norm behind the filter.

    Raw estimates are biased upwards on continuous maps, the more so the more pixels; with `permutations` their mean
    over permuted samples is taken off both terms, and importance rests on what is left. The score "label" is
    I(T_i;Y) alone, as HRel (2202.10716) ranks filters. The preset "paper" is the order and width of Sec. III.

    Args:
        score: "bottleneck", −IB, or "label", I(T;Y) alone (HRel); the larger, the more important the filter.
        beta: weight of what the filter says about the class against what it keeps of the image; 0 or more.
        preset: "corrected", or "paper": α = 1.01 and Silverman's width.
        permutations: of the samples, whose mean information is taken off as bias; 0 for raw estimates, or 2 or more.
        alpha: Rényi order; 1 is the Shannon limit, where information is never negative; the preset's if not given.
        kernel_width: rule for the RBF width: "standardized", or "silverman"; the preset's if not given.
        gamma: factor of the standardized width.
        h: factor of the Silverman width.
        seed: of the permutations.
    """

    observes: tuple[type[nn.Module], ...] = (nn.Conv2d, nn.Linear)
    needs_gradients = False
    needs_labels = True
    gives = ("importance",)
    name = "information_bottleneck"

    @in_range("[analyses.information_bottleneck]")
    def __init__(
        self,
        *,
        score: Literal["bottleneck", "label"] = "bottleneck",
        beta: Annotated[float, Meta(ge=0, le=1_000_000)] = 2.0,
        preset: Literal["corrected", "paper"] = "corrected",
        permutations: Permutations = 0,
        alpha: Order | None = None,
        kernel_width: Literal["standardized", "silverman"] | None = None,
        gamma: KernelFactor = 1.0,
        h: KernelFactor = 5.0,
        seed: Seed = 0,
    ) -> None:
        super().__init__()
        kernels = Kernels.of(self.name, preset, alpha, gamma, h)
        rules = (None, *(rule for _, rule, _ in PRESETS.values()))
        require(
            self.name,
            [
                ("score", score, score in ("bottleneck", "label"), "'bottleneck' or 'label'"),
                ("permutations", permutations, permutations != 1, "0, or 2 or more"),
                ("kernel_width", kernel_width, kernel_width in rules, "'standardized' or 'silverman'"),
            ],
        )
        self.kernels = kernels.with_rule(kernel_width)
        self.score, self.beta, self.permutations, self.seed = score, beta, permutations, seed

    def observe(self, view: LayerView) -> None:
        """Adds both information terms of every filter on one batch."""
        labels, gram = labels_of(self.name, view), self.kernels.of_input(view.batch)
        found = self._information(view, gram, labels)
        figures = {"I(X;T)": found.input, "I(T;Y)": found.label}
        if self.permutations:
            key = (self.seed * 1009 + view.batch.index) * 1_000_003 + zlib.crc32(view.layer.encode())
            generator = torch.Generator().manual_seed(key)
            orders = [torch.randperm(len(labels), generator=generator) for _ in range(self.permutations)]
            by_chance = [self._information(view, *_reordered(gram, labels, order)) for order in orders]
            figures["I(X;T) debiased"] = found.input - torch.stack([each.input for each in by_chance]).mean(0)
            figures["I(T;Y) debiased"] = found.label - torch.stack([each.label for each in by_chance]).mean(0)
        layer = self.layer(view.layer)
        layer.add(figures)
        layer.margin = min(layer.margin, float(found.margin.min()))

    def conclude(self) -> Finding:
        """Importance −IB or I(T;Y) per filter, all terms with intervals, and saturated layers flagged."""
        kind = " debiased" if self.permutations else ""
        importance = {}
        for name, layer in self._layers.items():
            kept, told = (layer.mean(f"{term}{kind}") for term in ("I(X;T)", "I(T;Y)"))
            importance[name] = told if self.score == "label" else -(kept - self.beta * told)
        measures = {name: layer.measures() for name, layer in self._layers.items()}
        return Finding(
            self.name, importance=importance, measures=measures, flags=saturated(self._layers, "S(X,T) of a filter")
        )

    def _information(self, view: LayerView, gram: Tensor, labels: Tensor) -> FilterInformation:
        kernels = self.kernels
        return filter_information(
            view.activations, gram, labels, alpha=kernels.alpha, rule=kernels.rule, gamma=kernels.gamma, h=kernels.h
        )


def _reordered(gram: Tensor, labels: Tensor, order: Tensor) -> tuple[Tensor, Tensor]:
    """The image and the label of other samples than the filters saw."""
    order = order.to(labels.device)
    return gram[order][:, order], labels[order]

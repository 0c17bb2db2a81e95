"""Where each layer stands in the information plane, and, collected over steps, how training moves it there."""

import zlib
from collections.abc import Mapping
from typing import Annotated, Literal

import torch
from msgspec import Meta
from torch import Tensor, nn

from infoprune.analyses._kernels import Kernels, labels_of
from infoprune.analyses._running import RunningByLayer, saturated
from infoprune.analyses.base import Finding, LayerView
from infoprune.config.ranges import KernelFactor, Order, Permutations, Seed, in_range
from infoprune.information.decomposition import non_redundant, sample_pairs
from infoprune.information.ensembles import pair_information
from infoprune.information.gram import delta

COORDINATES = {False: ("I(X;T)", "I(T;Y)"), True: ("non-redundant X", "non-redundant Y")}
"""Names of the measures that are the plane's axes: plain, and modified."""


class InformationPlane(RunningByLayer):
    """(I(X;T), I(T;Y)) per layer, and the modified plane ("Understanding CNNs…", Sec. III.C, Figs. 7 and 13).

    T is all filters of a layer as one variable, Y the label under a delta kernel. In the modified plane both
    coordinates become the weighted non-redundant information of Eq. (12), averaged over pairs of filters, about X and
    about Y; the paper sees compression there that the plain plane does not show. One analysis sees a model at one
    step: run it again at each step that is to be a point (`finetune` tells `on_step` of each, and looking changes
    nothing), and join the findings with `trajectories`.

    Where the paper errs: its kernels saturate in wide layers, which then all stand at I(X;T) = H(X), and its RBF on
    one-hot labels sees 0.6 of the 3.3 bits of ten classes; the default widens, standardises, and takes a delta kernel
    for labels. Raw estimates are biased upwards; less their chance value they stand beside. The preset "paper" keeps
    the delta kernel but has its order, width and plain products.

    Args:
        preset: "corrected", or "paper": α = 1.01, Silverman's width, plain products.
        alpha: Rényi order; the preset's if not given.
        gamma: factor of the standardized width.
        h: factor of the Silverman width.
        pairs: pairs of filters for the modified plane, drawn again in each mini-batch; 0 leaves it out.
        permutations: of the samples, for the coordinates less their chance value; 0 leaves them out.
        seed: of pairs and permutations.
    """

    observes: tuple[type[nn.Module], ...] = (nn.Conv2d, nn.Linear)
    needs_gradients = False
    needs_labels = True
    gives: tuple[str, ...] = ()
    name = "information_plane"

    @in_range("[analyses.information_plane]")
    def __init__(
        self,
        *,
        preset: Literal["corrected", "paper"] = "corrected",
        alpha: Order | None = None,
        gamma: KernelFactor = 1.0,
        h: KernelFactor = 5.0,
        pairs: Annotated[int, Meta(ge=0, le=1_000_000)] = 16,
        permutations: Permutations = 10,
        seed: Seed = 0,
    ) -> None:
        super().__init__()
        self.kernels = Kernels.of(self.name, preset, alpha, gamma, h)
        self.pairs, self.permutations, self.seed = pairs, permutations, seed

    def observe(self, view: LayerView) -> None:
        """Adds both coordinates of one layer on one batch, plain and modified."""
        labels = labels_of(self.name, view)
        point = self.kernels.point(view, labels, self.permutations, self.seed)
        figures: dict[str, Tensor | float] = {"I(X;T)": point.input, "I(T;Y)": point.label}
        if self.permutations:
            figures |= {"I(X;T) debiased": point.input_debiased, "I(T;Y) debiased": point.label_debiased}
        if self.pairs and view.activations.shape[1] > 1:
            figures |= self._modified(view, self.kernels.of_input(view.batch), delta(labels))
        layer = self.layer(view.layer)
        layer.add(figures)
        layer.margin = min(layer.margin, point.margin)

    def conclude(self) -> Finding:
        """One point per layer and plane, as measures with intervals; saturated layers flagged."""
        measures = {name: running.measures() for name, running in self._layers.items()}
        return Finding(self.name, measures=measures, flags=saturated(self._layers, "S(X,T)"))

    def _modified(self, view: LayerView, image: Tensor, label: Tensor) -> dict[str, Tensor]:
        """2·I(·;{Ti,Tj}) − I(·;Ti) − I(·;Tj) about image and label, Eq. (12), averaged over pairs."""
        key = (self.seed * 1009 + view.batch.index) * 1_000_003 + zlib.crc32(view.layer.encode())
        generator = torch.Generator().manual_seed(key)
        drawn = sample_pairs(view.activations.shape[1], limit=self.pairs, generator=generator)
        # Only of the filters that were drawn is the information alone needed.
        filters, places = torch.unique(drawn, return_inverse=True)
        exponents = self.kernels.exponents(view)[filters.to(view.activations.device)]
        found = {}
        for name, target in (("non-redundant X", image), ("non-redundant Y", label)):
            i1, i2, both, _ = pair_information(
                exponents, target, places, alpha=self.kernels.alpha, widen=self.kernels.widen
            )
            found[name] = non_redundant(i1, i2, both).mean()
        return found


def trajectories(steps: Mapping[int, Finding], *, modified: bool = False) -> dict[str, Tensor]:
    """The way of each layer through the plane: rows (step, about X, about Y), in the order of the steps.

    Args:
        steps: training step -> what this analysis found of the model at that step.
        modified: the modified plane in place of the plain one.

    Returns:
        Per layer `points x 3`; steps in which a layer has no such coordinates are left out.

    >>> from infoprune.analyses.base import Measure
    >>> point = {"I(X;T)": Measure(torch.tensor(2.0)), "I(T;Y)": Measure(torch.tensor(1.0))}
    >>> trajectories({10: Finding("information_plane", measures={"conv": point})})
    {'conv': tensor([[10.,  2.,  1.]], dtype=torch.float64)}
    """
    across, up = COORDINATES[modified]
    found: dict[str, list[list[float]]] = {}
    for step in sorted(steps):
        for layer, measures in steps[step].measures.items():
            if across in measures and up in measures:
                point = [float(step), float(measures[across].value), float(measures[up].value)]
                found.setdefault(layer, []).append(point)
    return {layer: torch.tensor(points, dtype=torch.float64) for layer, points in found.items()}

"""Width budgets by the information scaling law: ranks of mixing matrices, and what entropy gains a real network has."""

import math
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from infoprune.analyses._folding import NORMS, Folding
from infoprune.analyses._kernels import Kernels
from infoprune.analyses._running import RunningByLayer, saturated
from infoprune.analyses.base import Finding, Flag, LayerView, Measure
from infoprune.config.ranges import KernelFactor, Order, ProperShare, in_range
from infoprune.information.entropy import SATURATION_BITS, saturation_margin
from infoprune.information.spectrum import effective_rank, stable_rank
from infoprune.information.threads import one_thread_each

NETWORK = "network"
"""Where figures of the network as a whole stand among the measures."""


class InformationScaling(RunningByLayer):
    """Ranks, log2-width budgets, C and β ("Information Scaling Law of Deep Neural Networks", Theorems 3–5).

    The law is proved for convolutional arithmetic circuits, where a layer of width r can add at most log2 r bits at
    each mapping; there it is exact (`information.convac`, `models.convac`). On a real CNN all of this is heuristic:
    the mixing matrix of a layer is its weight, unfolded to outputs x inputs·taps, with the batch norm behind it folded
    in, and neither row-stochastic nor followed by a product. Per layer: rank, condition number, stable rank
    ‖W‖_F²/‖W‖₂², effective rank 2^H(σ/Σσ), log2 of the width, the entropy S(T) of all its filters, and its gain and
    ratio over the layer before. For the network: C, the largest gain, and β, the largest ratio, of entropies that are
    not saturated. The recommended width is the effective rank, rounded up, where that is below the width.

    Where the paper errs, see `information.convac`: an invertible matrix does lose information, Eq. (29) holds on the
    mean only, and β is undefined at entropy 0. Entropies fall through a real layer as well as rise, which its law
    has no place for; C may then be negative.

    Args:
        preset: "corrected", or "paper": α = 1.01, Silverman's width, plain products, which saturate.
        alpha: Rényi order; the preset's if not given.
        gamma: factor of the standardized width.
        h: factor of the Silverman width.
        tolerance: singular values below this share of the largest do not count towards the rank.
    """

    observes: tuple[type[nn.Module], ...] = (nn.Conv2d, nn.Linear, *NORMS)
    needs_gradients = False
    needs_labels = False
    across_layers = True
    gives = ("widths",)
    name = "information_scaling"

    @in_range("[analyses.information_scaling]")
    def __init__(
        self,
        *,
        preset: Literal["corrected", "paper"] = "corrected",
        alpha: Order | None = None,
        gamma: KernelFactor = 1.0,
        h: KernelFactor = 5.0,
        tolerance: ProperShare = 1e-3,
    ) -> None:
        super().__init__()
        self.kernels = Kernels.of(self.name, preset, alpha, gamma, h)
        self.tolerance = tolerance
        self._folding = Folding()
        self._before: tuple[int, float] = (-1, math.nan)

    def observe(self, view: LayerView) -> None:
        """Adds the entropy of a layer on one batch, and its gain over the layer before."""
        if not self._folding.see(view):
            return
        entropy = self.kernels.entropy(self.kernels.of_layer(view))[0]
        margin = float(saturation_margin(entropy, len(view.activations)))
        batch, before = self._before
        known = float(entropy) if margin >= SATURATION_BITS else math.nan
        before = before if batch == view.batch.index else math.nan
        layer = self.layer(view.layer)
        layer.margin = min(layer.margin, margin)
        # NaN, where an entropy is saturated or 0, is left out of the means.
        ratio = known / before if before > 1e-9 else math.nan
        layer.add({"entropy": entropy, "entropy gain": known - before, "entropy ratio": ratio})
        self._before = (view.batch.index, known)

    def conclude(self) -> Finding:
        """Widths by effective rank, ranks and entropies per layer, C and β of the network."""
        widths: dict[str, int] = {}
        measures: dict[str, Mapping[str, Measure]] = {}
        matrices = self._folding.stacked()
        for name, running in self._layers.items():
            figures = _ranks(matrices[name], self.tolerance)
            width = len(matrices[name])
            if 0 < float(figures["effective rank"].value) <= width - 1:
                widths[name] = math.ceil(float(figures["effective rank"].value) - 1e-6)
            found = running.measures({"entropy ratio": "ratio"})
            defined = {term: measure for term, measure in found.items() if not measure.value.isnan()}
            measures[name] = {**figures, **defined}
        measures[NETWORK] = {"C": Measure(self._largest("gain")), "β": Measure(self._largest("ratio"), unit="ratio")}
        full = [flag.layer for flag in saturated(self._layers, "S(T)")]
        flags: tuple[Flag, ...] = ()
        if full:
            flags = (Flag(NETWORK, "saturated", f"C and β leave out saturated entropies of {', '.join(full)}"),)
        return Finding(self.name, widths=widths, measures=measures, flags=flags)

    def _largest(self, what: str) -> Tensor:
        means = torch.stack([running.mean(f"entropy {what}") for running in self._layers.values()])
        known = means[~means.isnan()]
        return known.max() if len(known) else torch.tensor(math.nan)


def _ranks(matrix: Tensor, tolerance: float) -> dict[str, Measure]:
    """What the singular values of a mixing matrix say."""
    with one_thread_each():
        values = torch.linalg.svdvals(matrix)
    rank = int((values > tolerance * values[0]).sum())
    smallest = float(values[-1])
    return {
        "rank": Measure(torch.tensor(float(rank)), unit="filters"),
        "effective rank": Measure(effective_rank(values), unit="filters"),
        "stable rank": Measure(stable_rank(values), unit="filters"),
        "condition number": Measure(values[0] / smallest if smallest > 0 else torch.tensor(math.inf), unit="ratio"),
        "log2 width": Measure(torch.tensor(math.log2(len(matrix)))),
    }

"""How much energy reaches each layer and filter, how it decays, and how that compares with scattering networks."""

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, NamedTuple

import numpy as np
import torch
from msgspec import Meta
from torch import nn

from infoprune.analyses._folding import NORMS, Folding
from infoprune.analyses._running import RunningByLayer
from infoprune.analyses.base import Finding, Flag, LayerView, Measure
from infoprune.config.ranges import PositiveShare, ProperShare, in_range
from infoprune.information.spectrum import frame_bounds, scattering_depth

NETWORK = "network"
"""Where figures of the network as a whole stand among the measures."""
LARGEST = 256
"""Channels up to which frame bounds are found on the whole grid; beyond, on 8 frequencies per axis."""


class Decay(NamedTuple):
    """A line through the logarithms of energies W_1, W_2, …"""

    rate: float
    """W_n = c·rateⁿ: decay where it is below 1; W_n = c·n^(−rate): decay where it is above 0."""
    goodness: float
    """R², 1 for a perfect fit, 0 for one no better than the mean; NaN where the energies are all the same."""


class EnergyPropagation(RunningByLayer):
    """Energy per layer and filter, its decay, and frame bounds (Wiatowski, Grohs, Bölcskei, 1704.03636).

    The theorems speak of networks of fixed frames and the modulus: W_N(f), the energy left after N layers, decays
    exponentially for wavelets and a band-limited input, and what the layers have emitted lies between A‖f‖² and
    B‖f‖². A trained CNN meets none of their hypotheses (ReLU, learned filters, batch norm), so this analysis measures:
    energy ‖T‖²/‖X‖² of each layer and filter; frame bounds A and B of each convolution, with the batch norm behind it
    folded in, at stride 1 and periodic borders; fits of exponential and polynomial decay over depth with their
    goodness; the number of layers after which at most 1 − `share` of the first layer's energy is left. The theorem's
    depth stands beside it as "scattering reference", which is no bound for the network; without a band limit even
    scattering networks can decay arbitrarily slowly (Führ and Getter, 2406.05121). There is no paper preset: only the
    theorem is the paper's, and it is `information.spectrum.scattering_depth`.

    Importance is a filter's share of the input's energy; heuristic, and not blind to scale: a batch norm behind the
    filter undoes what it measures. The recommended width is the number of filters that hold `keep` of a layer's energy.

    Args:
        share: (1 − ε), the energy whose depth is asked for.
        keep: share of a layer's energy that the filters of the recommended width hold.
        grid: frequencies per axis at which frame bounds are found; 0 leaves them out.
    """

    observes: tuple[type[nn.Module], ...] = (nn.Conv2d, nn.Linear, *NORMS)
    needs_gradients = False
    needs_labels = False
    across_layers = True
    gives = ("importance", "widths")
    name = "energy_propagation"

    @in_range("[analyses.energy_propagation]")
    def __init__(
        self, *, share: ProperShare = 0.9, keep: PositiveShare = 0.99, grid: Annotated[int, Meta(ge=0, le=1_024)] = 16
    ) -> None:
        super().__init__()
        self.share, self.keep, self.grid = share, keep, grid
        self._folding = Folding()

    def observe(self, view: LayerView) -> None:
        """Adds the energy of a layer's filters on one batch."""
        if not self._folding.see(view):
            return
        batch = view.batch
        whole = batch.once("input energy", lambda: batch.inputs.double().square().sum())
        energy = view.activations.double().square().transpose(0, 1).flatten(1).sum(1) / whole.clamp_min(1e-300)
        held = energy.sort(descending=True).values.cumsum(0)
        width = 1 + (held < self.keep * held[-1]).sum()
        self.layer(view.layer).add({"energy": energy.sum(), "energy per filter": energy, "width": width})

    def conclude(self) -> Finding:
        """Importance by energy, bounds and energies per layer, fits and depths for the network."""
        share = "share of the input's energy"
        measures: dict[str, Mapping[str, Measure]] = {
            name: running.measures({"energy": share, "energy per filter": share, "width": "filters"})
            for name, running in self._layers.items()
        }
        for name, (low, high) in self._bounds().items():
            bounds = {"frame bound A": _figure(low, "gain of energy"), "frame bound B": _figure(high, "gain of energy")}
            measures[name] = {**measures[name], **bounds}
        energies = [float(running.mean("energy")) for running in self._layers.values()]
        measures[NETWORK] = self._network(energies)
        flags: tuple[Flag, ...] = ()
        if energies[-1] >= energies[0]:
            reason = "the last layer carries no less energy than the first: there is no decay to speak of"
            flags = (Flag(NETWORK, "undefined", reason),)
        importance = {name: running.mean("energy per filter") for name, running in self._layers.items()}
        widths = {name: math.ceil(float(running.mean("width")) - 1e-9) for name, running in self._layers.items()}
        return Finding(self.name, importance=importance, widths=widths, measures=measures, flags=flags)

    def _bounds(self) -> dict[str, tuple[float, float]]:
        """Frame bounds of ordinary convolutions; a grouped one is several frames at once."""
        if not self.grid:
            return {}
        return {
            name: frame_bounds(weight, grid=self.grid if max(weight.shape[:2]) <= LARGEST else 8)
            for name, weight in self._folding.weights().items()
            if weight.dim() == 4 and self._folding.groups(name) == 1 and weight.isfinite().all()
        }

    def _network(self, energies: Sequence[float]) -> dict[str, Measure]:
        """Fits over depth, the depth for the share, and the theorem's depths beside it."""
        exponential, polynomial = exponential_decay(energies), polynomial_decay(energies)
        left = [energy / max(energies[0], 1e-300) for energy in energies]
        depth = next((n for n, w in enumerate(left, start=1) if w <= 1 - self.share), math.nan)
        return {
            "exponential rate": _figure(exponential.rate, "factor per layer"),
            "exponential goodness": _figure(exponential.goodness, "R²"),
            "polynomial rate": _figure(polynomial.rate, "exponent"),
            "polynomial goodness": _figure(polynomial.goodness, "R²"),
            "depth for the share": _figure(depth, "layers"),
            "scattering reference, wavelets": _figure(scattering_depth(self.share), "layers"),
            "scattering reference, Weyl-Heisenberg": _figure(
                scattering_depth(self.share, filters="weyl_heisenberg"), "layers"
            ),
        }


def exponential_decay(energies: Sequence[float]) -> Decay:
    """Fit of W_n = c·rateⁿ by least squares on the logarithms; NaN for fewer than two positive energies.

    >>> exponential_decay([8.0, 4.0, 2.0, 1.0])
    Decay(rate=0.5, goodness=1.0)
    """
    slope, goodness = _line(np.arange(1, len(energies) + 1, dtype=float), energies)
    return Decay(round(math.exp(slope), 12), goodness)


def polynomial_decay(energies: Sequence[float]) -> Decay:
    """Fit of W_n = c·n^(−rate) by least squares on the logarithms; NaN for fewer than two positive energies.

    >>> polynomial_decay([1.0, 1 / 4, 1 / 9, 1 / 16])
    Decay(rate=2.0, goodness=1.0)
    """
    slope, goodness = _line(np.log(np.arange(1, len(energies) + 1)), energies)
    return Decay(round(-slope, 12), goodness)


def _line(x: np.ndarray, energies: Sequence[float]) -> tuple[float, float]:
    """Slope and R² of log W over x, where W is positive."""
    values = np.asarray(energies, dtype=float)
    positive = values > 0
    if positive.sum() < 2:
        return math.nan, math.nan
    x, y = x[positive], np.log(values[positive])
    slope, offset = np.polyfit(x, y, 1)
    total = float(((y - y.mean()) ** 2).sum())
    rest = float(((y - slope * x - offset) ** 2).sum())
    return float(slope), round(1 - rest / total, 12) if total > 1e-24 else math.nan


def _figure(value: float, unit: str) -> Measure:
    return Measure(torch.tensor(float(value), dtype=torch.float64), unit=unit)

"""Spectral roll-off points: how low the frequencies are that hold a map's energy."""

import math
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from infoprune.analyses._running import RunningByLayer, require
from infoprune.analyses.base import Finding, Flag, LayerView
from infoprune.config.ranges import ProperShare, in_range
from infoprune.information.spectrum import radial_bins, radial_profile, roll_off

CHUNK = 2**25
"""Pixels whose spectrum is taken at once: half a gigabyte of complex numbers."""


class _Choice(NamedTuple):
    """What the paper leaves open."""

    power: bool
    reduce: str
    dc: bool
    last: bool
    first: int
    """What the lowest bin counts as, where nothing is interpolated."""
    normalizer: str
    interpolate: bool


PRESETS = {
    "corrected": _Choice(False, "mean", False, False, 0, "input", True),
    "paper": _Choice(False, "mean", False, False, 0, "input", False),
    # Eq. (6) has k from 0 to m, and Eq. (4) divides by m, so that nothing exceeds 1.
    "printed": _Choice(False, "sum", True, True, 0, "layer", False),
}


class SpectralRolloff(RunningByLayer):
    """SROP of each filter's maps ("Spectral Roll-off Points Variations…", Eqs. (2)–(6)); the lower, the more useful.

    A map's spectrum is gathered over rings of equal frequency; its roll-off point is where the rings hold 85 % of the
    total, from 0 to 1. Per layer: mean, median, quartiles and deviation over filters and samples, and the baseline:
    the network's input brought to the layer's size by 2x2 max-pools alone. The second baseline, the same architecture
    with random weights, is this analysis run on such a model. Importance is the negative SROP of each filter, averaged
    over samples: the paper's own claim, that useful information is what survives downscaling; heuristic. So is the
    recommended width, the number of filters at or below the baseline, if any is.

    The paper leaves open magnitude or power, ring sum or mean, whether the mean counts, m or m + 1 bins, and what
    normalises. "paper" is what fits its Table 2 best: magnitude, ring mean, without the mean, m bins, over the
    input's number of bins. "printed" is what Eqs. (3), (4) and (6) say to the letter, whose ring sums cannot reach
    the table's .852. The default interpolates inside a bin, as maps of 7x7 have three. A constant map has no
    roll-off point: it is left out, counted, and its filter ranks last. Layers without spatial order, or smaller than
    4x4, are left out.

    Args:
        preset: "corrected", "paper" (fits its Table 2) or "printed" (its equations to the letter).
        kappa: share of the spectrum that marks the roll-off point.
        power: |F|² in place of |F|; the preset's choice if not given.
        reduce: "mean" or "sum" over a ring; the preset's choice if not given.
        dc: whether a map's mean counts; the preset's choice if not given.
        bins: "m", counted from 0, or "m+1", counted from 1; the preset's choice if not given.
        normalizer: number of bins that is 1: the network "input"'s, or the "layer"'s; the preset's if not given.
        interpolate: inside a bin; the preset's choice if not given.
    """

    observes: tuple[type[nn.Module], ...] = (nn.Conv2d,)
    needs_gradients = False
    needs_labels = False
    gives = ("importance", "widths")
    name = "spectral_rolloff"

    @in_range("[analyses.spectral_rolloff]")
    def __init__(
        self,
        *,
        preset: Literal["corrected", "paper", "printed"] = "corrected",
        kappa: ProperShare = 0.85,
        power: bool | None = None,
        reduce: Literal["mean", "sum"] | None = None,
        dc: bool | None = None,
        bins: Literal["m", "m+1"] | None = None,
        normalizer: Literal["input", "layer"] | None = None,
        interpolate: bool | None = None,
    ) -> None:
        super().__init__()
        require(
            self.name,
            [
                ("preset", preset, preset in PRESETS, "'corrected', 'paper' or 'printed'"),
                ("reduce", reduce, reduce in (None, "mean", "sum"), "'mean' or 'sum'"),
                ("bins", bins, bins in (None, "m", "m+1"), "'m' or 'm+1'"),
                ("normalizer", normalizer, normalizer in (None, "input", "layer"), "'input' or 'layer'"),
            ],
        )
        last = None if bins is None else bins == "m+1"
        options: dict[str, Any] = {"power": power, "reduce": reduce, "dc": dc, "last": last}
        options["first"] = None if last is None else int(last)
        options |= {"normalizer": normalizer, "interpolate": interpolate}
        given = {option: value for option, value in options.items() if value is not None}
        self.choice = PRESETS[preset]._replace(**given)
        self.kappa = kappa

    def observe(self, view: LayerView) -> None:
        """Adds the roll-off points of every filter's maps on one batch, and their statistics."""
        maps, inputs = view.activations, view.batch.inputs
        if maps.dim() != 4 or inputs.dim() != 4 or radial_bins(min(maps.shape[2:])) < 1:
            return
        points = self._points(maps, inputs)
        known = points[~points.isnan()]
        size = tuple(maps.shape[2:])
        baseline = view.batch.once(
            ("srop baseline", size, self.choice, self.kappa), lambda: self._points(_pooled(inputs, size), inputs)
        )
        quartiles = (
            known.quantile(torch.tensor([0.25, 0.5, 0.75]).to(known))
            if len(known)
            else points.new_full((3,), torch.nan)
        )
        per_filter = points.nanmean(0)
        self.layer(view.layer).add(
            {
                "SROP": known.mean(),
                "lower quartile": quartiles[0],
                "median": quartiles[1],
                "upper quartile": quartiles[2],
                "deviation": known.std(correction=0) if len(known) else torch.nan,
                "baseline": baseline.nanmean(),
                "excess over baseline": known.mean() - baseline.nanmean(),
                "SROP per filter": per_filter,
                "width": (per_filter <= baseline.nanmean()).sum(),
                "constant maps": 1 - len(known) / points.numel(),
            }
        )

    def conclude(self) -> Finding:
        """Importance −SROP per filter; statistics with intervals; layers with constant maps flagged."""
        importance, widths, measures, flags = {}, {}, {}, []
        for name, running in self._layers.items():
            mean = running.mean("SROP per filter")
            # A map that never varies carries nothing: it ranks below the highest roll-off point that there is.
            importance[name] = torch.where(mean.isnan(), -2.0, -mean)
            units = dict.fromkeys(running.names(), f"share of the {self.choice.normalizer}'s frequencies")
            measures[name] = running.measures({**units, "constant maps": "share of maps", "width": "filters"})
            if float(running.mean("width")) >= 1:  # where no filter is, the baseline tells nothing apart
                widths[name] = math.ceil(float(running.mean("width")) - 1e-9)
            constant = float(running.mean("constant maps"))
            if constant > 0:
                never = int(running.undefined("SROP per filter").sum())
                reason = (
                    f"{constant:.1%} of the maps are constant and have no roll-off point, all of them in {never} of "
                    f"{len(mean)} filters; they are left out of every mean"
                )
                flags.append(Flag(name, "undefined", reason))
        return Finding(self.name, importance=importance, widths=widths, measures=measures, flags=tuple(flags))

    def _points(self, maps: Tensor, inputs: Tensor) -> Tensor:
        """Normalised roll-off points, `samples x filters`; NaN for constant maps."""
        choice = self.choice
        step = max(1, CHUNK // maps[0].numel())
        parts = []
        for chunk in torch.split(maps, step):
            profile = radial_profile(chunk, power=choice.power, reduce=choice.reduce, dc=choice.dc, last=choice.last)
            parts.append(roll_off(profile, kappa=self.kappa, interpolate=choice.interpolate))
        # Counted from 1, a bin's number is its upper end, which the interpolated place already is.
        first = 0 if choice.interpolate else choice.first
        size = min((inputs if choice.normalizer == "input" else maps).shape[2:])
        return (torch.cat(parts) + first) / max(1, radial_bins(size))


def _pooled(inputs: Tensor, size: tuple[int, ...]) -> Tensor:
    """The images at a layer's size by the benchmark alone: 2x2 max-pools, and one adaptive one for what is left."""
    while min(inputs.shape[2] // 2 - size[0], inputs.shape[3] // 2 - size[1]) >= 0:
        inputs = F.max_pool2d(inputs, 2)
    return inputs if inputs.shape[2:] == size else F.adaptive_max_pool2d(inputs, list(size))

"""What the next layer still learns from a filter once it knows the filters that are kept."""

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

import torch
from msgspec import Meta
from scipy import special
from torch import Tensor, nn
from torch.nn import functional as F

from infoprune.analyses._reading import CHANNELWISE, is_depthwise, means, patches, reads
from infoprune.analyses._running import require
from infoprune.analyses.base import Finding, LayerView, Measure
from infoprune.config.ranges import Seed, ShareBelowOne, in_range
from infoprune.information.elimination import Elimination, backward_elimination, rises_along
from infoprune.information.threads import one_thread_each

FOLDS = 4
"""Parts of the mini-batches, one of which is left out at a time to see how much depends on it."""


class _Moments:
    """Running sums over rows, apart for each fold of the mini-batches.

    Rows are what a layer reads, `rows x filters·block`, and how it responds, `rows x width`.
    """

    def __init__(self, block: int, inputs: int, outputs: int, device: torch.device) -> None:
        def zeros(*shape: int) -> Tensor:
            return torch.zeros(FOLDS, *shape, dtype=torch.float64, device=device)

        self.block = block
        self.sums = {"rows": zeros(), "x": zeros(inputs), "y": zeros(outputs), "slopes": zeros(outputs)}
        self.sums |= {"xx": zeros(inputs, inputs), "xy": zeros(inputs, outputs), "yy": zeros(outputs, outputs)}

    def add(self, read: Tensor, response: Tensor, slopes: Tensor | None, fold: int) -> None:
        """Adds rows; `slopes` is the mean square of the loss gradient at each entry of the response."""
        x, y = read.double(), response.double()
        parts = {
            "rows": torch.tensor(len(x)),
            "x": x.sum(0),
            "y": y.sum(0),
            "xx": x.T @ x,
            "xy": x.T @ y,
            "yy": y.T @ y,
        }
        if slopes is not None:
            parts["slopes"] = slopes.double() * len(x)
        for name, part in parts.items():
            self.sums[name][fold] += part

    def covariances(self, without: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Of what is read, across, and of the response, weighted where slopes came; one fold may be left out."""
        found = {name: value.sum(0) - (0 if without is None else value[without]) for name, value in self.sums.items()}
        x, y, xx, xy, yy = (found[name] / found["rows"] for name in ("x", "y", "xx", "xy", "yy"))
        weight = (found["slopes"] / found["rows"]).sqrt()
        if not weight.any():
            weight = torch.ones_like(weight)  # none came, or the loss does not see the response at all
        return xx - x[:, None] * x, (xy - x[:, None] * y) * weight, (yy - y[:, None] * y) * weight * weight[:, None]

    def folds(self) -> list[int]:
        """The folds that have rows."""
        return torch.nonzero(self.sums["rows"]).flatten().tolist()


class ResponseInformation:
    """I(T_i; R | T_kept): conditional mutual information of a filter and the next layer's response R, Gaussian.

    Filters go one after another, always the one that the response misses least given those still kept, which sees
    redundancy where scores of single filters do not: of two copies one goes for nothing, then the other counts in
    full. The closed form is that of `information.elimination`; with jointly Gaussian variables it is exact, and what
    it counts is the error left after the best linear compensation, which is what a repair in closed form leaves.
    Heuristic: activations are not Gaussian, so only second moments are seen, and only the next layer's response.

    How one layer at a time gives the next layer's response: of the layer before only its map is remembered, as the
    norms, activations and poolings behind it have left it, until the next convolution or linear layer responds. If that
    layer reads channels in that number, its rows are the patches under its kernel at `positions` of the map; otherwise,
    or where a patch has more than `inputs_limit` entries, means over the maps take their place. Only the sums for
    covariances stay. A function without a module in between (a sum, `torch.relu`) costs precision, not validity: R is
    then explained in part. The width has a jackknife's interval over four folds of the mini-batches. Depthwise layers
    count as part of the path. A residual block's last convolution and its projection share one score; the last layer
    has no response behind it and gets none.

    Args:
        criterion: "error", the squared error of a refit, which information becomes in much noise, or "information".
        noise: variance of the noise in which the response is seen, as a share of its own; bounds the information.
        weighted: weight the response by the loss gradient's mean square; keeps the maps of a batch until its end.
        tolerance: share of the response's variance that the recommended width may lose.
        positions: places of a map that give rows, for each image.
        inputs_limit: longest patch whose covariance is kept, channels times kernel size.
        seed: of the places.
    """

    observes: tuple[type[nn.Module], ...] = (nn.Conv2d, nn.Linear, *CHANNELWISE)
    needs_labels = False
    across_layers = True
    gives = ("importance", "widths")
    name = "response_information"

    @in_range("[analyses.response_information]")
    def __init__(
        self,
        *,
        criterion: Literal["information", "error"] = "error",
        noise: Annotated[float, Meta(gt=0, le=1_000)] = 0.01,
        weighted: bool = False,
        tolerance: ShareBelowOne = 0.05,
        positions: Annotated[int, Meta(ge=1, le=1_048_576)] = 16,
        inputs_limit: Annotated[int, Meta(ge=1, le=1_000_000)] = 2304,
        seed: Seed = 0,
    ) -> None:
        known = ("information", "error")
        require(self.name, [("criterion", criterion, criterion in known, "'information' or 'error'")])
        self.criterion, self.noise, self.tolerance = criterion, noise, tolerance
        self.positions, self.inputs_limit, self.seed = positions, inputs_limit, seed
        self.needs_gradients = self.needs_labels = weighted
        self._moments: dict[tuple[str, ...], _Moments] = {}
        self._batch = -1
        self._producers: tuple[str, ...] = ()
        self._map = torch.empty(0)
        self._held: list[LayerView] = []

    def observe(self, view: LayerView) -> None:
        """Takes up the layer's map, and adds its response to the map before it."""
        if view.batch.index != self._batch:
            self._flush()
            self._batch = view.batch.index
        if self.needs_gradients:
            self._held.append(view)  # gradients come from the last layer to the first
        else:
            self._follow(view)

    def sums(self) -> dict[str, Tensor]:
        """The moments of the batches of this process, by producers."""
        self._flush()
        return {
            f"{'|'.join(producers)}/{name}": value
            for producers, moments in self._moments.items()
            for name, value in moments.sums.items()
        }

    def join(self, parts: Sequence[Mapping[str, Tensor]]) -> None:
        """Adds up the moments of all processes."""
        for producers, moments in self._moments.items():
            own = "|".join(producers)
            moments.sums = {
                name: torch.stack([part[f"{own}/{name}"] for part in parts]).sum(0) for name in moments.sums
            }

    def conclude(self) -> Finding:
        """Importance: information lost until a filter has gone; widths within the tolerance; each step's measures."""
        self._flush()
        importance, widths, measures = {}, {}, {}
        for producers, moments in self._moments.items():
            with one_thread_each():
                covariances = moments.covariances()
                found = backward_elimination(
                    *covariances, block=moments.block, noise=self.noise, criterion=self.criterion
                )
                measured = self._measures(moments, found)
            lost = torch.empty_like(found.cost)
            # What has gone until then, not each step alone: that grows along the order, so that the best k filters
            # are those that the elimination keeps. Steps that cost nothing would tie; the order tells them apart.
            lost[found.order] = found.cost.cumsum(0) + 1e-12 * torch.arange(1, len(lost) + 1)
            for layer in producers:
                importance[layer], measures[layer] = lost.clone(), measured
                widths[layer] = self._width(found.error.cumsum(0))
        return Finding(self.name, importance=importance, widths=widths, measures=measures)

    def _width(self, rises: Tensor) -> int:
        """The smallest width whose error stays within the tolerance, from the rises until each filter has gone."""
        return max(1, int((rises > self.tolerance).sum()))

    def _measures(self, moments: _Moments, found: Elimination) -> dict[str, Measure]:
        """Per filter and per layer; width and explained share with the jackknife's interval over folds."""
        unit = "bits" if self.criterion == "information" else "share of the response"
        error = torch.empty_like(found.error)
        error[found.order] = found.error.cumsum(0)
        figures = torch.tensor([self._width(found.error.cumsum(0)), 1 - found.unexplained], dtype=torch.float64)
        folds, half = moments.folds(), None
        if len(folds) > 1:
            parts = []
            for fold in folds:
                # The order stays that of all rows: what varies is what it costs.
                covariances = moments.covariances(without=fold)
                rises = rises_along(*covariances, found.order, block=moments.block)
                parts.append(torch.tensor([self._width(rises), rises[-1]], dtype=torch.float64))
            spread = torch.stack(parts).std(0, correction=0) * math.sqrt(len(folds) - 1)
            half = float(special.stdtrit(len(folds) - 1, 0.975)) * spread
        named = zip(("width", "explained"), ("filters", "share of the response"), strict=True)
        intervals = {
            name: Measure(
                figures[i],
                None if half is None else figures[i] - half[i],
                None if half is None else figures[i] + half[i],
                u,
            )
            for i, (name, u) in enumerate(named)
        }
        return {
            "given all others": Measure(found.given_all, unit=unit),
            "error once gone": Measure(error, unit="share of the response"),
            **intervals,
        }

    def _flush(self) -> None:
        for view in reversed(self._held):
            self._follow(view)
        self._held, self._producers, self._map = [], (), torch.empty(0)

    def _follow(self, view: LayerView) -> None:
        """One step along the path, in the order of the forward pass."""
        module, maps = view.module, view.activations
        if isinstance(module, CHANNELWISE) or is_depthwise(module):
            if self._producers and maps.shape[1] == self._map.shape[1] and len(maps) == len(self._map):
                self._map = maps
            return
        width = self._map.shape[1] if self._producers else 0
        if self._producers and reads(module, width):
            self._respond(view)
        elif self._producers and maps.shape[1] == width:
            # A second branch of the same width before anything reads the first: their sum is read.
            self._producers, self._map = (*self._producers, view.layer), maps
            return
        elif self._producers:
            self._respond(view)
        self._producers, self._map = (view.layer,), maps

    def _respond(self, view: LayerView) -> None:
        read, response, block = self._rows(view)
        if self._producers not in self._moments:
            self._moments[self._producers] = _Moments(block, read.shape[1], response.shape[1], read.device)
        moments = self._moments[self._producers]
        if moments.sums["xy"].shape[1:] != (read.shape[1], response.shape[1]):
            return  # a layer that is called again at another resolution: its first call stands for it
        slopes = None
        if view.gradients is not None:
            # The loss is a mean over the batch; times its size, the gradient is that of one sample's own loss.
            slopes = (view.gradients.double() * len(view.gradients)).square().transpose(0, 1).flatten(1).mean(1)
        moments.add(read, response, slopes, view.batch.index % FOLDS)

    def _rows(self, view: LayerView) -> tuple[Tensor, Tensor, int]:
        """Rows of what the layer reads and of its response, and the entries per filter."""
        module, x, y = view.module, self._map, view.activations
        filters = x.shape[1]
        if isinstance(module, nn.Linear) and x.dim() == 4 and y.dim() == 2:
            side = math.isqrt(module.in_features // filters)
            # What a flatten reads, pooled as a function without a module between the two has pooled it.
            if side**2 * filters == module.in_features <= self.inputs_limit:
                return F.adaptive_avg_pool2d(x, side).flatten(1), y, side**2
        if isinstance(module, nn.Conv2d) and x.dim() == 4 and module.in_channels == filters:
            taps = math.prod(module.kernel_size)
            found = patches(module, x, y, self.positions, self.seed + view.batch.index)
            if found is not None and filters * taps <= self.inputs_limit:
                return *found, taps
        return means(x), means(y), 1

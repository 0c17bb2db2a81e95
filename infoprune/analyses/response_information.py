"""What the next layer still learns from a filter once it knows the filters that are kept."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from infoprune.analyses._running import require
from infoprune.artifacts import Finding, LayerView, Measure
from infoprune.information.elimination import Elimination, backward_elimination
from infoprune.information.threads import one_thread_each

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.GroupNorm, nn.InstanceNorm2d)
ACTIVATIONS = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish),
    *(nn.Sigmoid, nn.Tanh, nn.Softplus, nn.Hardswish, nn.Hardsigmoid, nn.Hardtanh),
)
POOLINGS = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)
CHANNELWISE: tuple[type[nn.Module], ...] = (*NORMS, *ACTIVATIONS, *POOLINGS)


@dataclass
class _Moments:
    """Running sums over rows: what a layer reads (`rows x filters·block`) and how it responds (`rows x width`)."""

    block: int
    rows: int = 0
    read: Tensor = field(default_factory=lambda: torch.zeros(()))
    response: Tensor = field(default_factory=lambda: torch.zeros(()))
    products: tuple[Tensor, Tensor, Tensor] = field(default_factory=lambda: (torch.zeros(()),) * 3)
    slopes: Tensor = field(default_factory=lambda: torch.zeros(()))

    def add(self, read: Tensor, response: Tensor, slopes: Tensor | None) -> None:
        """Adds rows; `slopes` is the mean square of the loss gradient at each entry of the response."""
        x, y = read.double(), response.double()
        self.rows += len(x)
        self.read, self.response = self.read + x.sum(0), self.response + y.sum(0)
        self.products = (self.products[0] + x.T @ x, self.products[1] + x.T @ y, self.products[2] + y.T @ y)
        if slopes is not None:
            self.slopes = self.slopes + slopes.double() * len(x)

    def tensors(self) -> dict[str, Tensor]:
        """All sums by name."""
        found = {"rows": torch.tensor(self.rows), "read": self.read, "response": self.response, "slopes": self.slopes}
        return found | {str(place): product for place, product in enumerate(self.products)}

    def replace(self, tensors: Mapping[str, Tensor]) -> None:
        """Takes other sums, named as in `tensors`."""
        self.rows, self.read, self.response = int(tensors["rows"]), tensors["read"], tensors["response"]
        self.slopes, self.products = tensors["slopes"], (tensors["0"], tensors["1"], tensors["2"])

    def eliminate(self, noise: float, criterion: str) -> Elimination:
        """The elimination by the covariances of all rows, the response weighted where slopes came."""
        xx, xy, yy = (product / self.rows for product in self.products)
        x, y = self.read / self.rows, self.response / self.rows
        weight = (self.slopes / self.rows).sqrt() if self.slopes.dim() else torch.ones_like(y)
        if not weight.any():
            weight = torch.ones_like(y)  # a response that the loss does not see at all leaves no order
        cross, response = (xy - x[:, None] * y) * weight, (yy - y[:, None] * y) * weight * weight[:, None]
        return backward_elimination(
            xx - x[:, None] * x, cross, response, block=self.block, noise=noise, criterion=criterion
        )


class ResponseInformation:
    """I(T_i; R | T_kept): conditional mutual information of a filter and the next layer's response R, Gaussian.

    Filters go one after another, always the one that the response misses least given those still kept, which sees
    redundancy where scores of single filters do not: of two copies one goes for nothing, then the other counts in
    full. The closed form is that of `information.elimination`; with jointly Gaussian variables it is exact, and what
    it counts is the error left after the best linear compensation, which is what a repair in closed form leaves.
    Heuristic: activations are not Gaussian, so only second moments are seen, and only the next layer's response.

    How one layer at a time gives the next layer's response: of the layer before only its map is remembered, as the
    norms, activations and poolings behind it have left it, until the next convolution or linear layer responds. If
    that layer reads channels in that number, its rows are the patches under its kernel at `positions` of the map;
    otherwise, or where a patch has more than `inputs_limit` entries, means over the maps take their place. Only the
    sums for covariances stay. A function without a module in between (a sum, `torch.relu`) costs precision, not
    validity: R is then explained in part. Depthwise layers count as part of the path. A residual block's last
    convolution and its projection share one score; the last layer has no response behind it and gets none.

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
    name = "response_information"

    def __init__(
        self,
        *,
        criterion: Literal["information", "error"] = "error",
        noise: float = 0.01,
        weighted: bool = False,
        tolerance: float = 0.05,
        positions: int = 16,
        inputs_limit: int = 2304,
        seed: int = 0,
    ) -> None:
        known = ("information", "error")
        require(
            self.name,
            [
                ("criterion", criterion, criterion in known, "'information' or 'error'"),
                ("noise", noise, math.isfinite(noise) and noise > 0, "a positive share"),
                ("tolerance", tolerance, 0 <= tolerance < 1, "a share of 0 or more, below 1"),
                ("positions", positions, positions >= 1, "1 or more"),
                ("inputs_limit", inputs_limit, inputs_limit >= 1, "1 or more"),
                ("seed", seed, seed >= 0, "0 or more"),
            ],
        )
        self.criterion, self.noise, self.tolerance = criterion, noise, tolerance
        self.positions, self.inputs_limit, self.seed = positions, inputs_limit, seed
        self.needs_gradients = weighted
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
            for name, value in moments.tensors().items()
        }

    def join(self, parts: Sequence[Mapping[str, Tensor]]) -> None:
        """Adds up the moments of all processes."""
        for producers, moments in self._moments.items():
            names = {name: f"{'|'.join(producers)}/{name}" for name in moments.tensors()}
            moments.replace({name: torch.stack([part[key] for part in parts]).sum(0) for name, key in names.items()})

    def conclude(self) -> Finding:
        """Importance: information lost until a filter has gone; widths within the tolerance; each step's measures."""
        self._flush()
        importance, widths, measures = {}, {}, {}
        for producers, moments in self._moments.items():
            with one_thread_each():
                found = moments.eliminate(self.noise, self.criterion)
            lost, error = (torch.empty_like(part) for part in (found.cost, found.error))
            # What has gone until then, not each step alone: that grows along the order, so that the best k filters
            # are those that the elimination keeps.
            lost[found.order], error[found.order] = found.cost.cumsum(0), found.error.cumsum(0)
            # Steps that cost nothing would tie, and the order of going still tells them apart.
            lost[found.order] += 1e-12 * torch.arange(1, len(lost) + 1)
            unit = "bits" if self.criterion == "information" else "share of the response"
            for layer in producers:
                importance[layer] = lost.clone()
                widths[layer] = max(1, int((error > self.tolerance).sum()))
                measures[layer] = {
                    "given all others": Measure(found.given_all, unit=unit),
                    "error once gone": Measure(error, unit="share of the response"),
                    "explained": Measure(torch.tensor(1 - found.unexplained), unit="share of the response"),
                }
        return Finding(self.name, importance=importance, widths=widths, measures=measures)

    def _flush(self) -> None:
        for view in reversed(self._held):
            self._follow(view)
        self._held, self._producers, self._map = [], (), torch.empty(0)

    def _follow(self, view: LayerView) -> None:
        """One step along the path, in the order of the forward pass."""
        module, maps = view.module, view.activations
        if isinstance(module, CHANNELWISE) or _is_depthwise(module):
            if self._producers and maps.shape[1] == self._map.shape[1] and len(maps) == len(self._map):
                self._map = maps
            return
        width = self._map.shape[1] if self._producers else 0
        if self._producers and _reads(module, width):
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
        moments = self._moments.setdefault(self._producers, _Moments(block))
        if moments.block != block or (moments.rows and moments.read.shape != read.shape[1:]):
            return  # a layer that is called again at another resolution: its first call stands for it
        slopes = None
        if view.gradients is not None:
            # The loss is a mean over the batch; times its size, the gradient is that of one sample's own loss.
            slopes = (view.gradients.double() * len(view.gradients)).square().transpose(0, 1).flatten(1).mean(1)
        moments.add(read, response, slopes)

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
            found = _patches(module, x, y, self.positions, self.seed + view.batch.index)
            if found is not None and filters * taps <= self.inputs_limit:
                return *found, taps
        return _means(x), _means(y), 1


def _is_depthwise(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d) and module.groups == module.in_channels == module.out_channels > 1


def _reads(module: nn.Module, width: int) -> bool:
    if isinstance(module, nn.Conv2d):
        return module.in_channels == width
    return isinstance(module, nn.Linear) and module.in_features % width == 0


def _means(maps: Tensor) -> Tensor:
    return maps.flatten(2).mean(2) if maps.dim() > 2 else maps


def _patches(module: nn.Conv2d, x: Tensor, y: Tensor, positions: int, seed: int) -> tuple[Tensor, Tensor] | None:
    """Patches under the kernel, `rows x channels·taps`, and the response there; None where sizes do not fit."""
    if isinstance(module.padding, str):
        wanted = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
        both = [(w // 2, w - w // 2) if module.padding == "same" else (0, 0) for w in wanted]
    else:
        both = [(int(p), int(p)) for p in module.padding]
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    padded = F.pad(x, (*both[1], *both[0]), mode=mode)
    sizes = [
        (padded.shape[2 + i] - module.dilation[i] * (module.kernel_size[i] - 1) - 1) // module.stride[i] + 1
        for i in (0, 1)
    ]
    if sizes != list(y.shape[2:]) or len(x) != len(y):
        return None
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(sizes[0] * sizes[1], generator=generator)[:positions].sort().values.to(x.device)
    at = [chosen // sizes[1], chosen % sizes[1]]
    taps = [torch.arange(module.kernel_size[i], device=x.device) * module.dilation[i] for i in (0, 1)]
    rows = (at[0] * module.stride[0])[:, None, None] + taps[0][:, None]
    columns = (at[1] * module.stride[1])[:, None, None] + taps[1]
    found = padded[:, :, rows, columns].transpose(1, 2).flatten(0, 1).flatten(1)
    return found, y.flatten(2)[:, :, chosen].transpose(1, 2).flatten(0, 1)

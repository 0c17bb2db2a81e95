"""Per-filter information-bottleneck score: what a filter keeps of the image against what it says about the class."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from infoprune.artifacts import Finding, Flag, LayerView, Measure
from infoprune.errors import UserError
from infoprune.information.gram import filter_grams
from infoprune.information.scoring import filter_information

# Below this distance from log2 n an entropy estimate only says that all samples look different.
SATURATION_BITS = 0.05


@dataclass
class _Sums:
    """Running sums over mini-batches for one layer; tensors of shape `filters`, except the margin."""

    batches: int
    values: Tensor
    squares: Tensor
    margin: float


class InformationBottleneck:
    """IB_i = I(X;T_i) − β I(T_i;Y); the smaller, the more important the filter (Yu et al., 1804.06537, Sec. IV).

    Both terms are matrix-based Rényi estimates in bits, averaged over mini-batches. X is the network's input, T_i
    the filter's own output map, Y the label under a delta kernel. The paper's RBF width saturates on maps of more
    than a few pixels, so that all filters look alike; the default standardises each variable first (Tapia and
    Estévez, 2020), which also makes the score blind to the scale and shift of a batch norm behind the filter.

    Args:
        beta: weight of what the filter says about the class against what it keeps of the image; 0 or more.
        alpha: Rényi order; 1 is the Shannon limit, where information is never negative, 1.01 the paper's.
        kernel_width: rule for the RBF width: "standardized", or "silverman" as in the paper.
        gamma: factor of the standardized width.
        h: factor of the Silverman width.
    """

    observes: tuple[type[nn.Module], ...] = (nn.Conv2d, nn.Linear)
    needs_gradients = False
    needs_labels = True
    name = "information_bottleneck"

    def __init__(
        self,
        *,
        beta: float = 2.0,
        alpha: float = 1.0,
        kernel_width: Literal["standardized", "silverman"] = "standardized",
        gamma: float = 1.0,
        h: float = 5.0,
    ) -> None:
        for option, value, fine in (
            ("beta", beta, beta >= 0),
            ("alpha", alpha, alpha > 0),
            ("gamma", gamma, gamma > 0),
            ("h", h, h > 0),
        ):
            if not (fine and math.isfinite(value)):
                expected = "0 or more" if option == "beta" else "a positive number"
                raise UserError(f"[analyses.{self.name}] {option} = {value}: expected {expected}")
        self.beta, self.alpha, self.kernel_width, self.gamma, self.h = beta, alpha, kernel_width, gamma, h
        self._sums: dict[str, _Sums] = {}

    def observe(self, view: LayerView) -> None:
        """Adds both information terms of every filter on one batch."""
        labels = view.batch.labels
        if labels is None:
            raise UserError(f"'{self.name}' needs labels; give batches of images and labels")
        width = {"rule": self.kernel_width, "gamma": self.gamma, "h": self.h}
        inputs = view.batch.inputs
        input_gram = view.batch.once(
            ("input gram", *width.values()), lambda: filter_grams(inputs.flatten(1)[:, None, :], **width)[0]
        )
        found = filter_information(view.activations, input_gram, labels, alpha=self.alpha, **width)
        values = torch.stack([found.input, found.label]).double()
        margin = float((math.log2(len(inputs)) - found.joint_entropy).min())
        sums = self._sums.setdefault(view.layer, _Sums(0, torch.zeros_like(values), torch.zeros_like(values), math.inf))
        sums.batches += 1
        sums.values += values
        sums.squares += values.square()
        sums.margin = min(sums.margin, margin)

    def sums(self) -> dict[str, Tensor]:
        """What the batches of this process came to, by layer."""
        found: dict[str, Tensor] = {}
        for layer, sums in self._sums.items():
            counts = torch.tensor([sums.batches, sums.margin], dtype=torch.float64)
            found |= {f"{layer}/values": sums.values, f"{layer}/squares": sums.squares, f"{layer}/counts": counts}
        return found

    def join(self, parts: Sequence[Mapping[str, Tensor]]) -> None:
        """Takes in the batches of all processes: sums add up, and the least margin is that of all."""
        for layer, sums in self._sums.items():
            sums.values, sums.squares, counts = (
                torch.stack([part[f"{layer}/{name}"] for part in parts]) for name in ("values", "squares", "counts")
            )
            sums.values, sums.squares = sums.values.sum(0), sums.squares.sum(0)
            sums.batches, sums.margin = int(counts[:, 0].sum()), float(counts[:, 1].min())

    def conclude(self) -> Finding:
        """Importance −IB per filter, both information terms with intervals, and saturated layers flagged."""
        importance, measures, flags = {}, {}, []
        for layer, sums in self._sums.items():
            mean = (sums.values / sums.batches).cpu()
            importance[layer] = -(mean[0] - self.beta * mean[1])
            half = _half_interval(sums).cpu() if sums.batches > 1 else None
            measures[layer] = {
                name: Measure(
                    value, None if half is None else value - half[i], None if half is None else value + half[i]
                )
                for i, (name, value) in enumerate(zip(("I(X;T)", "I(T;Y)"), mean, strict=True))
            }
            if sums.margin < SATURATION_BITS:
                reason = (
                    f"S(X,T) comes within {sums.margin:.3f} bit of log2 n: larger batches or a wider kernel are needed"
                )
                flags.append(Flag(layer, "saturated", reason))
        return Finding(self.name, importance=importance, measures=measures, flags=tuple(flags))


def _half_interval(sums: _Sums) -> Tensor:
    """Half the 95 % interval of a mean over mini-batches, by the normal approximation."""
    mean = sums.values / sums.batches
    variance = (sums.squares / sums.batches - mean.square()).clamp_min(0) * sums.batches / (sums.batches - 1)
    return 1.96 * (variance / sums.batches).sqrt()

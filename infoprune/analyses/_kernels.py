"""The kernels that a preset chooses; computed once per layer and batch, for whichever analysis asks first."""

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from infoprune.analyses._running import require
from infoprune.artifacts import BatchView, LayerView
from infoprune.errors import UserError
from infoprune.information.gram import filter_exponents, filter_grams, squared_distances
from infoprune.information.spectra import kernel_entropy
from infoprune.information.widths import kernel_width

Preset = Literal["corrected", "paper"]
# Names of the paper's choices ("Understanding CNNs…", Sec. III) and of ours: Rényi order, width rule, σ·√C for sets.
PRESETS = {"corrected": (1.0, "standardized", True), "paper": (1.01, "silverman", False)}


@dataclass(frozen=True)
class Kernels:
    """How kernels are made, and entropies of them.

    Attributes:
        alpha: Rényi order.
        rule: of the RBF width, see `information.widths`.
        widen: whether a set of C filters has the width σ·√C; without it its entropy runs into log2 n.
        gamma: factor of the "standardized" width.
        h: factor of the "silverman" width.
    """

    alpha: float
    rule: str
    widen: bool
    gamma: float
    h: float

    @classmethod
    def of(cls, analysis: str, preset: str, alpha: float | None, gamma: float, h: float) -> "Kernels":
        """The kernels of a preset; `alpha` overrides its order.

        Raises:
            UserError: for an option out of range.
        """
        require(
            analysis,
            [
                ("preset", preset, preset in PRESETS, "'corrected' or 'paper'"),
                ("alpha", alpha, alpha is None or (math.isfinite(alpha) and alpha > 0), "a positive number"),
                ("gamma", gamma, math.isfinite(gamma) and gamma > 0, "a positive number"),
                ("h", h, math.isfinite(h) and h > 0, "a positive number"),
            ],
        )
        order, rule, widen = PRESETS[preset]
        return cls(order if alpha is None else alpha, rule, widen, gamma, h)

    def with_rule(self, rule: str | None) -> "Kernels":
        """The same with another rule for the width, if one is given."""
        return self if rule is None else replace(self, rule=rule)

    @property
    def _key(self) -> tuple[str, float, float]:
        return self.rule, self.gamma, self.h

    def exponents(self, view: LayerView) -> Tensor:
        """D/2σ² of every filter, `filters x samples x samples`."""
        return view.once(
            ("exponents", *self._key),
            lambda: filter_exponents(view.activations, rule=self.rule, gamma=self.gamma, h=self.h),
        )

    def of_input(self, batch: BatchView) -> Tensor:
        """Gram matrix of the network's input, `samples x samples`."""
        return batch.once(
            ("input gram", *self._key),
            lambda: filter_grams(batch.inputs.flatten(1)[:, None, :], rule=self.rule, gamma=self.gamma, h=self.h)[0],
        )

    def of_layer(self, view: LayerView) -> Tensor:
        """Gram matrix of all filters of a layer as one variable, `samples x samples`."""
        return view.once(("layer gram", self.widen, *self._key), lambda: self.of_set(view.activations))

    def of_set(self, maps: Tensor) -> Tensor:
        """Gram matrix of a set of filters' maps, `samples x filters [x height x width]`, as one variable.

        With widths that are equal up to each filter's own scale, the product of the RBF matrices is the RBF matrix of
        the concatenated maps: one product of matrices in place of one per filter.
        """
        n, filters = maps.shape[:2]
        dimension = maps[0, 0].numel()
        flat = maps.reshape(n, filters, -1).double()
        if self.rule == "standardized":
            variance, mean = torch.var_mean(flat, (0, 2), correction=0)
            # As `gram.filter_distances`: a map that differs by rounding only is constant.
            dead = variance.sqrt() <= 2 * torch.finfo(maps.dtype).eps * mean.abs()
            flat = (flat - mean[:, None]) * torch.where(dead, 0.0, variance.clamp_min(1e-300).rsqrt())[:, None]
        distances = squared_distances(flat.flatten(1))
        sigma = float(kernel_width(distances, rule=self.rule, dimension=dimension, gamma=self.gamma, h=self.h))
        return torch.exp(-distances / (2 * sigma**2 * (filters if self.widen else 1)))

    def entropy(self, *grams: Tensor) -> Tensor:
        """Entropies in bits of unit-diagonal Gram matrices, one per argument."""
        return kernel_entropy(torch.stack(grams), alpha=self.alpha)


def labels_of(analysis: str, view: LayerView) -> Tensor:
    """The labels of the batch.

    Raises:
        UserError: where there are none.
    """
    if view.batch.labels is None:
        raise UserError(f"'{analysis}' needs labels; give batches of images and labels")
    return view.batch.labels

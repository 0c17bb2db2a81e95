"""The kernels that a preset chooses; computed once per layer and batch, for whichever analysis asks first."""

import math
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from infoprune.analyses._running import require
from infoprune.analyses.base import BatchView, LayerView
from infoprune.errors import UserError
from infoprune.information.entropy import label_entropy, label_joint_entropy
from infoprune.information.gram import filter_exponents, filter_grams, squared_distances
from infoprune.information.spectra import kernel_entropy
from infoprune.information.widths import kernel_width

Preset = Literal["corrected", "paper"]
# Names of the paper's choices ("Understanding CNNs…", Sec. III) and of ours: Rényi order, width rule, σ·√C for sets.
PRESETS = {"corrected": (1.0, "standardized", True), "paper": (1.01, "silverman", False)}


class Point(NamedTuple):
    """A layer's place in the information plane, in bits."""

    input: float
    """I(X;T)."""
    label: float
    """I(T;Y)."""
    input_debiased: float
    """I(X;T) less what permuted samples show."""
    label_debiased: float
    margin: float
    """log2 n − S(X,T)."""


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
            UserError: for an unknown preset.
        """
        require(analysis, [("preset", preset, preset in PRESETS, "'corrected' or 'paper'")])
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
        the concatenated maps: one product of matrices in place of one per filter. Widened, the set has the width of
        one variable of all its entries (Tapia and Estévez, 2020): σ·√C up to the power of n, which for single
        numbers is far from that for maps, so that layers of either kind could not be compared.
        """
        n = len(maps)
        dimension = maps[0].numel() if self.widen else maps[0, 0].numel()
        flat = maps.reshape(n, maps.shape[1], -1).double()
        if self.rule == "standardized":
            variance, mean = torch.var_mean(flat, (0, 2), correction=0)
            # As `gram.filter_distances`: a map that differs by rounding only is constant.
            dead = variance.sqrt() <= 2 * torch.finfo(maps.dtype).eps * mean.abs()
            flat = (flat - mean[:, None]) * torch.where(dead, 0.0, variance.clamp_min(1e-300).rsqrt())[:, None]
        distances = squared_distances(flat.flatten(1))
        sigma = float(kernel_width(distances, rule=self.rule, dimension=dimension, gamma=self.gamma, h=self.h))
        return torch.exp(-distances / (2 * sigma**2))

    def point(self, view: LayerView, labels: Tensor, permutations: int, seed: int) -> Point:
        """The layer's place in the information plane, for whichever analysis asks first.

        Args:
            view: the layer.
            labels: classes.
            permutations: of the samples, whose mean information is taken off as bias; 0 leaves the biases at 0.
            seed: of the permutations.
        """
        return view.once(
            ("point", self.alpha, self.widen, *self._key, permutations, seed),
            lambda: self._point(self.of_layer(view), self.of_input(view.batch), labels, permutations, seed),
        )

    def _point(self, gram: Tensor, image: Tensor, labels: Tensor, permutations: int, seed: int) -> Point:
        generator = torch.Generator().manual_seed(seed)
        orders = [torch.randperm(len(labels), generator=generator).to(labels.device) for _ in range(permutations)]
        # Permuting the layer's samples breaks its tie with image and label at once, and changes only joint entropies.
        moved = [gram, *[gram[order][:, order] for order in orders]]
        own, of_image, *joint = self.entropy(gram, image, *[each * image for each in moved])
        with_label = label_joint_entropy(torch.stack(moved), labels, alpha=self.alpha)
        of_label = label_entropy(labels, alpha=self.alpha).to(own)
        x = (own + of_image - torch.stack(joint)).cpu()
        y = (own + of_label - with_label).cpu()
        by_chance = (x[1:].mean(), y[1:].mean()) if permutations else (torch.zeros_like(x[0]), torch.zeros_like(y[0]))
        margin = math.log2(len(labels)) - float(joint[0])
        return Point(float(x[0]), float(y[0]), float(x[0] - by_chance[0]), float(y[0] - by_chance[1]), margin)

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

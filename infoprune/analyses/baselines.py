"""The criteria that everyone has: what an information-theoretic score has to beat.

Each scores filters by weights, norms, gradients or chance; all of them are analyses like any other.
"""

import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from infoprune.analyses.base import Finding, LayerView
from infoprune.config.ranges import Seed, in_range
from infoprune.errors import UserError

CONVOLUTIONS_AND_LINEAR = (nn.Conv2d, nn.Linear)


class _Scores:
    """An analysis whose whole finding is one importance per filter."""

    observes: tuple[type[nn.Module], ...] = CONVOLUTIONS_AND_LINEAR
    needs_gradients = False
    needs_labels = False
    gives = ("importance",)
    name: str

    def __init__(self) -> None:
        self._scores: dict[str, Tensor] = {}

    def sums(self) -> dict[str, Tensor]:
        """Nothing: every process scores by the same weights, or by the same chance."""
        return {}

    def join(self, parts: Sequence[Mapping[str, Tensor]]) -> None:
        """Has nothing to take in."""

    def conclude(self) -> Finding:
        """The importance of every layer seen."""
        return Finding(self.name, importance={layer: scores.cpu() for layer, scores in self._scores.items()})


class L1(_Scores):
    """L1 norm of each filter's weights (Li et al., 2017, Pruning Filters for Efficient ConvNets)."""

    name = "l1"
    norm = 1

    def observe(self, view: LayerView) -> None:
        """Reads the weights; activations are not looked at."""
        weight: Any = view.module.weight  # no parameter where spectral_norm and the like compute it
        self._scores[view.layer] = weight.detach().flatten(1).double().norm(p=self.norm, dim=1)


class L2(L1):
    """L2 norm of each filter's weights."""

    name = "l2"
    norm = 2


class BatchNormScale(_Scores):
    """Absolute scale |γ| of each batch-norm channel (Liu et al., 2017, Network Slimming)."""

    name = "batch_norm_scale"
    observes = (nn.BatchNorm2d,)

    def observe(self, view: LayerView) -> None:
        """Reads the scale; a norm without affine terms scores 1 throughout."""
        scale = view.module.weight
        width = int(view.activations.shape[1])
        self._scores[view.layer] = scale.detach().double().abs() if isinstance(scale, Tensor) else torch.ones(width)


class Taylor(_Scores):
    """First-order change of the loss when a filter's map is set to zero (Molchanov et al., 2017, Eq. 8).

    Per sample |Σ activation · gradient| over the map, averaged over all samples.
    """

    name = "taylor"
    needs_gradients = True
    needs_labels = True

    def __init__(self) -> None:
        super().__init__()
        self._samples: dict[str, int] = {}

    def observe(self, view: LayerView) -> None:
        """Adds one batch."""
        if view.gradients is None:
            raise UserError(f"'{self.name}' needs loss gradients at '{view.layer}', but none came")
        # Cross-entropy is a mean over the batch; times its size, every sample counts alike in the last batch too.
        product = (
            (view.activations * view.gradients).flatten(2).sum(2)
            if view.activations.dim() > 2
            else (view.activations * view.gradients)
        )
        change = product.double().abs().sum(0) * len(product)
        self._scores[view.layer] = self._scores.get(view.layer, torch.zeros_like(change)) + change
        self._samples[view.layer] = self._samples.get(view.layer, 0) + len(product)

    def sums(self) -> dict[str, Tensor]:
        """Summed changes and, under "/samples", over how many, by layer."""
        return {**self._scores, **{f"{layer}/samples": torch.tensor(count) for layer, count in self._samples.items()}}

    def join(self, parts: Sequence[Mapping[str, Tensor]]) -> None:
        """Adds up what all processes have."""
        for layer in self._scores:
            self._scores[layer] = torch.stack([part[layer] for part in parts]).sum(0)
            self._samples[layer] = int(sum(part[f"{layer}/samples"] for part in parts))

    def conclude(self) -> Finding:
        """The mean over samples."""
        return Finding(
            self.name,
            importance={layer: (total / self._samples[layer]).cpu() for layer, total in self._scores.items()},
        )


class Random(_Scores):
    """Uniform random scores: the control that every criterion has to beat.

    Args:
        seed: two runs with the same seed score alike, whatever order the layers come in.
    """

    name = "random"

    @in_range("[analyses.random]")
    def __init__(self, *, seed: Seed = 0) -> None:
        super().__init__()
        self.seed = seed

    def observe(self, view: LayerView) -> None:
        """Draws once per layer."""
        if view.layer not in self._scores:
            key = zlib.crc32(view.layer.encode())
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + key)
            self._scores[view.layer] = torch.rand(view.activations.shape[1], generator=generator, dtype=torch.float64)

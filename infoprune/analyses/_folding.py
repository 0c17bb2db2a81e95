"""Weights of convolutions and linear layers with the batch norm behind them folded in."""

import torch
from torch import Tensor, nn

from infoprune.analyses.base import LayerView

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


class Folding:
    """Watches layers in the order of the forward pass and knows which norm follows which.

    A norm counts as behind a layer if its output is the affine function of that layer's output that it should be:
    behind a sum, or before a layer, it is not. Nothing but means per channel is remembered.
    """

    def __init__(self) -> None:
        self._modules: dict[str, nn.Conv2d | nn.Linear] = {}
        self._scales: dict[str, Tensor] = {}
        self._last: tuple[str, Tensor] | None = None

    def see(self, view: LayerView) -> bool:
        """Takes up a view; whether it is one of a convolution or linear layer."""
        module, means = view.module, _means(view.activations)
        if isinstance(module, NORMS):
            if self._last is not None:
                name, before = self._last
                scale, shift = _affine(module)
                if len(before) == len(means) and torch.allclose(before * scale + shift, means, rtol=1e-3, atol=1e-4):
                    self._scales[name] = scale
            self._last = None
            return False
        if isinstance(module, nn.Conv2d | nn.Linear):
            self._modules[view.layer] = module
            self._last = (view.layer, means)
            return True
        return False

    def weights(self) -> dict[str, Tensor]:
        """Weights as they act, `outputs x inputs [x height x width]`, in float64 on the CPU."""
        found = {}
        for name, module in self._modules.items():
            weight = module.weight.detach().double().cpu()
            if name in self._scales:
                weight = weight * self._scales[name].cpu().view(-1, *[1] * (weight.dim() - 1))
            found[name] = weight
        return found

    def stacked(self) -> dict[str, Tensor]:
        """One mixing matrix per layer, `outputs x inputs·taps`; grouped layers as the block matrix that they are."""
        found = {}
        for name, weight in self.weights().items():
            groups = getattr(self._modules[name], "groups", 1)
            blocks = torch.chunk(weight.flatten(1), groups)
            found[name] = torch.block_diag(*blocks) if groups > 1 else blocks[0]  # type: ignore[no-untyped-call]
        return found

    def groups(self, name: str) -> int:
        """Groups of a convolution; 1 for a linear layer."""
        return int(getattr(self._modules[name], "groups", 1))


def _means(maps: Tensor) -> Tensor:
    return maps.double().transpose(0, 1).flatten(1).mean(1)


def _affine(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Scale and shift of a batch norm in evaluation."""
    mean, variance = norm.running_mean, norm.running_var
    if not isinstance(mean, Tensor) or not isinstance(variance, Tensor):  # it normalises by the batch: no fixed scale
        return torch.full((1,), torch.nan), torch.zeros(1)
    scale = (variance.double() + float(norm.eps)).rsqrt()  # type: ignore[arg-type]
    shift = torch.zeros_like(scale)
    if isinstance(norm.weight, Tensor):
        scale, shift = scale * norm.weight.detach().double(), norm.bias.detach().double()  # type: ignore[operator]
    return scale, shift - mean.double() * scale

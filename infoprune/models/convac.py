"""Convolutional arithmetic circuits: mixtures of products, as one network with a tractable likelihood.

Layer names: `represent` (a mixture component's likelihood of each patch), `mix.0`, `mix.1`, … (a logarithm of a
weighted mean over the components before it, at every place), `top` (the same for each class).
"""

import math
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from infoprune.config.ranges import Channels, Classes, Pixels, Width, in_range
from infoprune.errors import UserError


class Gaussians(nn.Module):
    """Log-likelihood of each patch under diagonal Gaussians: the representation layer P(x_i | d; θ_d) of Eq. (3).

    `samples x channels x height x width` becomes `samples x components x height/patch x width/patch`.
    """

    def __init__(self, channels: int, components: int, patch: int) -> None:
        super().__init__()
        self.patch = patch
        self.mean = nn.Parameter(torch.randn(components, channels * patch * patch))
        self.log_deviation = nn.Parameter(torch.zeros(components, channels * patch * patch))

    def forward(self, images: Tensor) -> Tensor:
        rows, columns = images.shape[2] // self.patch, images.shape[3] // self.patch
        patches = nn.functional.unfold(images, self.patch, stride=self.patch).transpose(1, 2)[:, :, None]
        z = (patches - self.mean) * torch.exp(-self.log_deviation)
        found = -0.5 * (z.square() + math.log(2 * math.pi)).sum(-1) - self.log_deviation.sum(1)
        return found.transpose(1, 2).reshape(len(images), -1, rows, columns)


class LogMixture(nn.Module):
    """log Σ_α a_α P_α at every place: a 1x1 convolution whose weights are row-stochastic, in log-space, Eq. (24).

    `samples x inputs x …` becomes `samples x outputs x …`.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.randn(outputs, inputs))

    def matrix(self) -> Tensor:
        """The mixing matrix A, `outputs x inputs`, whose rows add up to 1."""
        return torch.softmax(self.logits, 1)

    def forward(self, log_likelihoods: Tensor) -> Tensor:
        # Relative to the likeliest component, so that not all of them underflow; a logsumexp would take memory for
        # samples x outputs x inputs x places.
        largest = log_likelihoods.amax(1, keepdim=True)
        mixed = torch.einsum("oi,ni...->no...", self.matrix(), (log_likelihoods - largest).exp())
        return mixed.clamp_min(torch.finfo(mixed.dtype).tiny).log() + largest


class LogProduct(nn.Module):
    """Product pooling in log-space, Eq. (23): sums over windows of `window` x `window`, or over the whole map."""

    def __init__(self, window: int | None) -> None:
        super().__init__()
        self.window = window

    def forward(self, log_likelihoods: Tensor) -> Tensor:
        if self.window is None:
            return log_likelihoods.sum((2, 3), keepdim=True)
        return nn.functional.avg_pool2d(log_likelihoods, self.window) * self.window**2


class ConvAC(nn.Module):
    """A representation layer, mixtures and products in turn, and one mixture per class: log P(X | class)."""

    def __init__(self, channels: int, patch: int, widths: list[int], classes: int, shallow: bool) -> None:
        super().__init__()
        self.represent = Gaussians(channels, widths[0], patch)
        self.mix = nn.ModuleList(LogMixture(inputs, outputs) for inputs, outputs in pairwise(widths))
        self.products = nn.ModuleList(LogProduct(None if shallow else 2) for _ in self.mix)
        self.top = LogMixture(widths[-1], classes)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.represent(images)
        for mix, product in zip(self.mix, self.products, strict=True):
            maps = product(mix(maps))
        logits: Tensor = self.top(maps).flatten(1)
        return logits


@in_range("[model]")
def build(
    *,
    kind: Literal["ht", "cp"] = "ht",
    size: Pixels = 16,
    patch: Pixels = 2,
    widths: list[Width] | None = None,
    classes: Classes = 10,
    input_channels: Channels = 1,
) -> ConvAC:
    """A convolutional arithmetic circuit with random weights, in log-space (Sharir et al., 2017; Cohen et al., 2016).

    It maps `samples x input_channels x size x size` to log P(X | class), `samples x classes`, which are logits for
    cross-entropy: the class posterior under equal priors. Products are over windows of four places, as images have
    two sides; each is two of the binary fusions of Eq. (20).

    >>> build(size=8, patch=2, widths=[4, 6, 8])(torch.randn(3, 1, 8, 8)).shape
    torch.Size([3, 10])

    Args:
        kind: "ht", a hierarchy of products over windows of 2x2, or "cp", one product over all places.
        size: height and width of the images.
        patch: height and width of the patches x_i, which do not overlap.
        widths: components of the representation, then of each mixture; one mixture for "cp", one for each halving
            of the map for "ht"; 16 each if not given.
        classes: number of outputs.
        input_channels: channels of the images.

    Raises:
        UserError: for sizes that do not divide, or a number of widths that does not fit them.
    """
    places = size // patch
    if kind not in ("ht", "cp") or places * patch != size:
        raise UserError(
            f"convac got kind '{kind}', size {size}, patch {patch}; expected 'ht' or 'cp', and a patch that divides "
            "the size"
        )
    halvings = places.bit_length() - 1
    if kind == "ht" and (2**halvings != places or halvings < 1):
        raise UserError(f"convac got {places} x {places} patches; a hierarchy needs a power of two, such as 4 x 4")
    needed = 1 + (halvings if kind == "ht" else 1)
    chosen = [16] * needed if widths is None else widths
    if len(chosen) != needed:
        raise UserError(f"convac got widths {chosen}; expected {needed} numbers")
    return ConvAC(input_channels, patch, chosen, classes, kind == "cp")

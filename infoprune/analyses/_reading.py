"""What a convolution or linear layer reads of the maps before it, as rows of numbers."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.GroupNorm, nn.InstanceNorm2d)
ACTIVATIONS = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish),
    *(nn.Sigmoid, nn.Tanh, nn.Softplus, nn.Hardswish, nn.Hardsigmoid, nn.Hardtanh),
)
POOLINGS = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)
CHANNELWISE: tuple[type[nn.Module], ...] = (*NORMS, *ACTIVATIONS, *POOLINGS)
"""Modules that leave channels apart: a map stays the map of its filter."""


def is_depthwise(module: nn.Module) -> bool:
    """Whether each filter reads its own channel only."""
    return isinstance(module, nn.Conv2d) and module.groups == module.in_channels == module.out_channels > 1


def reads(module: nn.Module, width: int) -> bool:
    """Whether a layer may read maps of that many channels, a linear layer after flattening them."""
    if isinstance(module, nn.Conv2d):
        return module.in_channels == width
    return isinstance(module, nn.Linear) and module.in_features % width == 0


def means(maps: Tensor) -> Tensor:
    """Mean over each map, `samples x filters`."""
    return maps.flatten(2).mean(2) if maps.dim() > 2 else maps


def patches(module: nn.Conv2d, x: Tensor, y: Tensor, positions: int, seed: int) -> tuple[Tensor, Tensor] | None:
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

"""Data of one's own: a function that returns DataLoaders. Here the images are drawn, so nothing has to be fetched."""

import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

SIDE = 16


def loaders(samples: int = 1200, noise: float = 0.3) -> dict[str, DataLoader]:
    """Disks, rings, squares and crosses at any place, in noise.

    Batch sizes and order are the recipe's: these loaders only say what there is, and how it becomes a batch.
    """
    return {
        "train": DataLoader(shapes(samples, noise, seed=1)),
        "validation": DataLoader(shapes(samples // 4, noise, seed=2)),
        "test": DataLoader(shapes(samples // 4, noise, seed=3)),
    }


def shapes(samples: int, noise: float, seed: int) -> TensorDataset:
    """Images, `samples x 1 x 16 x 16`, and the number of the shape in each."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(samples) % 4
    centre = 5 + (SIDE - 10) * torch.rand(samples, 2, 1, 1, generator=generator)
    size = 2.5 + 2 * torch.rand(samples, 1, 1, generator=generator)
    grid = torch.stack(torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")).float()
    down, across = (grid - centre).abs().unbind(1)
    round_, square = down.hypot(across), torch.maximum(down, across)
    kinds: list[Tensor] = [
        round_ <= size,
        (round_ <= size) & (round_ >= size - 1.5),
        square <= 0.85 * size,
        (square <= size) & (torch.minimum(down, across) <= 0.8),
    ]
    drawn = torch.stack(kinds)[labels, torch.arange(samples)].float()
    return TensorDataset((drawn + noise * torch.randn(drawn.shape, generator=generator)).unsqueeze(1), labels)

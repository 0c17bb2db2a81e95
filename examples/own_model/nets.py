"""A network of one's own: any torch.nn.Module that maps a batch of images to logits will do."""

import torch
from torch import Tensor, nn


class ShapesNet(nn.Module):
    """Two convolutions whose maps are put side by side, a residual block, a classifier."""

    def __init__(self, width: int = 16, classes: int = 4) -> None:
        super().__init__()
        self.coarse = nn.Conv2d(1, width, 5, padding=2)
        self.fine = nn.Conv2d(1, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(2 * width)
        self.inner = nn.Conv2d(2 * width, 2 * width, 3, padding=1, bias=False)
        self.inner_norm = nn.BatchNorm2d(2 * width)
        self.outer = nn.Conv2d(2 * width, 2 * width, 3, padding=1)
        self.head = nn.Linear(2 * width, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits, `samples x classes`, of images, `samples x 1 x height x width`."""
        maps = torch.cat([self.coarse(images), self.fine(images)], dim=1)
        maps = torch.max_pool2d(self.norm(maps).relu(), 2)
        maps = maps + self.outer(self.inner_norm(self.inner(maps)).relu())
        return self.head(maps.relu().mean((2, 3)))

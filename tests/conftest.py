"""What all tests share: runtime-checked shapes in the pure mathematics, small networks, and the real data's place."""

import os
from pathlib import Path

from jaxtyping import install_import_hook

# Before anything imports it: the shapes in its signatures are then executed, not only read.
install_import_hook("infoprune.information", "beartype.beartype")

import pytest  # noqa: E402
import torch  # noqa: E402
from torch import nn  # noqa: E402


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder with real data and weights."""
    root = os.environ.get("INFOPRUNE_DATA")
    if root is None:
        pytest.skip("INFOPRUNE_DATA is not set: real CIFAR-10 and pretrained weights are needed")
    return Path(root)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


class Chain(nn.Module):
    """Three convolutions with batch norm, pooling and a head; no residual streams."""

    def __init__(self, widths: tuple[int, int, int] = (6, 8, 4), classes: int = 3) -> None:
        super().__init__()
        a, b, c = widths
        self.first, self.first_norm = nn.Conv2d(2, a, 3, padding=1), nn.BatchNorm2d(a)
        self.second, self.second_norm = nn.Conv2d(a, b, 3, padding=1, bias=False), nn.BatchNorm2d(b)
        self.third = nn.Conv2d(b, c, 1)
        self.head = nn.Linear(c * 4, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        maps = torch.relu(self.first_norm(self.first(images)))
        maps = torch.sigmoid(self.second_norm(self.second(maps)))  # not zero at zero: the twin must not rely on it
        maps = nn.functional.adaptive_avg_pool2d(torch.relu(self.third(maps)), 2)
        return self.head(maps.flatten(1))


@pytest.fixture
def chain() -> nn.Module:
    """A `Chain` whose batch-norm statistics and scales are not the initial ones."""
    model = Chain()
    for norm in (model.first_norm, model.second_norm):
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    return model.eval()


@pytest.fixture
def images() -> torch.Tensor:
    """Sixteen images for `chain`."""
    return torch.randn(16, 2, 8, 8)

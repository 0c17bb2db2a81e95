"""What all tests share: runtime-checked shapes in the pure mathematics, small networks, and the real data's place."""

import gzip
import io
import os
from pathlib import Path
from zipfile import ZipFile

from jaxtyping import install_import_hook

# Before anything imports it: the shapes in its signatures are then executed, not only read.
install_import_hook("infoprune.information", "beartype.beartype")

import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402
from PIL import Image  # noqa: E402
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


@pytest.fixture
def idx_folder(tmp_path: Path) -> Path:
    """The four .gz files of an MNIST with 60 training and 20 test images, whose first pixel is their number."""
    for prefix, count in (("train", 60), ("t10k", 20)):
        pixels = np.random.default_rng(count).integers(0, 256, (count, 28, 28), dtype=np.uint8)
        pixels[:, 0, 0] = np.arange(count)
        labels = np.arange(count, dtype=np.uint8) % 10
        for kind, array in (("images-idx3", pixels), ("labels-idx1", labels)):
            header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, dtype=">u4").tobytes()
            (tmp_path / f"{prefix}-{kind}-ubyte.gz").write_bytes(gzip.compress(header + array.tobytes()))
    return tmp_path


@pytest.fixture
def fruits_folder(tmp_path: Path) -> Path:
    """Fruits-360 with three classes of one grey each: 12 training and 4 test images per class."""
    for part, count in (("train", 12), ("test", 4)):
        with ZipFile(tmp_path / f"{part}64.zip", "w") as archive:
            for label in range(3):
                for number in range(count):
                    content = io.BytesIO()
                    Image.new("RGB", (64, 64), (80 * label + number,) * 3).save(content, "png")
                    archive.writestr(f"{label:02d}/{number}.png", content.getvalue())
    return tmp_path

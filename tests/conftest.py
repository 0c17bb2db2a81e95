"""What all tests share: runtime-checked shapes in the pure mathematics, small networks, and the real data's place."""

import gzip
import io
import os
import random
from collections.abc import Callable
from pathlib import Path
from zipfile import ZipFile

from jaxtyping import install_import_hook

# Before anything imports it: the shapes in its signatures are then executed, not only read.
install_import_hook("infoprune.information", "beartype.beartype")

# Side by side, processes share the cores; so do those that tests start.
WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
if WORKERS > 1:
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // WORKERS)))

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
        maps = torch.sigmoid(self.second_norm(self.second(maps)))  # not zero at zero: the clone must not rely on it
        maps = nn.functional.adaptive_avg_pool2d(torch.relu(self.third(maps)), 2)
        return self.head(maps.flatten(1))


def prove(model: nn.Module, images: torch.Tensor, share: float = 0.5) -> tuple[nn.Module, dict[str, str]]:
    """Cuts every group that can be cut at random, proves the result, and gives it with the refusals of the others."""
    # Imported here: the hook above has to come before anything of the package.
    from infoprune.planning.plan import GroupPlan, Plan
    from infoprune.pruning.channel_graph import channel_graph
    from infoprune.pruning.prune import prune
    from infoprune.pruning.verify import verify

    before = {name: value.clone() for name, value in model.state_dict().items()}
    graph, groups = channel_graph(model, images), []
    for group in graph.groups:
        if not group.refusal:
            part = group.width // group.partitions
            own = sorted(random.Random(f"{group.name} {share}").sample(range(part), max(1, round(part * share))))
            kept = tuple(channel + part * i for i in range(group.partitions) for channel in own)
            groups.append(GroupPlan(group.name, kept, group.width, len(kept), 0, 0, "random"))
    plan = Plan(tuple(groups), {}, 0, 0, graph.input_shape)
    pruned = prune(model, plan)
    assert verify(model, pruned, graph, plan.kept(), images).max_rel_difference <= 1e-5
    widths = {group.group: group.width_after for group in plan.groups}
    assert channel_graph(pruned, images).macs({}) == graph.macs(widths)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    return pruned, {group.name: group.refusal for group in graph.groups if group.refusal}


@pytest.fixture(name="prove")
def _prove() -> Callable[..., tuple[nn.Module, dict[str, str]]]:
    """The function above: test files cannot import each other's."""
    return prove


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

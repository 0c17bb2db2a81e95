"""The generated Python file builds the same network where this package is not installed, or says why it cannot."""

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision import models

from infoprune.errors import RunError
from infoprune.evaluation.metrics import ModelReference
from infoprune.exporting.export import export
from infoprune.exporting.source import source
from infoprune.io import checkpoint
from infoprune.planning.plan import GroupPlan, Plan
from infoprune.pruning.channel_graph import channel_graph
from infoprune.pruning.prune import prune

IMAGES = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))

# Isolated from the working directory and the user's site; this package is made impossible to import.
ELSEWHERE = """
import sys
sys.modules["infoprune"] = None
sys.path.insert(0, sys.argv[1])
from model import load
from safetensors.torch import load_file, save_file
network = load()
assert not network.training
save_file({"out": network(load_file("images.safetensors")["images"]).detach()}, "out.safetensors")
"""


def elsewhere(folder: Path, images: Tensor) -> Tensor:
    """What the exported network computes in a process without this package."""
    from safetensors.torch import load_file, save_file

    scratch = folder / "scratch"
    scratch.mkdir()
    save_file({"images": images}, scratch / "images.safetensors")
    command = [sys.executable, "-I", "-c", ELSEWHERE, str(folder)]
    ended = subprocess.run(command, cwd=scratch, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    return load_file(scratch / "out.safetensors")["out"]


def test_a_pruned_network_runs_without_infoprune(tmp_path: Path) -> None:
    model = checkpoint.build(ModelReference("cifar_resnet", {"depth": 8, "widths": [4, 6, 8]}))
    groups = [group for group in channel_graph(model, IMAGES).groups if not group.refusal]
    kept = [GroupPlan(group.name, (1, 3), group.width, 2, 0, 0, "") for group in groups[:2]]
    pruned = prune(model, Plan(tuple(kept), {}, 0, 0, (3, 8, 8)))
    row = export(pruned, IMAGES, tmp_path, formats=["source"])[1]
    assert (row.format, row.max_abs_difference, row.batches) == ("source", 0.0, (4, 5, 1))
    text = row.path.read_text()
    assert '"conv1": nn.Conv2d(in_channels=4, out_channels=2, kernel_size=3, padding=1, bias=False),' in text
    assert "infoprune." not in text
    assert torch.equal(elsewhere(tmp_path, IMAGES), pruned(IMAGES))


class Everything(nn.Module):
    """What may stand outside layers, and layers whose arguments are not all their attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.reflecting = nn.Conv2d(3, 4, (3, 1), padding=(1, 0), padding_mode="reflect", groups=1)
        self.norm = nn.GroupNorm(2, 4)
        self.scale = nn.Parameter(torch.randn(4, 1, 1))
        self.register_buffer("shift", torch.randn(4, 1, 1))
        self.register_buffer("sign", torch.tensor([1.0, -1.0, math.pi, 1.0]).view(4, 1, 1), persistent=False)
        self.branches = nn.ModuleDict({"wide": nn.Conv2d(4, 4, 1), "1x1": nn.Conv2d(4, 4, 1, bias=False)})
        self.rows = nn.ParameterList([torch.randn(4), torch.randn(4)])
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.unused = nn.PReLU(3)
        self.head = nn.Sequential(nn.Flatten(), nn.Dropout(0.3), nn.LazyLinear(5), nn.Hardtanh(-1, 2))
        self.eval()(IMAGES)

    def forward(self, images: Tensor, targets: Tensor | None = None, scale: float = 1.0) -> dict[str, Tensor]:
        maps = F.relu(self.norm(self.reflecting(images))) * self.scale + self.shift * self.sign
        maps = self.branches["wide"](maps) + self.branches["1x1"](maps) * scale
        maps = maps * self.rows[1].view(-1, 1, 1)
        tokens = maps.flatten(2).transpose(1, 2)
        tokens = self.attention(tokens, tokens, tokens, need_weights=False)[0] + torch.tensor([0.5, 1.0, 0.0, 2.0])
        if targets is not None:
            tokens = tokens + targets
        maps = tokens.transpose(1, 2).reshape(len(images), -1, 8, 8)
        return {"out": self.head(F.dropout(maps, 0.5, training=self.training))}


def test_parameters_buffers_constants_and_default_arguments_are_written_out(tmp_path: Path) -> None:
    assert export(Everything(), IMAGES, tmp_path, formats=["source"])[1].max_rel_difference <= 1e-6
    text = (tmp_path / "model.py").read_text()
    assert "padding_mode='reflect'" in text
    assert "persistent=False" in text
    assert "def forward(self, images):" in text


@pytest.mark.parametrize("name", ["efficientnet_b0", "convnext_tiny", "vit_b_16", "lraspp_mobilenet_v3_large"])
def test_torchvisions_networks_are_written_with_torch_alone(name: str) -> None:
    with torch.device("meta"):  # shapes without numbers
        options = {"weights_backbone": None} if name.startswith("lraspp") else {}
        model = models.get_model(name, weights=None, **options).eval()
        names: dict[str, Any] = {"__file__": "model.py"}
        exec(source(model, torch.zeros(1, 3, 224, 224), "model.safetensors"), names)
        network = names["Network"]()
    assert "torchvision" not in names
    assert not any("torchvision" in str(getattr(value, "__module__", "")) for value in names.values())
    shapes = [{key: value.shape for key, value in each.state_dict().items()} for each in (model, network)]
    assert shapes[0] == shapes[1]


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


class TwoInputs(nn.Module):
    def forward(self, x: Tensor, *, y: Tensor) -> Tensor:
        return x + y


class Table(nn.Module):
    """A large constant that no weights file holds."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.randn(3, 80, 80), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.table[:, :8, :8]


def foreign(x: Tensor) -> Tensor:
    return x * 2


torch.fx.wrap("foreign")


class Foreign(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return foreign(x)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (Branching(), "control flow"),
        (Table(), "'table' holds 19200 numbers that the weights file lacks"),
        (Foreign(), "calls '.*foreign', which is neither torch's nor torchvision's"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_cannot_be_written_names_another_format(tmp_path: Path, model: nn.Module, words: str) -> None:
    with pytest.raises(RunError, match=rf'(?s)cannot be written as a Python file: .*{words}.*formats = \["program"\]'):
        export(model, IMAGES, tmp_path, formats=["source"])
    assert list(tmp_path.iterdir()) == []


def test_a_second_input_is_no_image() -> None:
    with pytest.raises(RunError, match="takes more than the images"):
        source(TwoInputs(), IMAGES, "model.safetensors")


@pytest.mark.parametrize("name", ['x"); import os; ("', "a\\", "line\nbreak"])
def test_a_layers_name_is_never_code(tmp_path: Path, name: str) -> None:
    model = nn.Sequential()
    model.add_module(name, nn.Conv2d(3, 3, 1))
    with pytest.raises(RunError, match="quotes, backslashes or line breaks"):
        export(model, IMAGES, tmp_path, formats=["source"])
    assert list(tmp_path.iterdir()) == []


def test_a_layer_that_was_changed_by_hand_is_still_itself(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, 1), nn.ReLU(), nn.Conv2d(6, 2, 1))
    model[0].weight, model[0].bias = nn.Parameter(model[0].weight[:4]), nn.Parameter(model[0].bias[:4])
    model[2].weight = nn.Parameter(model[2].weight[:, :4])  # its attributes still say 6
    row = export(model, IMAGES, tmp_path, formats=["source"])[1]
    assert row.max_rel_difference <= 1e-6

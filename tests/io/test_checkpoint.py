"""Checkpoints: built again, replayed and loaded to the bit, in a fresh process, without any pickle."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from infoprune.errors import UserError
from infoprune.evaluation.metrics import ModelReference
from infoprune.io import checkpoint, storage
from infoprune.planning.plan import GroupPlan, Plan
from infoprune.pruning.channel_graph import channel_graph
from infoprune.pruning.prune import prune

REFERENCE = ModelReference("cifar_resnet", {"depth": 8, "input_channels": 1, "shortcut": "projection"})


@pytest.fixture
def pruned() -> tuple[nn.Module, Plan]:
    model = checkpoint.build(REFERENCE)
    graph = channel_graph(model, torch.zeros(1, 1, 16, 16))
    kept = {"conv1": (0, 3, 5, 9), "layer2.0.conv1": tuple(range(1, 30, 2))}
    widths = {group.name: group.width for group in graph.groups}
    groups = tuple(GroupPlan(name, k, widths[name], len(k), 0, 0, "") for name, k in kept.items())
    plan = Plan(groups, {}, 0, 0, graph.input_shape)
    return prune(model, plan), plan


def test_loads_bit_for_bit_in_a_fresh_process(tmp_path: Path, pruned: tuple[nn.Module, Plan]) -> None:
    model, plan = pruned
    path, images = tmp_path / "pruned.safetensors", torch.randn(4, 1, 16, 16)
    checkpoint.save(path, model, REFERENCE, plan)
    torch.save(images, tmp_path / "images.pt")
    script = (
        "import sys, torch, infoprune\n"
        f"images = torch.load({str(tmp_path / 'images.pt')!r}, weights_only=True)\n"
        f"with torch.no_grad(): out = infoprune.load({str(path)!r})(images)\n"
        f"torch.save(out, {str(tmp_path / 'out.pt')!r})\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
    with torch.no_grad():
        expected = model.eval()(images)
    assert torch.equal(torch.load(tmp_path / "out.pt", weights_only=True), expected)


def test_users_own_code_is_not_run_by_surprise(tmp_path: Path) -> None:
    code = tmp_path / "nets.py"
    code.write_text(
        "from pathlib import Path\nfrom torch import nn\n"
        "def net(width):\n    Path(__file__).with_name('ran').touch()\n"
        "    return nn.Sequential(nn.Conv2d(1, width, 1))\n"
    )
    reference = ModelReference(f"{code}:net", {"width": 3})
    checkpoint.save(tmp_path / "own.safetensors", checkpoint.build(reference), reference)
    (tmp_path / "ran").unlink()
    with pytest.raises(UserError, match="give that model as load"):
        checkpoint.load(tmp_path / "own.safetensors")
    assert not (tmp_path / "ran").exists()
    assert checkpoint.load(tmp_path / "own.safetensors", nn.Sequential(nn.Conv2d(1, 3, 1))) is not None
    assert checkpoint.load(tmp_path / "own.safetensors", trust_code=True)[0].out_channels == 3
    assert (tmp_path / "ran").exists()


def test_arguments_that_do_not_fit(tmp_path: Path) -> None:
    code = tmp_path / "nets.py"
    code.write_text("def net(width):\n    return 3\n")
    with pytest.raises(UserError, match="do not fit"):
        checkpoint.build(ModelReference(f"{code}:net", {"wdth": 3}))
    with pytest.raises(UserError, match=r"gave a int, expected a torch\.nn\.Module"):
        checkpoint.build(ModelReference(f"{code}:net", {"width": 3}))
    with pytest.raises(UserError, match=r"no option 'dept' in \[model\]; did you mean 'depth'"):
        checkpoint.build(ModelReference("cifar_resnet", {"dept": 8}))


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (None, "holds weights only"),
        ("{", "damaged header"),
        ('{"format": 99, "version": "9.9"}', r"checkpoint format 99, this version reads 1; .* \(9\.9\)"),
        ('{"format": 1}', "damaged header"),
        ('{"format": 1, "reference": {"name": "cifar_resnet"}, "plan": {"groups": 3}}', "damaged header"),
        ('{"format": 1, "reference": {"name": "no_such"}, "plan": null}', "no model 'no_such'"),
        ('{"format": 1, "reference": {"name": "cifar_resnet"}, "plan": null}', "lacks"),
    ],
)
def test_damaged_headers(tmp_path: Path, header: str | None, message: str) -> None:
    path = tmp_path / "bad.safetensors"
    storage.write_tensors(path, {"conv1.weight": torch.ones(1)}, {} if header is None else {checkpoint.KEY: header})
    with pytest.raises(UserError, match=message):
        checkpoint.load(path)


def test_weights_of_another_plan_are_refused(tmp_path: Path, pruned: tuple[nn.Module, Plan]) -> None:
    model, _ = pruned
    checkpoint.save(tmp_path / "a.safetensors", model, REFERENCE, None)
    with pytest.raises(UserError, match="does not fit"):
        checkpoint.load(tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width_before": 10**18}, "has 1000000000000000000 channels, but in the model it has"),
        ({"width_after": 0}, r"goes from \d+ to 0 channels but keeps"),
        ({"width_before": 1}, "goes from 1 to"),
        ({"kept": (), "width_after": 0}, "at least 1"),
        ({"macs_before": -1}, "has -1 multiply-accumulates"),
        ({"macs_after": -7}, "has -7 multiply-accumulates"),
        ({"kept": (-1,), "width_after": 1}, r"keeps \[-1\], expected sorted and unique indices"),
        ({"kept": (1, 1), "width_after": 2}, "expected sorted and unique indices"),
        ({"kept": (10**6,), "width_after": 1}, "expected sorted and unique indices"),
    ],
)
def test_plans_that_contradict_themselves(
    tmp_path: Path, pruned: tuple[nn.Module, Plan], change: dict[str, Any], message: str
) -> None:
    model, plan = pruned
    cut = next(index for index, entry in enumerate(plan.groups) if entry.width_after < entry.width_before)
    changed = [replace(entry, **change) if index == cut else entry for index, entry in enumerate(plan.groups)]
    path = tmp_path / "model.safetensors"
    checkpoint.save(path, model, REFERENCE, replace(plan, groups=tuple(changed)))
    with pytest.raises(UserError, match=message):
        checkpoint.load(path)


def test_plans_that_name_a_group_twice_or_negative_totals(tmp_path: Path, pruned: tuple[nn.Module, Plan]) -> None:
    model, plan = pruned
    path, again = tmp_path / "model.safetensors", plan.groups[0]
    for wrong, message in (
        (replace(plan, groups=(*plan.groups, again)), f"names the group '{again.group}' 2 times"),
        (replace(plan, macs_before=-1), "has -1 multiply-accumulates"),
    ):
        checkpoint.save(path, model, REFERENCE, wrong)
        for read in (checkpoint.load, checkpoint.plan_of):
            with pytest.raises(UserError, match=message):
                read(path)


def test_files_are_looked_for_in_stated_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INFOPRUNE_DATA", str(tmp_path))
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "net.pth").touch()
    assert checkpoint.find_file("net.pth") == tmp_path / "weights" / "net.pth"
    assert checkpoint.find_file("digits_resnet.safetensors").is_file()
    with pytest.raises(UserError, match=f"no file 'other.pth' in .*{tmp_path}.*; give the full path"):
        checkpoint.find_file("other.pth")
    monkeypatch.delenv("INFOPRUNE_DATA")
    with pytest.raises(UserError, match="INFOPRUNE_DATA is not set"):
        checkpoint.find_file("net.pth")


@pytest.mark.parametrize("name", ["cuda:99", "gpu", "xpu:7", "meta", "vulkan", "hpu", "opencl", ""])
def test_devices_that_are_not_there_or_cannot_compute(name: str) -> None:
    with pytest.raises(UserError, match=f"device = '{name}' is not to be had: .*; use 'cpu' or 'auto'") as caught:
        checkpoint.device_for(name)
    assert len(str(caught.value)) < 200


QUANTIZED = """
import torch
from torch import nn


class Noted(nn.Linear):
    def get_extra_state(self):
        return {"note": 1}

    def set_extra_state(self, state):
        pass


class Fixed(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("table", torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8))


def dynamic():
    return torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(2, 2)))


def noted():
    return Noted(2, 2)
"""


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")  # torch gives up this quantization
@pytest.mark.parametrize(
    ("function", "words"),
    [
        ("dynamic", "a dtype as '0._packed_params.dtype'"),
        ("noted", "a dict as '_extra_state'"),
        ("Fixed", "a quantized tensor as 'table'"),
    ],
)
def test_models_that_hold_more_than_plain_tensors(tmp_path: Path, function: str, words: str) -> None:
    path = tmp_path / "quantized.py"
    path.write_text(QUANTIZED)
    with pytest.raises(UserError, match=f"holds {words} of its state_dict.*prune the float model, then quantize it"):
        checkpoint.build(ModelReference(f"{path}:{function}"))

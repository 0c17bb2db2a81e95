"""ONNX in 8-bit integers: smaller, calibrated on the batches given, scored on the data given."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import infoprune
from infoprune.evaluation.accuracy import evaluate
from infoprune.evaluation.metrics import ModelReference
from infoprune.exporting.export import export


@pytest.fixture(scope="module")
def digits() -> nn.Module:
    reference = ModelReference("cifar_resnet", {"depth": 14, "input_channels": 1, "shortcut": "projection"})
    return infoprune.build(reference, weights="digits_resnet.safetensors")


def test_digits_keep_their_accuracy_in_a_third_of_the_bytes(
    digits: nn.Module, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data = infoprune.load_data("digits")
    images = [batch for batch, _ in data.batches("train", seed=0)][:2]
    test = list(data.batches("test"))
    rows = export(
        digits,
        images[0][:8],
        tmp_path,
        images,
        lambda model: evaluate(model, test),
        formats=["onnx", "int8", "int8_dynamic"],
    )
    exact = evaluate(digits, test).accuracy
    for row in rows[1:]:
        assert row.bytes < rows[0].bytes / 3
        assert row.accuracy == pytest.approx(exact, abs=0.01)
        assert row.max_rel_difference > 1e-3  # it is not the float model under another name
    assert rows[0].accuracy is None
    assert capfd.readouterr() == ("", "")
    graph = onnx.load(tmp_path / "model-int8.onnx").graph
    integers = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    kernels = [value for value in integers.values() if value.dtype == np.int8 and value.ndim == 4]
    assert len(kernels) == 15
    # One scale per filter.
    assert sum(value.ndim == 1 and len(value) == 64 and value.dtype == np.float32 for value in integers.values()) >= 4


def test_static_scales_come_from_the_calibration_batches(tmp_path: Path) -> None:
    """Activations of calibration reach 1, those of the example 100: the file clips them where calibration ends."""
    model = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.ReLU(), nn.Conv2d(1, 1, 1, bias=False))
    for layer in (model[0], model[2]):
        nn.init.ones_(layer.weight)
    wide = 100 * torch.ones(2, 1, 4, 4)
    narrow, dynamic = export(model, wide, tmp_path, [wide / 100], formats=["int8", "int8_dynamic"])
    assert narrow.max_abs_difference == pytest.approx(99, abs=1)
    assert dynamic.max_abs_difference < 2
    (fitting,) = export(model, wide, tmp_path, [wide], formats=["int8"])
    assert fitting.max_abs_difference < 2

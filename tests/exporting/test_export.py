"""Every file is read again by another program; a model that a file cannot hold says so and leaves none."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from infoprune.config import recipe
from infoprune.errors import RunError, UserError
from infoprune.evaluation.metrics import ModelReference, Score
from infoprune.exporting import export as exporting
from infoprune.exporting import traced
from infoprune.exporting.export import FILES, export
from infoprune.io import checkpoint, storage
from infoprune.pipeline import settings
from infoprune.planning.plan import GroupPlan, Plan
from infoprune.pruning.channel_graph import channel_graph
from infoprune.pruning.prune import prune


def small() -> nn.Sequential:
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(8, 5))
    model(torch.randn(16, 3, 8, 8))  # running statistics other than 0 and 1
    return model.eval()


class FixedBatch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.view(2, -1)


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


class Segmenting(nn.Module):
    """A mapping with a nested list, whose names are not in alphabetical order."""

    def forward(self, x: Tensor) -> dict[str, Tensor | list[Tensor]]:
        return {"out": x * 2, "aux": [x.mean((2, 3)), x.amax(1)]}


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x))


IMAGES = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def test_every_format_agrees_with_the_model(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    rows = export(small(), IMAGES, tmp_path / "new", formats=list(FILES))
    assert [row.format for row in rows] == list(FILES)
    for row in rows:
        assert row.path == tmp_path / "new" / FILES[row.format]
        assert row.bytes == row.path.stat().st_size > 0
        assert row.path.stat().st_mode & 0o777 == (tmp_path / "new").stat().st_mode & 0o666
        assert row.max_rel_difference < (0.1 if "int8" in row.format else 1e-5)
        assert row.batches == (4, 5, 1)
    # One self-contained file each, no scratch, no chatter.
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == sorted(FILES.values())
    assert capfd.readouterr() == ("", "")


def test_the_onnx_file_runs_elsewhere(tmp_path: Path) -> None:
    import onnxruntime

    model = small()
    (row,) = export(model, IMAGES[:1], tmp_path, formats=["onnx"])
    session = onnxruntime.InferenceSession(row.path.read_bytes(), providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].shape == ["batch", 3, 8, 8]
    seven = torch.randn(7, 3, 8, 8)
    (output,) = session.run(None, {"input": seven.numpy()})
    np.testing.assert_allclose(output, model(seven).detach(), atol=1e-5)


def test_the_program_keeps_neither_images_nor_paths(tmp_path: Path) -> None:
    rows = export(small(), IMAGES, tmp_path, formats=["program", "onnx"])
    read = torch.export.load(rows[0].path)
    assert read.example_inputs is None or not any(value.any() for value in read.example_inputs[0])
    for row in rows:
        assert b"site-packages" not in row.path.read_bytes()


@pytest.mark.parametrize(("dtype", "differs"), [("float32", 0.0), ("float16", 2e-3), ("bfloat16", 2e-2)])
def test_the_state_dict_has_the_precision_asked_for(tmp_path: Path, dtype: exporting.Dtype, differs: float) -> None:
    from safetensors.torch import load_file

    model = small()
    score = Score(0.5, 1.0, 4)
    (row,) = export(model, IMAGES, tmp_path, score=lambda _: score, formats=["state_dict"], dtypes=[dtype])
    assert row.path.name == ("model.safetensors" if dtype == "float32" else f"model-{dtype}.safetensors")
    assert (row.dtype, row.accuracy) == (dtype, None if dtype == "float32" else 0.5)
    weights = load_file(row.path)
    assert {value.dtype for value in weights.values()} == {getattr(torch, dtype), torch.int64}
    assert torch.equal(weights["0.weight"], model[0].weight.to(getattr(torch, dtype)))
    assert row.max_rel_difference <= differs
    assert (row.max_rel_difference == 0) == (dtype == "float32")


def test_a_state_dict_needs_no_trace(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), FixedBatch())
    (row,) = export(model, IMAGES[:2], tmp_path, formats=["state_dict"])
    assert row.batches == (2,)


def test_a_checkpoint_in_every_precision_is_loaded_again(tmp_path: Path) -> None:
    reference = ModelReference("cifar_resnet", {"depth": 8, "widths": [4, 6, 8], "shortcut": "projection"})
    model = checkpoint.build(reference)
    images = torch.randn(2, 3, 8, 8)
    name = next(group.name for group in channel_graph(model, images).groups if not group.refusal)
    plan = Plan((GroupPlan(name, (0, 2), 4, 2, 0, 0, ""),), {}, 0, 0, (3, 8, 8))
    pruned = prune(model, plan)
    dtypes: list[exporting.Dtype] = ["float32", "float16", "bfloat16"]
    header = checkpoint.metadata(reference, plan)
    rows = export(pruned, images, tmp_path, header=header, formats=["state_dict"], dtypes=dtypes)
    assert rows[0].bytes > rows[1].bytes > rows[0].bytes / 2
    for row in rows:
        # safetensors puts several entries in another order in every process.
        assert list(storage.read_metadata(row.path)) == list(header)
        loaded = checkpoint.load(row.path)
        assert all(value.dtype in (torch.float32, torch.int64) for value in loaded.state_dict().values())
        torch.testing.assert_close(loaded(images), pruned(images), rtol=0, atol=0 if row.dtype == "float32" else 0.1)


def test_shared_weights_and_nested_outputs(tmp_path: Path) -> None:
    for model, example in ((Tied(), torch.randn(2, 4)), (Segmenting(), IMAGES)):
        rows = export(model, example, tmp_path, formats=["state_dict", "source", "onnx", "program"])
        assert all(row.max_rel_difference < 1e-6 for row in rows)


def test_the_model_stays_as_it_was(tmp_path: Path) -> None:
    model = small().double().train()
    model[1].eval()
    model[0].weight.requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    export(model, IMAGES.double(), tmp_path, formats=list(FILES))
    assert [layer.training for layer in model] == [True, False, True, True, True, True]
    assert [parameter.requires_grad for parameter in model.parameters()] == [False, True, True, True, True]
    assert all(value.dtype == before[name].dtype for name, value in model.state_dict().items())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("model", [FixedBatch(), Branching()], ids=lambda model: type(model).__name__)
@pytest.mark.parametrize("name", ["onnx", "program"])
def test_what_cannot_be_traced_leaves_no_file(
    tmp_path: Path, model: nn.Module, name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(RunError, match="cannot be traced for a batch of any size"):
        export(model, IMAGES[:2], tmp_path, formats=[name])
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")


def test_a_wrong_file_is_thrown_away_and_all_earlier_ones_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    export(small(), IMAGES, tmp_path, card=lambda rows, _: f"{len(rows)} files")
    earlier = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert set(earlier) == {"model.safetensors", "model.onnx", "MODEL_CARD.md"}
    other = small()
    nn.init.ones_(other[0].weight)
    write = traced.write_onnx
    monkeypatch.setattr(traced, "write_onnx", lambda *given: lambda x: write(*given)(x) + 0.01)
    with pytest.raises(RunError, match=r"onnx file differs from the model by .* at most 1e-04"):
        export(other, IMAGES, tmp_path, card=lambda *_: "other")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == earlier


def test_weights_too_large_for_float16_are_found(tmp_path: Path) -> None:
    model = nn.Linear(3, 2)
    nn.init.constant_(model.weight, 1e6)
    with pytest.raises(RunError, match="float16 state_dict file differs from the model by inf"):
        export(model, torch.ones(2, 3), tmp_path, formats=["state_dict"], dtypes=["float16"])
    assert list(tmp_path.iterdir()) == []


def test_outputs_that_are_not_finite_are_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="not finite"):
        export(small(), IMAGES * torch.nan, tmp_path)


def test_a_file_too_large_for_onnx_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traced, "LARGEST_ONNX", 100)
    with pytest.raises(UserError, match=r'formats = \["program"\]'):
        export(small(), IMAGES, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_models_own_warning_reaches_the_user(tmp_path: Path) -> None:
    class Warning_(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            warnings.warn("mine", UserWarning, stacklevel=1)
            return x

    with pytest.warns(UserWarning, match="mine"):
        export(Warning_(), IMAGES, tmp_path, formats=["state_dict"])


def test_no_formats_write_nothing(tmp_path: Path) -> None:
    assert list(export(nn.Flatten(), IMAGES, tmp_path, formats=[])) == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "example", "message"),
    [
        ({"formats": ["onx"]}, IMAGES, "no export format 'onx'; did you mean 'onnx'"),
        ({"formats": "onnx"}, IMAGES, "expected a list"),
        ({"dtypes": []}, IMAGES, "expected a list"),
        ({"dtypes": ["fp16"]}, IMAGES, "no export dtype 'fp16'"),
        ({}, IMAGES[:0], "at least one sample"),
    ],
)
def test_bad_input_is_named(tmp_path: Path, options: dict[str, list[str]], example: Tensor, message: str) -> None:
    with pytest.raises(UserError, match=message):
        export(small(), example, tmp_path, **options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("given", ['export.formats=["onx"]', 'export.dtypes=["fp16"]', "export.formats=onnx"])
def test_a_recipe_is_refused_before_anything_runs(given: str) -> None:
    with pytest.raises(
        UserError, match=r"\[export\] (formats|dtypes) = .*: expected list of '(state_dict|float32)' or"
    ):
        settings.bind_recipe(recipe.read("digits", [given]))


def test_a_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(UserError, match=r"cannot write to .*taken.*choose another"):
        export(small(), IMAGES, tmp_path / "taken", formats=["state_dict"])

"""A user's network and data, named in every way: the example directory runs as its README says."""

import random
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset, WeightedRandomSampler, random_split
from torch.utils.data.sampler import SubsetRandomSampler
from torchvision import models as published

from infoprune.config import recipe, registry
from infoprune.data.loaders import from_loaders
from infoprune.errors import UserError
from infoprune.evaluation.metrics import ModelReference
from infoprune.io import checkpoint
from infoprune.models import torchvision as torchvision_models
from infoprune.pipeline import run
from infoprune.pipeline.context import open_run
from infoprune.pipeline.run import run_until, train_from_scratch

EXAMPLE = Path(__file__).parents[2] / "examples" / "own_model"
QUICK = ["train.epochs=8", "finetune.epochs=0", "plan.allocation=uniform", "evaluate.latency_repeats=2"]
QUICK += ["calibration.batches=2", 'plan.rank_by="l2"']


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What names of a user's own leave in Python, and in the registry, is gone afterwards."""
    monkeypatch.setattr(sys, "path", [each for each in sys.path if not Path(each, "nets.py").exists()])
    monkeypatch.setattr(registry, "_FOLDERS", [])
    for name in ("nets", "data"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield
    for name in ("nets", "data"):
        sys.modules.pop(name, None)


def test_the_example_runs_as_its_readme_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path(shutil.copytree(EXAMPLE, tmp_path / "example"))
    monkeypatch.chdir(folder)
    out = Path("runs/shapes")
    train_from_scratch(open_run(recipe.read("shapes.toml", QUICK), out))
    metrics = run.run(recipe.read("shapes.toml", QUICK), out)
    assert metrics["base"].accuracy > 0.8
    assert 0.45 < metrics["finetuned"].macs / metrics["base"].macs <= 0.5
    names = {"model.safetensors", "model-float16.safetensors", "model.py", "model.onnx", "model.pt2", "model-int8.onnx"}
    assert {path.name for path in (out / "export").iterdir()} == {*names, "MODEL_CARD.md", "export.json"}
    assert "nets.py:ShapesNet" in (out / "export" / "MODEL_CARD.md").read_text()
    with pytest.raises(UserError, match=r"made from the code 'nets.py:ShapesNet'"):
        checkpoint.load(out / "export" / "model.safetensors")
    net = registry.find("models", "nets.py:ShapesNet")()
    loaded = checkpoint.load(out / "export" / "model.safetensors", net)
    assert sum(each.numel() for each in loaded.parameters()) == metrics["finetuned"].parameters


@pytest.mark.parametrize("names", [("nets:ShapesNet", "data:loaders"), ("nets.py:ShapesNet", "data.py:loaders")])
def test_code_is_found_beside_the_recipe_from_anywhere(
    names: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    overrides = [f"model.name={names[0]}", f"data.name={names[1]}", *QUICK]
    read = recipe.read(EXAMPLE / "shapes.toml", overrides)
    del read.tables["model"]["weights"]
    job = open_run(read, tmp_path / "out")
    assert type(job.model).__name__ == "ShapesNet"
    assert len(job.data.train) == 1200
    run_until(job, "plan")


def test_the_recipe_at_hand_comes_before_an_earlier_ones_folder(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "nets.py").write_text(f"def net():\n    return {name!r}\n")
        registry.look_in(tmp_path / name)
        assert registry.find("models", "nets.py:net")() == name


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".pt"])
def test_weights_of_a_users_own_network(suffix: str, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    reference = ModelReference(f"{EXAMPLE / 'nets.py'}:ShapesNet", {"width": 3})
    made = checkpoint.build(reference)
    state = made.state_dict()
    file = tmp_path / f"mine{suffix}"
    save_file(state, file) if suffix == ".safetensors" else torch.save({"state_dict": state}, file)
    images = torch.randn(2, 1, 16, 16)
    assert torch.equal(checkpoint.build(reference, f"mine{suffix}", folder=tmp_path)(images), made(images))


@pytest.mark.parametrize("name", ["IMAGENET1K_V1", "SqueezeNet1_1_Weights.IMAGENET1K_V1"])
def test_weights_by_torchvisions_enum(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    made = published.squeezenet1_1().eval()
    file = tmp_path / "checkpoints" / published.SqueezeNet1_1_Weights.IMAGENET1K_V1.url.rpartition("/")[2]
    file.parent.mkdir()
    torch.save(made.state_dict(), file)
    same = checkpoint.build(ModelReference("torchvision", {"architecture": "squeezenet1_1", "pretrained": name}))
    images = torch.randn(1, 3, 64, 64)
    assert torch.equal(same(images), made(images))
    with pytest.raises(UserError, match=r"no weights 'ResNet18_Weights[.]DEFAULT' for squeezenet1_1"):
        torchvision_models.build(architecture="squeezenet1_1", pretrained="ResNet18_Weights.DEFAULT")


def test_a_network_of_timm() -> None:
    pytest.importorskip("timm", reason="timm is not installed")
    arguments = {"architecture": "resnet10t", "classes": 5, "input_channels": 1}
    assert checkpoint.build(ModelReference("timm", arguments))(torch.randn(2, 1, 32, 32)).shape == (2, 5)
    with pytest.raises(UserError, match="no network 'resnet10'; did you mean"):
        checkpoint.build(ModelReference("timm", {"architecture": "resnet10"}))
    with pytest.raises(UserError, match="classes = 0: expected a whole number from 1"):
        checkpoint.build(ModelReference("timm", {"architecture": "resnet10t", "classes": 0}))


def test_timm_is_named_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match="pip install timm"):
        checkpoint.build(ModelReference("timm", {"architecture": "resnet10t"}))


def pairs(count: int, classes: int = 2) -> TensorDataset:
    return TensorDataset(torch.arange(count, dtype=torch.float32).view(-1, 1, 1, 1), torch.arange(count) % classes)


def places(data: Dataset[Any]) -> set[float]:
    return {data[i][0].item() for i in range(len(data))}  # type: ignore[arg-type]


def test_one_loader_is_split_the_same_every_time() -> None:
    data, again = (from_loaders(DataLoader(pairs(100), batch_size=7, shuffle=True), "mine") for _ in range(2))
    parts = [places(part) for part in (data.train, data.validation, data.test)]
    assert [len(part) for part in parts] == [72, 8, 20]
    assert set.union(*parts) == set(range(100))
    assert parts == [places(part) for part in (again.train, again.validation, again.test)]
    assert (data.classes, data.fingerprint) == (2, again.fingerprint)
    # Of every class alike.
    assert sum(int(data.test[i][1]) for i in range(20)) == 10
    assert from_loaders(DataLoader(pairs(101)), "mine").fingerprint != data.fingerprint


def test_named_loaders_stay_apart_and_validation_comes_out_of_training() -> None:
    whole = pairs(60, classes=3)
    first, second = random_split(whole, [40, 20])
    data = from_loaders({"train": DataLoader(first), "test": DataLoader(second)}, "mine")
    assert places(data.test) == places(second)
    assert places(data.train) | places(data.validation) == places(first)
    assert len(data.validation) == 4
    assert data.classes == 3
    three = {"train": DataLoader(first), "val": DataLoader(whole), "test": DataLoader(second)}
    assert places(from_loaders(three, "mine").validation) == places(whole)


def test_a_subset_sampler_says_what_is_meant() -> None:
    whole = pairs(30)
    loaders = {
        "train": DataLoader(whole, sampler=SubsetRandomSampler(range(20))),
        "test": DataLoader(whole, sampler=SubsetRandomSampler(range(20, 30))),
    }
    data = from_loaders(loaders, "mine")
    assert places(data.test) == set(range(20, 30))
    assert places(data.train) | places(data.validation) == set(range(20))


class Records(Dataset[dict[str, Any]]):
    """Samples that torch cannot put into a batch of two by itself, changed at random."""

    classes = ("left", "right")

    def __len__(self) -> int:
        return 40

    def __getitem__(self, place: int) -> dict[str, Any]:
        image = torch.full((1, 2, 2), place + random.random() + torch.rand(()).item())
        return {"image": image, "label": self.classes[place % 2]}


def collate(samples: list[dict[str, Any]]) -> tuple[Tensor, Tensor]:
    labels = [Records.classes.index(sample["label"]) for sample in samples]
    return torch.stack([sample["image"] for sample in samples]), torch.tensor(labels)


def test_a_collate_function_makes_the_batches() -> None:
    data, again = (from_loaders(DataLoader(Records(), collate_fn=collate), "mine") for _ in range(2))
    images, labels = next(iter(data.batches("test", batch_size=4)))
    assert images.shape == (4, 1, 2, 2)
    assert set(labels.tolist()) <= {0, 1}
    assert data.classes == 2
    assert data.fingerprint == again.fingerprint  # although its images are never the same


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        yield from ()


def bad(images: Any, labels: Any) -> DataLoader[Any]:
    return DataLoader(TensorDataset(images, labels))


IMAGES, LABELS = torch.zeros(4, 1, 2, 2), torch.tensor([0, 1, 0, 1])


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (None, "gave a NoneType, expected infoprune.data.dataset.Data, a DataLoader, or a dictionary"),
        ([DataLoader(pairs(4))], "gave a list, expected"),
        ({"train": DataLoader(pairs(4))}, "gave loaders for train; expected 'train' and 'test'"),
        ({"train": DataLoader(pairs(4)), "test": pairs(4)}, "'test': TensorDataset in its dictionary"),
        ({"train": DataLoader(pairs(4)), "dev": DataLoader(pairs(4))}, "'dev': DataLoader in its dictionary"),
        (DataLoader(Stream()), "streams"),
        (DataLoader(pairs(4), sampler=WeightedRandomSampler([1.0] * 4, 4)), "draws by a WeightedRandomSampler"),
        (DataLoader(pairs(4), batch_sampler=[[0, 1], [2, 3]]), "draws by a list of its own"),
        (DataLoader(pairs(4), batch_size=None), "draws by a .* of its own"),
        (bad(IMAGES.to(torch.uint8), LABELS), "images of 'mine' are torch.uint8; give floating-point"),
        (bad(IMAGES, LABELS.float()), r"labels of 'mine.*' are torch.float32 \(2,\); expected one class index"),
        (bad(IMAGES, torch.eye(4)), "expected one class index"),
        (bad(IMAGES[:, 0, 0, 0], LABELS), r"are a tensor of shape \(2,\); expected a tensor, samples x channels"),
        (DataLoader(TensorDataset(IMAGES)), r"a batch of 'mine.*' is a list; expected a pair"),
        (DataLoader([(IMAGES[0], 0), (IMAGES[0, :, :1], 1)]), "cannot be put into a batch: RuntimeError: stack"),  # type: ignore[arg-type]
        (DataLoader(Records()), "images of 'mine|is a dict; expected a pair"),
        (DataLoader(pairs(4), collate_fn=collate), "cannot be put into a batch: .*Error"),
        (DataLoader(pairs(2)), "cannot set 0.2 of the 2 samples of 'mine' aside"),
        (
            {"train": DataLoader(pairs(9), collate_fn=collate), "test": DataLoader(pairs(4))},
            "have different collate_fn",
        ),
    ],
)
def test_what_is_no_data_is_told(given: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        from_loaders(given, "mine")


def test_classes_that_nobody_knows_are_asked_for() -> None:
    class Nameless(Dataset[Any]):
        def __len__(self) -> int:
            return 20

        def __getitem__(self, place: int) -> tuple[Tensor, int]:
            return torch.zeros(1, 2, 2), place % 2

    with pytest.raises(UserError, match="how many classes 'mine' has; give the data set an attribute `classes`"):
        from_loaders(DataLoader(Nameless()), "mine")


def test_a_users_function_is_called_and_what_it_gives_is_looked_at(tmp_path: Path) -> None:
    (tmp_path / "given.py").write_text("def four(n=4):\n    return n\n")
    with pytest.raises(
        UserError, match=r"given.py:four' gave a int, expected infoprune.data.dataset.Data, a DataLoader"
    ):
        checkpoint.load_data(f"{tmp_path / 'given.py'}:four")
    with pytest.raises(UserError, match="do not fit"):
        checkpoint.load_data(f"{tmp_path / 'given.py'}:four", {"m": 4})

"""A change of the data is noticed wherever it lies, and it is said which part of the data changed."""

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset, TensorDataset
from torchvision.datasets import DatasetFolder, ImageFolder

from infoprune import cli
from infoprune.config import recipe, registry
from infoprune.data import fingerprints
from infoprune.data.dataset import Data
from infoprune.data.fingerprints import fingerprints_of
from infoprune.data.loaders import from_loaders
from infoprune.datasets import image_folder
from infoprune.datasets import torchvision as torchvision_datasets
from infoprune.errors import UserError
from infoprune.io import checkpoint
from infoprune.io.encoding import differing, to_json
from infoprune.pipeline.settings import bind_recipe

COUNT = 96


def changed(before: Any, after: Any) -> list[str]:
    return differing(to_json(before), to_json(after))


class Held(Dataset[Any]):
    """Like those of torchvision that hold all images, as an array or a tensor, and a list of labels."""

    def __init__(self, images: Any, labels: Any, transform: Callable[[Any], Any] | None = None) -> None:
        self.data, self.targets, self.transform = images, labels, transform

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, place: int) -> tuple[Any, int]:
        image = torch.as_tensor(np.asarray(self.data[place]))
        return (self.transform(image) if self.transform else image), int(self.targets[place])


class Listed(Dataset[Any]):
    """A list of pairs."""

    def __init__(self, images: Any, labels: Any) -> None:
        self.rows = [(image, int(label)) for image, label in zip(images, labels, strict=True)]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: int) -> Any:
        return self.rows[place]


class Opaque(Dataset[Any]):
    """Tells nothing but its samples; what draws at random in it is made the same for every reading."""

    def __init__(self, images: Any, labels: Any) -> None:
        self.sample = lambda place: (images[place] + torch.rand(()) + random.random(), int(labels[place]))
        self.count, self.read = len(labels), 0

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, place: int) -> Any:
        self.read += 1
        return self.sample(place)


class Around(Dataset[Any]):
    """Wraps another."""

    def __init__(self, inner: Dataset[Any]) -> None:
        self.inner = inner

    def __len__(self) -> int:
        return len(self.inner)  # type: ignore[arg-type]

    def __getitem__(self, place: int) -> Any:
        return self.inner[place]


def reordered(images: Any, labels: Any) -> Subset[Any]:
    return Subset(TensorDataset(images, labels), list(range(0, COUNT, 2)) + list(range(1, COUNT, 2)))


def joined(images: Any, labels: Any) -> Any:
    halves = [Held(images[:40], labels[:40]), TensorDataset(images[40:], labels[40:])]
    return Subset(ConcatDataset(halves), range(COUNT))


KINDS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "tensors": TensorDataset,
    "a subset": reordered,
    "a concatenation": joined,
    "an array": lambda images, labels: Held(images.numpy(), labels.tolist()),
    "a tensor and an array of labels": lambda images, labels: Held(images, labels.numpy()),
    "bfloat16": lambda images, labels: TensorDataset(images.bfloat16(), labels),
    "a list": Listed,
    "opaque": Opaque,
    "a plain list": lambda images, labels: list(zip(images, labels.tolist(), strict=True)),
    "wrapped": lambda images, labels: Around(TensorDataset(images, labels)),
    "wrapped lists": lambda images, labels: Around(Around(Listed(images, labels))),
}


@pytest.fixture
def held() -> tuple[Tensor, Tensor]:
    """Images of 2x8x8 and labels, of which no reading of 16 samples sees all."""
    return torch.rand(COUNT, 2, 8, 8), torch.arange(COUNT) % 3


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("place", [0, 5, 50, COUNT - 1])
def test_any_pixel_and_any_label_counts(kind: str, place: int, held: tuple[Tensor, Tensor]) -> None:
    images, labels = held
    make = KINDS[kind]
    same = make(torch.rand(COUNT, 2, 8, 8), labels)
    before = fingerprints_of({"train": make(images, labels), "test": same}, "mine")
    assert fingerprints_of({"train": make(images.clone(), labels.clone()), "test": same}, "mine") == before
    other = images.clone()
    other[place, 1, 7, 7] += 1
    assert changed(before, fingerprints_of({"train": make(other, labels), "test": same}, "mine")) == ["train"]
    relabelled = labels.clone()
    relabelled[place] = 3
    after = fingerprints_of({"train": make(images, relabelled), "test": same}, "mine")
    assert changed(before, after) == ["train.labels"]


@pytest.mark.parametrize("kind", KINDS)
def test_order_number_and_type_of_samples_count(kind: str, held: tuple[Tensor, Tensor]) -> None:
    images, labels = held
    make = KINDS[kind]
    variants = [(images, labels), (images.flip(0), labels.flip(0)), (images.view(COUNT, 1, 16, 8), labels)]
    if kind not in ("a subset", "a concatenation"):  # whose number is the same
        variants += [(images[:-1], labels[:-1]), (torch.cat([images, images[-1:]]), torch.cat([labels, labels[-1:]]))]
    if kind not in ("opaque", "bfloat16"):  # which change the type themselves
        variants.append((images.view(torch.int32), labels))
    found = [fingerprints_of({"train": make(*variant)}, "mine")["train"] for variant in variants]
    assert len(set(found)) == len(variants)


def test_the_order_across_joined_parts_counts(held: tuple[Tensor, Tensor]) -> None:
    whole = ConcatDataset([TensorDataset(*(each[:40] for each in held)), TensorDataset(*(each[40:] for each in held))])
    mixed = [place for pair in zip(range(40), range(40, 80), strict=True) for place in pair]
    found = [fingerprints_of({"train": Subset(whole, order)}, "mine")["train"] for order in (mixed, sorted(mixed))]
    assert found[0] != found[1]


def test_all_that_a_data_set_holds_is_followed(held: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fingerprints, "READ", 2)
    monkeypatch.setattr(fingerprints, "PROBED", 2)

    class Several(Dataset[Any]):
        def __init__(self, *parts: Dataset[Any]) -> None:
            self.parts, self.itself = parts, self

        def __len__(self) -> int:
            return COUNT

        def __getitem__(self, place: int) -> Any:
            return self.parts[0][place]

    images, labels = held
    other = images.clone()
    other[50] += 1
    before, after = (
        fingerprints_of({"train": Several(TensorDataset(images, labels), TensorDataset(each, labels))}, "mine")
        for each in (images, other)
    )
    assert changed(before, after) == ["train"]


def test_samples_of_any_kind_are_hashed_as_a_whole() -> None:
    def prints(middle: str) -> dict[str, str]:
        words = np.array(["a"] * 1_000 + [middle] + ["a"] * 1_000)  # longer than the text that numpy gives of it
        samples = [({"image": torch.zeros(1), "words": words, "size": (3, 4)}, "left")] * 3
        return fingerprints_of({"train": samples}, "mine")

    assert changed(prints("a"), prints("b")) == ["train"]


@pytest.mark.parametrize(
    "dtype", [torch.uint8, torch.bool, torch.bfloat16, torch.complex64, torch.float8_e4m3fn, torch.int64]
)
def test_every_type_of_number_is_hashed(dtype: torch.dtype) -> None:
    images = torch.zeros(6, 1, 2, 2)
    before = fingerprints_of({"train": TensorDataset(images.to(dtype))}, "mine")
    images[5, 0, 1, 1] = 1
    assert changed(before, fingerprints_of({"train": TensorDataset(images.to(dtype))}, "mine")) == ["train"]


def test_large_arrays_are_hashed_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a file mapped into memory no more than a part is there at a time, in whatever order rows are taken."""
    mapped = np.memmap(tmp_path / "images", dtype=np.uint8, mode="w+", shape=(300, 1, 32, 32))
    mapped[:] = np.random.default_rng(0).integers(0, 256, mapped.shape, dtype=np.uint8)
    data = Subset(Held(mapped, [0] * 300), list(reversed(range(300))))
    whole = fingerprints_of({"train": data}, "mine")
    sizes: list[int] = []
    inner = fingerprints._bytes
    monkeypatch.setattr(fingerprints, "CHUNK", 4_096)
    monkeypatch.setattr(fingerprints, "_bytes", lambda value: sizes.append(value.nbytes) or inner(value))
    assert fingerprints_of({"train": data}, "mine") == whole
    assert max(sizes) <= 4_096
    assert sum(sizes) > mapped.nbytes
    mapped[150, 0, 31, 31] += 1
    assert changed(whole, fingerprints_of({"train": data}, "mine")) == ["train"]


def test_of_many_opaque_samples_some_are_read_and_all_with_content(
    held: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fingerprints, "READ", 20)
    images, labels = held
    other = images.clone()
    other[1] += 1
    before, after = (fingerprints_of({"train": Opaque(each, labels)}, "mine") for each in (images, other))
    assert before == after
    data = Opaque(images, labels)
    fingerprints_of({"train": data}, "mine")
    assert data.read == 21  # the first one twice, to know its size
    before, after = (fingerprints_of({"train": Opaque(each, labels)}, "mine", "content") for each in (images, other))
    assert changed(before, after) == ["train"]
    monkeypatch.setattr(fingerprints, "READ", 4_096)
    monkeypatch.setattr(fingerprints, "READ_BYTES", 30 * (2 * 8 * 8 * 4 + 1))
    data = Opaque(images, labels)
    fingerprints_of({"train": data}, "mine")
    assert data.read == 31


def test_of_images_in_memory_few_are_read_too(held: tuple[Tensor, Tensor]) -> None:
    """What code does to them is in no array."""

    class Doubled(Held):
        factor = 2

        def __getitem__(self, place: int) -> Any:
            image, label = super().__getitem__(place)
            return self.factor * image, label

    before = fingerprints_of({"train": Doubled(*held)}, "mine")
    Doubled.factor = 3
    assert changed(before, fingerprints_of({"train": Doubled(*held)}, "mine")) == ["train"]


def test_with_content_all_is_read_that_is_done_to_images_in_memory(held: tuple[Tensor, Tensor]) -> None:
    class Odd(Held):
        odd = -1

        def __getitem__(self, place: int) -> Any:
            image, label = super().__getitem__(place)
            return image + (place == self.odd), label

    def prints(odd: int, depth: fingerprints.Depth) -> dict[str, str]:
        Odd.odd = odd
        return fingerprints_of({"train": Odd(*held)}, "mine", depth)

    assert prints(-1, "files") == prints(50, "files")
    assert changed(prints(-1, "content"), prints(50, "content")) == ["train"]


class Scale:
    def __init__(self, factor: float) -> None:
        self.factor = factor

    def __call__(self, image: Tensor) -> Tensor:
        return image

    def __repr__(self) -> str:
        return f"Scale({self.factor})"


def test_the_transforms_text_counts_and_no_address_in_it(held: tuple[Tensor, Tensor]) -> None:
    def prints(transform: Any) -> dict[str, str]:
        return fingerprints_of({"train": Subset(Held(*held, transform), range(COUNT))}, "mine")

    def plain() -> Callable[[Tensor], Tensor]:
        return lambda image: image

    assert changed(prints(Scale(1)), prints(Scale(2))) == ["transforms"]
    one, other = plain(), plain()
    assert repr(one) != repr(other)
    assert prints(one) == prints(other)


SCRIPT = """
import json, torch
from torch.utils.data import Dataset
from infoprune.data.fingerprints import fingerprints_of
class Data(Dataset):
    def __init__(self):
        self.names, self.transform = {"a", "b", "c"}, lambda image: image
    def __len__(self):
        return 40
    def __getitem__(self, place):
        return self.transform(torch.rand(1, 2, 2)), place % 2
print(json.dumps(fingerprints_of({"train": Data()}, "mine")))
"""


def test_another_process_finds_the_same() -> None:
    found = [
        subprocess.run(
            [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True, env={**os.environ, **more}
        ).stdout
        for more in ({"PYTHONHASHSEED": "1"}, {"PYTHONHASHSEED": "2"})
    ]
    assert found[0] == found[1]
    assert set(json.loads(found[0])) == {"train", "train.labels", "transforms"}


def test_samples_that_cannot_be_read_are_told(held: tuple[Tensor, Tensor]) -> None:
    class Torn(Opaque):
        def __getitem__(self, place: int) -> Any:
            if place == 50:
                raise KeyError("torn")
            return super().__getitem__(place)

    with pytest.raises(UserError, match=r"'mine' \(train\) cannot be read: KeyError: 'torn' \(.*\); fix the data set"):
        fingerprints_of({"train": Torn(*held)}, "mine")


def test_a_lack_of_memory_stays_one(held: tuple[Tensor, Tensor]) -> None:
    class Large(Opaque):
        def __getitem__(self, place: int) -> Any:
            raise MemoryError

    with pytest.raises(MemoryError):
        fingerprints_of({"train": Large(*held)}, "mine")


def picture(path: Path, grey: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (8, 8), grey).save(path, "bmp")


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """`train/`, `val/` and `test/` with 20 images of two classes each, all files of one size."""
    for split in ("train", "val", "test"):
        for number in range(20):
            picture(tmp_path / "images" / split / "ab"[number % 2] / f"{number}.bmp", 10 * number)
    return tmp_path / "images"


class Names(Dataset[Any]):
    """Names of files, relative to a folder, as in torch's tutorial."""

    def __init__(self, root: Path) -> None:
        self.folder, self.names = str(root), sorted(path.relative_to(root).as_posix() for path in root.rglob("*.bmp"))

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, place: int) -> Any:
        return open_grey(f"{self.folder}/{self.names[place]}"), "ab".index(self.names[place][0])


def open_grey(path: str) -> Tensor:
    with Image.open(path) as image:
        return torch.from_numpy(np.array(image)).float()[None]


def image_folders(root: Path, depth: fingerprints.Depth) -> dict[str, str]:
    found = image_folder.load(root=str(root), size=8, workers=0, fingerprint=depth).fingerprint
    assert isinstance(found, dict)
    return found


FILES: dict[str, Callable[[Path, fingerprints.Depth], dict[str, str]]] = {
    "image_folder": image_folders,
    "ImageFolder": lambda root, depth: of_files(root, depth, lambda folder: ImageFolder(folder, loader=open_grey)),
    "DatasetFolder": lambda root, depth: of_files(root, depth, lambda at: DatasetFolder(at, open_grey, (".bmp",))),
    "a subset": lambda root, depth: of_files(root, depth, lambda at: Subset(Names(at), range(20))),
    "names": lambda root, depth: of_files(root, depth, Names),
    "torchvision": lambda root, depth: through_torchvision(root, depth),
}


def of_files(root: Path, depth: fingerprints.Depth, make: Callable[[Path], Any]) -> dict[str, str]:
    return fingerprints_of({split: make(root / split) for split in ("train", "test")}, "mine", depth)


def through_torchvision(root: Path, depth: fingerprints.Depth) -> dict[str, str]:
    folders = {"train": "train", "validation": "val", "test": "test"}
    splits = {split: {"root": str(root / name)} for split, name in folders.items()}
    found = torchvision_datasets.load(dataset="ImageFolder", splits=splits, fingerprint=depth).fingerprint
    assert isinstance(found, dict)
    return found


@pytest.mark.parametrize("kind", FILES)
def test_files_count_by_name_size_and_time(
    kind: str, folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fingerprints, "PROBED", 2)  # the first and the last
    prints = FILES[kind]
    before, path = prints(folders, "files"), folders / "train" / "b" / "7.bmp"
    state = path.stat()
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns + 1))
    assert changed(before, prints(folders, "files")) == ["train"]
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert prints(folders, "files") == before
    picture(path, 71)
    assert path.stat().st_size == state.st_size
    assert changed(before, prints(folders, "files")) == ["train"]
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert prints(folders, "files") == before  # what "content" is there for
    path.rename(path.with_name("7a.bmp"))
    assert changed(before, prints(folders, "files")) == ["train"]
    path.with_name("7a.bmp").rename(path)
    assert prints(folders.rename(tmp_path / "moved"), "files") == before


@pytest.mark.parametrize("kind", FILES)
def test_with_content_every_byte_of_a_file_counts_and_no_time(kind: str, folders: Path) -> None:
    prints = FILES[kind]
    before, path = prints(folders, "content"), folders / "test" / "b" / "7.bmp"
    state = path.stat()
    os.utime(path, ns=(0, 0))
    assert prints(folders, "content") == before
    picture(path, 71)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert changed(before, prints(folders, "content")) == ["test"]


def test_all_labels_beside_a_files_name_count(folders: Path) -> None:
    class Boxes(Names):
        def __init__(self, root: Path, last: int) -> None:
            super().__init__(root)
            self.rows = [(name, place % 2, last if place == 10 else 0) for place, name in enumerate(self.names)]

    before, after = (fingerprints_of({"train": Boxes(folders / "train", last)}, "mine") for last in (1, 2))
    assert changed(before, after) == ["train.labels"]


def test_an_image_in_another_folder_has_another_label(folders: Path) -> None:
    before = image_folders(folders, "files")
    (folders / "val" / "a" / "8.bmp").rename(folders / "val" / "b" / "8.bmp")
    assert changed(before, image_folders(folders, "files")) == ["validation", "validation.labels"]


def test_only_regular_files_are_images(folders: Path, tmp_path: Path) -> None:
    wrong = folders / "train" / "a" / "wrong.bmp"
    picture(tmp_path / "elsewhere.bmp", 3)
    wrong.symlink_to(tmp_path / "elsewhere.bmp")
    image_folders(folders, "files")
    assert len(image_folder.load(root=str(folders), size=8).train) == 21  # type: ignore[arg-type]
    (tmp_path / "elsewhere.bmp").unlink()
    with pytest.raises(UserError, match=r"wrong\.bmp' is a link to '.*elsewhere\.bmp', where nothing is; restore"):
        image_folders(folders, "files")
    wrong.unlink()
    os.mkfifo(wrong)
    for depth in ("files", "content"):
        with pytest.raises(UserError, match=r"wrong\.bmp' is no regular file but a pipe, .*; replace it by an image"):
            image_folders(folders, depth)
    with pytest.raises(UserError, match=r"wrong\.bmp' is no regular file"):
        from_loaders(DataLoader(ImageFolder(folders / "train", loader=open_grey)), "mine")


@pytest.mark.parametrize("target", ["..", ".", "../../train"])
def test_a_link_to_a_folder_that_holds_it_is_refused(folders: Path, target: str) -> None:
    (folders / "train" / "a" / "link").symlink_to(target)
    with pytest.raises(UserError, match="train/a/link' is a link to a folder that holds it; remove the link"):
        image_folders(folders, "files")


@pytest.mark.parametrize("wrong", ["a link", "a pipe", "text"])
def test_the_command_line_names_the_file_in_one_short_line(folders: Path, wrong: str) -> None:
    path = folders / "train" / "a" / "0.bmp"
    path.unlink()
    if wrong == "a link":
        path.symlink_to("gone")
    elif wrong == "a pipe":
        os.mkfifo(path)
    else:
        path.write_text("x")
    options = ["data.name=image_folder", f"data.root={folders}", "data.size=16", "data.workers=0"]
    options += ["model.input_channels=3", "model.classes=2", "calibration.batches=1", "calibration.batch_size=20"]
    sets = [part for option in options for part in ("--set", option)]
    file = folders.parent / "images.toml"
    file.write_text('[model]\nname="lenet"\nsize=16\n[data]\nname="digits"\n')
    result = CliRunner().invoke(cli.main, ["inspect", str(file), "--out", str(folders.parent / "run"), *sets])
    assert result.exit_code == 2
    said = [line for line in result.output.splitlines() if line.startswith("error:")]
    assert len(said) == 1
    assert "0.bmp" in said[0]
    assert len(said[0]) < len(str(path)) + 130
    assert said[0].count(str(path)) == 1


OWN = """
import torch
from torch.utils.data import DataLoader, Dataset, TensorDataset
from infoprune.data.dataset import Data

class Opaque(Dataset):
    classes = ["left", "right"]
    def __init__(self, odd):
        self.odd = odd
    def __len__(self):
        return 600
    def __getitem__(self, place):
        return torch.full((1, 2, 2), float(place == self.odd)), place % 2

def loaders(odd=-1):
    return {"train": DataLoader(Opaque(odd)), "test": DataLoader(Opaque(-1))}

def theirs(shift=0):
    parts = [TensorDataset(torch.full((4, 1, 2, 2), float(shift)), torch.arange(4) % 2) for _ in range(3)]
    return Data("theirs", *parts, 2, torch.Tensor.float, "v1")

def taking(fingerprint="none", images=3):
    return Data(f"{fingerprint} {images}", *[TensorDataset(torch.zeros(4, 1, 2, 2), torch.arange(4))] * 3, 4,
                torch.Tensor.float, "v1")
"""


@pytest.fixture
def own(tmp_path: Path) -> str:
    (tmp_path / "data.py").write_text(OWN)
    return f"{tmp_path / 'data.py'}"


def without_options(data: Data) -> dict[str, str]:
    assert isinstance(data.fingerprint, dict)
    return {name: value for name, value in data.fingerprint.items() if not name.startswith("options.")}


def test_a_users_own_data_is_read_as_a_whole_with_content(own: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fingerprints, "READ", 16)
    quick, other = (checkpoint.load_data(f"{own}:loaders", {"odd": odd}) for odd in (-1, 401))
    assert without_options(quick) == without_options(other)
    options = {"fingerprint": "content"}
    whole, other = (checkpoint.load_data(f"{own}:loaders", {"odd": odd, **options}) for odd in (-1, 401))
    assert changed(without_options(whole), without_options(other)) in (["train"], ["validation"])
    # What gives Data tells its own fingerprint; with "content" that is not all.
    theirs = [checkpoint.load_data(f"{own}:theirs", {"shift": shift}) for shift in (0, 1)]
    assert without_options(theirs[0]) == without_options(theirs[1]) == {"content": "v1"}
    theirs = [checkpoint.load_data(f"{own}:theirs", {"shift": shift, **options}) for shift in (0, 1)]
    assert changed(*map(without_options, theirs)) == ["test", "train", "validation"]


def test_a_function_that_takes_the_option_gets_it(own: str) -> None:
    assert checkpoint.load_data(f"{own}:taking", {"fingerprint": "mine"}).name == "mine 3"
    assert checkpoint.load_data(f"{own}:taking", {"images": 5}).name == "none 5"


@pytest.mark.parametrize("value", ["everything", "", 3, "['content']"])
def test_other_values_are_refused_as_the_recipe_is_read(
    own: str, value: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "_FOLDERS", [])
    (tmp_path / "mine.toml").write_text('[model]\nname="lenet"\n[data]\nname="digits"\n')
    read = recipe.read(tmp_path / "mine.toml", [f"data.name={own}:loaders", f"data.fingerprint={value or repr('')}"])
    with pytest.raises(UserError, match=r"\[data\] fingerprint = .*: expected 'files' or 'content'"):
        bind_recipe(read)
    read = recipe.read(
        tmp_path / "mine.toml",
        ["data.name=image_folder", "data.root=x", f"data.fingerprint={value or repr('')}"],
    )
    with pytest.raises(UserError, match=r"\[data\] fingerprint = .*'files' or 'content'"):
        bind_recipe(read)


def test_options_count_but_not_where_the_data_lies(folders: Path, tmp_path: Path) -> None:
    def prints(**options: Any) -> Any:
        return checkpoint.load_data("image_folder", {"root": str(folders), "size": 8, **options}).fingerprint

    before = prints()
    assert changed(before, prints(mean=[0.5, 0.5, 0.5])) == ["options.mean"]
    assert changed(before, prints(workers=1)) == []
    assert changed(before, prints(seed=0)) == []  # the default
    folders = folders.rename(tmp_path / "moved")
    assert prints() == before
    digits = [checkpoint.load_data("digits", {"augment": augment}).fingerprint for augment in (True, False)]
    assert changed(*digits) == ["options.augment"]


def data(**changes: Any) -> Data:
    part = TensorDataset(torch.zeros(4, 1, 2, 2), torch.arange(4) % 2)
    given = {"classes": 2, "fingerprint": "v1", **changes}
    return Data("mine", part, part, part, prepare=torch.Tensor.float, **given)


NO_NUMBERS = [-1, 0, 10**9, "3", 2.0, True, None]


@pytest.mark.parametrize("classes", [*NO_NUMBERS, [1, 2]])
def test_data_needs_a_number_of_classes(classes: Any) -> None:
    with pytest.raises(UserError, match=r"'mine': classes of its Data is .*; expected .* whole number from 1 to 1,000"):
        data(classes=classes)


def test_data_takes_any_whole_number_and_a_mapping() -> None:
    found = data(classes=np.int64(7), fingerprint={"a": "1"})
    assert type(found.classes) is int
    assert (found.classes, found.fingerprint) == (7, {"a": "1"})


@pytest.mark.parametrize("fingerprint", [object(), None, 3, b"v1", {}, {"a": 1}, {1: "a"}, ["a"]])
def test_data_needs_a_fingerprint_of_text(fingerprint: Any) -> None:
    with pytest.raises(UserError, match=r"'mine': fingerprint of its Data is .*; expected a text, or a dictionary"):
        data(fingerprint=fingerprint)


@pytest.mark.parametrize("attribute", ["classes", "num_classes"])
@pytest.mark.parametrize("value", [value for value in NO_NUMBERS if value is not None])
def test_loaders_need_a_number_of_classes(attribute: str, value: Any) -> None:
    part = TensorDataset(torch.zeros(40, 1, 2, 2), torch.arange(40) % 2)
    setattr(part, attribute, value)
    with pytest.raises(UserError, match=rf"'mine': {attribute} of its data set is .*; expected the number of classes"):
        from_loaders(DataLoader(part), "mine")


def test_loaders_without_a_length_are_refused() -> None:
    class Endless(Dataset[Any]):
        def __getitem__(self, place: int) -> Any:
            return torch.zeros(1, 2, 2), 0

    with pytest.raises(UserError, match=r"does not say how many samples it has; give its data set a method __len__"):
        from_loaders(DataLoader(Endless(), shuffle=False), "mine")


def test_more_workers_than_cores_are_no_cause_for_a_warning(folders: Path) -> None:
    data = image_folder.load(root=str(folders), size=8, workers=len(os.sched_getaffinity(0)) + 1)
    assert sum(len(labels) for _, labels in data.batches("test")) == 20  # a warning would be an error here

"""Data that is empty, broken, odd or hostile: one message, or the right result."""

import gzip
import io
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from infoprune.datasets._images import read_rgb
from infoprune.errors import UserError

HEAD = """
import torch
from torch.utils.data import Dataset, TensorDataset
from infoprune.data.dataset import Data

class Listed(Dataset):
    def __init__(self, pairs):
        self.pairs = pairs
    def __len__(self):
        return len(self.pairs)
    def __getitem__(self, index):
        return self.pairs[index]

def of(train, test=None, validation=None, classes=3, prepare=torch.Tensor.float):
    test, validation = (train if each is None else each for each in (test, validation))
    return Data("own", train, validation, test, classes, prepare, "one")

def good(count=16, *shape):
    return TensorDataset(torch.rand(count, *(shape or (1, 8, 8))), torch.arange(count) % 3)

def load():
"""
# The body of a user's `load`, and what is said; empty where it works.
OWN = {
    "nothing": ("return None", "data.py:load"),
    "a list": ("return [1, 2]", "data.py:load"),
    "a tensor": ("return torch.zeros(3)", "data.py:load"),
    "an error": ("raise KeyError('gone')", "KeyError: 'gone' (data.py, line"),
    "an error of the system": ("open('/nowhere/x')", "FileNotFoundError"),
    "a division": ("return 1 / 0", "ZeroDivisionError"),
    "no images": ("return of(good(0))", "holds fewer"),
    "one image": ("return of(good(1))", "holds fewer"),
    "no test images": ("return of(good(), good(0))", "nothing to evaluate"),
    "one test image": ("return of(good(), good(1))", ""),
    "no validation images": ("return of(good(), None, good(0))", "nothing to evaluate"),
    "one class": ("return of(TensorDataset(torch.rand(16, 1, 8, 8), torch.zeros(16, dtype=torch.long)))", ""),
    "labels too large": ("return of(TensorDataset(torch.rand(16, 1, 8, 8), torch.arange(16)))", "labels 0..15"),
    "labels below zero": ("return of(TensorDataset(torch.rand(16, 1, 8, 8), -torch.arange(16) % 3 - 1))", "labels -1"),
    "labels of floats": ("return of(TensorDataset(torch.rand(16, 1, 8, 8), torch.rand(16)))", "labels"),
    "labels per pixel": ("return of(TensorDataset(torch.rand(16, 1, 8, 8), torch.zeros(16, 8, 8).long()))", "labels"),
    "labels of text": ("return of(Listed([(torch.rand(1, 8, 8), 'cat')] * 16))", "cannot be read"),
    "labels missing": ("return of(TensorDataset(torch.rand(16, 1, 8, 8)))", "cannot be read"),
    "three of each": ("return of(Listed([(torch.rand(1, 8, 8), 0, 0)] * 16))", "cannot be read"),
    "images of text": ("return of(Listed([('x', 0)] * 16))", "cannot be read"),
    "images of None": ("return of(Listed([(None, 0)] * 16))", "cannot be read"),
    "images that are PIL's": (
        "from PIL import Image\n    return of(Listed([(Image.new('L', (8, 8)), 0)] * 16))",
        "cannot be read",
    ),
    "images of unequal size": (
        "return of(Listed([(torch.rand(1, 8, 8 + i), 0) for i in range(16)]))",
        "cannot be read",
    ),
    "images of unequal channels": (
        "return of(Listed([(torch.rand(1 + i % 2, 8, 8), 0) for i in range(16)]))",
        "cannot be read",
    ),
    "an image that raises": (
        "class Bad(Listed):\n        def __getitem__(self, index):\n            raise OSError('torn')\n"
        "    return of(Bad([0] * 16))",
        "OSError: torn",
    ),
    "no length": (
        "class Bad(Dataset):\n        def __getitem__(self, index):\n            return 0\n    return of(Bad())",
        "",
    ),
    "colour for grey": ("return of(good(16, 3, 8, 8))", "does not run on an input of shape (1, 3, 8, 8)"),
    "RGBA for grey": ("return of(good(16, 4, 8, 8))", "does not run on an input of shape (1, 4, 8, 8)"),
    "images too small": ("return of(good(16, 1, 2, 2))", "does not run on an input of shape (1, 1, 2, 2)"),
    "one pixel": ("return of(good(16, 1, 1, 1))", "does not run on an input"),
    "flat images": ("return of(good(16, 64))", "does not run on an input of shape (1, 64)"),
    "five dimensions": ("return of(good(16, 1, 1, 8, 8))", "does not run on an input"),
    "no pixels": ("return of(good(16, 1, 0, 0))", "does not run on an input"),
    "sixteen bits": ("return of(TensorDataset((torch.rand(16, 1, 8, 8) * 65535).int(), torch.arange(16) % 3))", ""),
    "bytes": ("return of(TensorDataset((torch.rand(16, 1, 8, 8) * 255).byte(), torch.arange(16) % 3))", ""),
    "double": ("return of(good(), prepare=torch.Tensor.double)", "does not run on an input"),
    "complex": ("return of(good(), prepare=lambda x: x + 1j)", "does not run on an input"),
    "NaN": ("return of(TensorDataset(torch.full((16, 1, 8, 8), torch.nan), torch.arange(16) % 3))", "NaN or infinity"),
    "infinity": (
        "return of(TensorDataset(torch.full((16, 1, 8, 8), torch.inf), torch.arange(16) % 3))",
        "NaN or infin",
    ),
    "all black": ("return of(TensorDataset(torch.zeros(16, 1, 8, 8), torch.arange(16) % 3))", ""),
    "all alike": ("return of(TensorDataset(torch.rand(1, 1, 8, 8).repeat(16, 1, 1, 1), torch.arange(16) % 3))", ""),
    "preparing that fails": ("return of(good(), prepare=lambda x: x.nonsense)", "AttributeError"),
    "preparing to nothing": ("return of(good(), prepare=lambda x: None)", ""),
    "preparing to fewer": ("return of(good(), prepare=lambda x: x[:1].float())", ""),
    "a file that is no Python": ("return ((", "SyntaxError"),
}


@pytest.mark.parametrize("name", OWN)
def test_own_data(workshop: Any, tmp_path: Path, name: str) -> None:
    body, expected = OWN[name]
    (tmp_path / "data.py").write_text(HEAD.replace('"one"', repr(name)) + "    " + body)
    sets = [f"data.name='{tmp_path}/data.py:load'", "plan.rank_by=taylor" if "labels" in name else "plan.rank_by=l2"]
    ending = workshop.step("evaluate", *sets)
    assert expected in ending.said or (ending.code == 2 and len(ending.said) > 40), ending.said
    assert ending.code == 2 or not expected, ending.said


def png(mode: str, size: tuple[int, int] = (8, 8), value: int = 200) -> bytes:
    content = io.BytesIO()
    if mode == "I;16":
        Image.fromarray(np.full(size, value * 256, dtype=np.uint16)).save(content, "png")
    else:
        Image.new(mode, size, value if mode in "LP1" else (value,) * len(mode)).save(content, "png")
    return content.getvalue()


def announced(width: int, height: int) -> bytes:
    """A PNG of some bytes that says it is larger than memory."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize(("mode", "expected"), [("L", 200), ("RGB", 200), ("RGBA", 200), ("LA", 200), ("I;16", 200)])
def test_modes_of_images(mode: str, expected: int) -> None:
    """Sixteen bits become the upper eight: Pillow's own conversion would make all but black white."""
    pixels = np.asarray(read_rgb(io.BytesIO(png(mode)), "x.png", ""))
    assert pixels.shape == (8, 8, 3)
    assert (pixels == expected).all()


WHOLE = png("RGB")
BAD_IMAGES = {
    "nothing": b"",
    "text": b"not an image",
    "torn": WHOLE[: len(WHOLE) // 2],
    "only a header": WHOLE[:33],
    "a flipped byte": WHOLE[:40] + bytes([WHOLE[40] ^ 0xFF]) + WHOLE[41:],
    "a bomb": announced(50_000, 50_000),
    "a smaller bomb": announced(9_000, 9_000),
    "a line without end": announced(2**31 - 1, 1),
    "no pixels": announced(0, 0),
    "an SVG": b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>",
    "a PDF": b"%PDF-1.4\n",
    "a page": b"<html>404</html>",
    "a torn JPEG": b"\xff\xd8\xff\xe0\x00\x10JFIF",
    "a torn WebP": b"RIFF\x00\x00\x00\x00WEBPVP8 ",
    "a torn GIF": b"GIF89a\xff\xff\xff\xff",
    "a torn TIFF": b"II*\x00\x08\x00\x00\x00\xff\xff",
    "an EPS": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n",
}


@pytest.mark.parametrize("name", BAD_IMAGES)
@pytest.mark.filterwarnings("ignore")  # Pillow says more about some of them
def test_bad_images(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")  # an EPS would be handed to Ghostscript
    with pytest.raises(UserError, match="x\\.png' cannot be read as an image"):
        read_rgb(io.BytesIO(BAD_IMAGES[name]), "x.png", "replace it")


def folder(root: Path, broken: bytes | None = None) -> Path:
    """Three classes of eight images in train/ and test/, one class of them broken."""
    for split in ("train", "test"):
        for label in "abc":
            (root / split / label).mkdir(parents=True)
            for number in range(8):
                (root / split / label / f"{number}.png").write_bytes(png("L", value=30 * number))
    for path in (root / "train" / "b").iterdir() if broken is not None else ():
        path.write_bytes(broken)
    return root


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("name", ["text", "a bomb"])
def test_a_bad_image_in_a_folder_is_named(workshop: Any, tmp_path: Path, name: str, workers: int) -> None:
    """By a worker's error too, which comes with a traceback as its text."""
    options = [
        f"data.root='{folder(tmp_path / 'images', BAD_IMAGES[name])}'",
        f"data.workers={workers}",
        "data.size=16",
    ]
    model = ["model.name=lenet", "model.input_channels=3", "model.size=16", "model.classes=3"]
    recipe = tmp_path / "folder.toml"
    recipe.write_text('[model]\nname="lenet"\n[data]\nname="image_folder"\n[calibration]\nbatches=2\nbatch_size=9\n')
    assert ".png' cannot be read as an image" in workshop.refuses("plan", *model, *options, recipe=recipe)


def test_archives_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from infoprune.datasets import _idx, fruits360

    header = bytes([0, 0, 8, 1]) + struct.pack(">I", 1)
    monkeypatch.setattr(_idx, "MOST_BYTES", 1 << 16)
    (tmp_path / "bomb.gz").write_bytes(gzip.compress(header + bytes(1 << 16)))
    with pytest.raises(UserError, match="more than 65,536 bytes"):
        _idx.read_idx(tmp_path / "bomb.gz")
    for part in ("train", "test"):
        with zipfile.ZipFile(tmp_path / f"{part}64.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("a/0.png", bytes(1 << 27))
    with pytest.raises(UserError, match="unpacks to 134,217,728 bytes"):
        fruits360.load(root=str(tmp_path))


def test_one_image_is_not_enough_but_one_class_is(workshop: Any) -> None:
    assert workshop.step("evaluate").code == 0
    assert torch.get_num_threads() == 1

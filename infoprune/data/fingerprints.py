"""Fingerprints of data sets: for each split a hash of its images and one of its labels."""

import inspect
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from hashlib import file_digest, sha256
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset

from infoprune.data.samples import LABELS, labels_of, length_of, still
from infoprune.errors import RunError, UserError, out_of_memory, told

Depth = Literal["files", "content"]
PROBED = 16  # samples read of a split whose images are known from elsewhere; they show what is done to them
READ, READ_BYTES = 4_096, 512 << 20  # at most that many samples, or bytes of them, where nothing else is known
ROW = 64  # numbers per sample from which an array is taken for images: boxes, points and labels have fewer
CHUNK = 16 << 20  # bytes hashed at a time
# What the default text of an object says besides its type: another address in every process.
ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


def fingerprints_of(
    splits: Mapping[str, Any], name: str, depth: Depth = "files", *, probe: bool = True
) -> dict[str, str]:
    """Hashes that change when the images, the labels or the transforms of data sets do.

    - Arrays and tensors that a data set holds, one row per sample, are hashed as a whole.
    - Of files that it names, name, size and time of the last change count, or with "content" every byte.
    - Of any other, samples are read: up to `READ`, or `READ_BYTES` of them, spread evenly; with "content" all.
    - All labels at hand (`targets`, `labels`) count, and the text of `transform` and its like.

    Subsets, concatenations and data sets that hold another are followed. What code of a user's own does to a sample
    shows in `PROBED` of them, spread evenly and read with fixed seeds.

    Args:
        splits: map-style data sets by the names of the splits.
        name: of the data, for messages.
        depth: "files" is quick; "content" reads everything.
        probe: whether samples may be read; `False` where the code that reads them is known and files name them.

    Returns:
        Hexadecimal hashes under the name of each split, under that name with ".labels", and under "transforms".

    Raises:
        UserError: for samples that cannot be read, links to nothing, and pipes, sockets or devices in place of files.
    """
    found: dict[str, str] = {}
    transforms = sha256()
    for split, dataset in splits.items():
        hashes = _SplitHashes(depth)
        try:
            hashes.take_held(dataset)
            hashes.take_samples(dataset, probe)
        except (UserError, RunError):
            raise
        except Exception as error:  # a user's data set raises whatever it likes
            if out_of_memory(error):
                raise
            raise UserError(
                f"'{name}' ({split}) cannot be read: {told(error)}; fix the data set: it gives pairs of an image and a "
                "class index"
            ) from error
        found[split], found[f"{split}.labels"] = hashes.images.hexdigest(), hashes.labels.hexdigest()
        transforms.update(hashes.transforms.digest())
    return {**found, "transforms": transforms.hexdigest()}


def depth_of(load: Callable[..., Any], options: Mapping[str, Any]) -> tuple[Depth, dict[str, Any]]:
    """The option `fingerprint` of a user's own data, and the other options, which the user's function gets.

    A function that has an argument of that name itself gets it with the others.

    >>> depth_of(lambda images: None, {"fingerprint": "content", "images": 3})
    ('content', {'images': 3})

    Raises:
        UserError: for a value other than "files" and "content".
    """
    try:
        own = "fingerprint" in inspect.signature(load).parameters
    except (TypeError, ValueError):  # a callable that does not tell
        own = False
    if own:
        return "files", dict(options)
    depth: Depth = options.get("fingerprint", "files")
    if depth not in get_args(Depth):
        raise UserError(f"[data] fingerprint = {depth!r}: expected 'files' or 'content'")
    return depth, {name: value for name, value in options.items() if name != "fingerprint"}


class _SplitHashes:
    """The hashes of one split while they are made.

    Attributes:
        in_memory, in_files: whether the images are known from arrays, or from files that the data set names.
    """

    def __init__(self, depth: Depth) -> None:
        self.images, self.labels, self.transforms = sha256(), sha256(), sha256()
        self.depth, self.in_memory, self.in_files = depth, False, False

    def take_held(self, dataset: Any) -> None:
        """What a data set, and those that it holds, have in memory or name in files."""
        for part, places in _parts(dataset):
            held = dict(getattr(part, "__dict__", {}))
            for name in ("transform", "target_transform", "transforms"):
                _update(self.transforms, held.get(name))
            if places is not None:
                _update_array(self.images, np.asarray(places, dtype=np.int64))
            labels = labels_of(part)
            if labels is not None:
                _update_array(self.labels, labels, places)
                held = {name: value for name, value in held.items() if name not in LABELS}
            if isinstance(part, TensorDataset):
                tensors = part.tensors if labels is None else part.tensors[:1]
                held |= {f"tensors.{number}": tensor for number, tensor in enumerate(tensors)}
            folders = [value for value in held.values() if _is_path(value) and os.path.isdir(value)]
            count = length_of(part)
            # By identity: torchvision has the same list under two names.
            for value in {id(held[name]): held[name] for name in sorted(held)}.values():
                if count and length_of(value) == count:
                    self._take_rows(value, places, folders, labels is not None)

    def _take_rows(self, value: Any, places: Sequence[int] | None, folders: Sequence[Any], labelled: bool) -> None:
        """An attribute with one entry per sample: an array, a list of arrays, or a list of files."""
        if _is_numeric(value):
            self.in_memory |= value[0].size >= ROW if isinstance(value, np.ndarray) else value[0].numel() >= ROW
            _update_array(self.images, value, places)
        elif isinstance(value, list | tuple | np.ndarray):
            first, _ = _head(value[0])
            entries = (_head(value[place]) for place in (range(len(value)) if places is None else places))
            if _is_numeric(first):
                self.in_memory |= np.prod(first.shape) >= ROW
                for image, rest in entries:
                    _update(self.images, image)
                    _update(self.labels, rest)
            elif _is_path(first) and (folder := _folder_of(first, folders)) is not None:
                self.in_files = True
                shared = _shared([path for path, _ in map(_head, value) if _is_path(path)])
                for path, rest in entries:
                    self._take_file(path, folder, shared)
                    if rest and not (labelled and len(rest) == 1):
                        _update(self.labels, rest)

    def _take_file(self, path: Any, folder: str, shared: int) -> None:
        """The file's name, without the folders that all of them share, and its state."""
        if not _is_path(path):
            _update(self.images, path)
            return
        name = os.fspath(path)
        line = f"{name[shared:]}\0{_state(os.path.join(folder, name), self.depth)}\n"
        self.images.update(line.encode("utf-8", "surrogateescape"))

    def take_samples(self, dataset: Any, probe: bool) -> None:
        """As many samples as it takes to know the images."""
        count = len(dataset)
        # torch's own, which do nothing to what they hold.
        if not probe or all(type(part) in (TensorDataset, Subset, ConcatDataset) for part, _ in _parts(dataset)):
            return
        if self.in_files or (self.in_memory and self.depth == "files"):
            self._read(dataset, _spread(count, PROBED))
        elif self.depth == "content" or count <= PROBED:
            self._read(dataset, range(count))
        else:
            size = max(1, self._read(dataset, range(1)))
            self._read(dataset, _spread(count, min(READ, max(PROBED, READ_BYTES // size))))

    def _read(self, dataset: Any, places: Iterable[int]) -> int:
        """Reads samples; returns the bytes that they take."""
        size = 0
        with still():
            for place in places:
                image, label = _head(dataset[place])
                size += _update(self.images, image) + _update(self.labels, label)
        return size


def _parts(
    dataset: Any, places: Sequence[int] | None = None, outer: tuple[int, ...] = ()
) -> Iterator[tuple[Any, Sequence[int] | None]]:
    """A data set and all that it holds, each with those of its samples that are meant; `None` for all."""
    if id(dataset) in outer:
        return
    yield dataset, places
    outer = (*outer, id(dataset))
    if isinstance(dataset, Subset):
        known = range(len(dataset.dataset))  # type: ignore[arg-type]
        indices = [known[index] for index in dataset.indices]
        yield from _parts(dataset.dataset, indices if places is None else [indices[each] for each in places], outer)
    elif isinstance(dataset, ConcatDataset):
        start = 0
        for part, end in zip(dataset.datasets, dataset.cumulative_sizes, strict=True):
            own = None if places is None else [each - start for each in places if start <= each < end]
            yield from _parts(part, own, outer)
            start = end
    else:
        for value in getattr(dataset, "__dict__", {}).values():
            listed = isinstance(value, tuple | list) and value and isinstance(value[0], Dataset)
            for each in value if listed else [value]:
                if isinstance(each, Dataset):
                    yield from _parts(each, None, outer)


def _head(sample: Any) -> tuple[Any, Any]:
    """The first of a pair, and the rest; a sample that is none, and nothing."""
    return (sample[0], tuple(sample[1:])) if isinstance(sample, tuple | list) and len(sample) else (sample, ())


def _spread(total: int, count: int) -> list[int]:
    """As many places, spread evenly over all, the first and the last among them.

    >>> _spread(9, 3), _spread(2, 3)
    ([0, 4, 8], [0, 1])
    """
    return [round(k * (total - 1) / (count - 1)) for k in range(count)] if count < total else list(range(total))


def _is_numeric(value: Any) -> bool:
    return isinstance(value, Tensor) or (isinstance(value, np.ndarray) and value.dtype.kind in "biufc")


def _is_path(value: Any) -> bool:
    return isinstance(value, str | os.PathLike)


def _folder_of(name: Any, folders: Sequence[Any]) -> str | None:
    """The folder that a file's name is relative to, which is empty for the working directory; `None` for no file."""
    for folder in ("", *map(os.fspath, folders)):
        path = os.path.join(folder, os.fspath(name))
        if os.path.lexists(path) and not os.path.isdir(path):
            return folder
    return None


def _shared(names: Sequence[Any]) -> int:
    """Length of the path that all names start with, up to its last separator.

    >>> _shared(["data/train/a/0.png", "data/train/b/0.png"])
    11
    """
    texts: list[str] = [os.fspath(name) for name in names]
    first, last = min(texts), max(texts)  # what these two share, all do
    alike = next((k for k, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
    return first.rfind(os.sep, 0, alike) + 1


def _state(path: str, depth: Depth) -> str:
    """Size and time of the last change of a file, or a hash of its bytes; only regular files are opened."""
    try:
        found = os.stat(path)
        if not stat.S_ISREG(found.st_mode) and not stat.S_ISDIR(found.st_mode):
            raise UserError(
                f"'{path}' is no regular file but a pipe, a socket or a device; replace it by an image, or remove it"
            )
        if depth == "files" or stat.S_ISDIR(found.st_mode):
            return f"{found.st_size} {found.st_mtime_ns}"
        with open(path, "rb") as file:
            return file_digest(file, "sha256").hexdigest()
    except FileNotFoundError as missing:
        if os.path.islink(path):
            raise UserError(
                f"'{path}' is a link to '{os.readlink(path)}', where nothing is; restore that file, or remove the link"
            ) from missing
        return "missing"
    except OSError as error:
        raise UserError(f"'{path}' cannot be read: {error.strerror or error}; fix or remove it") from error


def _update(digest: Any, value: Any) -> int:
    """Adds a value of any type; returns its size in bytes."""
    if hasattr(value, "__array_interface__") and not isinstance(value, np.ndarray):  # Pillow's images, numpy's numbers
        value = np.asarray(value)
    if _is_numeric(value):
        return _update_array(digest, value)
    value = value.tolist() if isinstance(value, np.ndarray) else value
    if isinstance(value, Mapping):
        return sum(_update(digest, each) for key in value for each in (key, value[key]))
    if isinstance(value, tuple | list):
        digest.update(f"{type(value).__name__} {len(value)}\n".encode())
        return sum(_update(digest, each) for each in value)
    text = ADDRESS.sub("", repr(value)).encode("utf-8", "surrogateescape")
    digest.update(b"%d %b\n" % (len(text), text))
    return len(text)


def _update_array(digest: Any, value: Any, places: Sequence[int] | None = None) -> int:
    """Adds type, shape and entries of an array or a tensor, or of some of its rows; returns its size in bytes.

    It goes by chunks, so that a file mapped into memory is never there as a whole.
    """
    if isinstance(value, Tensor):
        value = value.detach()
        value = value.dequantize() if value.is_quantized else value
        value = value.to_dense() if value.layout != torch.strided else value
    rows = value.reshape(1) if value.ndim == 0 else value
    count = len(rows) if places is None else len(places)
    digest.update(f"{value.dtype} {count} {tuple(value.shape[1:])} {value.ndim}\n".encode())
    size = 0
    step = max(1, CHUNK // max(1, rows[:1].nbytes))
    for start in range(0, count, step):
        taken = slice(start, start + step)
        content = _bytes(rows[taken] if places is None else rows[list(places[taken])])
        digest.update(content)
        size += len(content)
    return size


def _bytes(value: Any) -> bytes:
    if isinstance(value, Tensor):
        # By way of bytes, since numpy lacks some of torch's types.
        value = value.cpu().resolve_conj().resolve_neg().contiguous().reshape(-1).view(torch.uint8).numpy()
    content: bytes = value.tobytes()
    return content

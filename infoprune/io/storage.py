"""Files: written whole or not at all, and read without ever unpickling code."""

import hashlib
import json
import os
import pickle
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from infoprune.errors import UserError, shortages

SAFETENSORS = ".safetensors"


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Calls `write` with a temporary name beside `path`, then renames: readers see the old file or the new one.

    Raises:
        UserError: where the folder cannot be written to.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix)
    except OSError as error:
        raise UserError(f"cannot write '{path}': {error.strerror}; choose another folder with --out") from error
    os.close(handle)
    temporary = Path(name)
    try:
        with shortages(f"writing '{path}'"):
            write(temporary)
            settle(temporary)
            temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def settle(path: Path) -> None:
    """Gives a finished temporary file the permissions of any new file, and waits until it is on the disk.

    Renamed before that, it could be found empty after a power cut.
    """
    umask = os.umask(0)
    os.umask(umask)
    path.chmod(0o666 & ~umask)
    with path.open("rb") as file:
        os.fsync(file.fileno())


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Writes readable JSON: lists of numbers on one line, everything else indented."""
    write_atomically(path, lambda temporary: temporary.write_text(_pretty(value) + "\n", encoding="utf-8"))


def _pretty(value: Any, indent: int = 0) -> str:
    inner = " " * (indent + 2)
    if isinstance(value, Mapping) and value:
        rows = [f"{inner}{json.dumps(str(key))}: {_pretty(item, indent + 2)}" for key, item in value.items()]
        return "{\n" + ",\n".join(rows) + "\n" + " " * indent + "}"
    if isinstance(value, list | tuple) and any(isinstance(item, Mapping) for item in value):
        rows = [inner + _pretty(item, indent + 2) for item in value]
        return "[\n" + ",\n".join(rows) + "\n" + " " * indent + "]"
    return json.dumps(value, allow_nan=False)


def read_json(path: Path, remedy: str = "remove it to have it made again") -> dict[str, Any]:
    """Reads a JSON object.

    Args:
        path: the file.
        remedy: what to do about a damaged one, for the message.

    Raises:
        UserError: where the file is missing, or no JSON object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"no file '{path}'") from error
    except (
        OSError,
        ValueError,
        RecursionError,
    ) as error:  # of encoding, syntax, endless numbers, nesting
        raise UserError(f"cannot read '{path}' as JSON: {error}; {remedy}") from error
    if not isinstance(value, dict):
        raise UserError(f"'{path}' holds a {type(value).__name__}, expected a JSON object; {remedy}")
    return value


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Writes a safetensors file; tensors are copied to contiguous CPU memory, so shared storage is no obstacle."""
    plain = {
        name: tensor.detach().to("cpu").clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()
    }

    def write(temporary: Path) -> None:
        try:
            save_file(plain, temporary, metadata=dict(metadata))
        except SafetensorError as error:  # a full disk among them
            raise OSError(str(error)) from error

    write_atomically(path, write)


def read_metadata(path: Path) -> dict[str, str]:
    """The text entries of a safetensors file's header.

    Raises:
        UserError: where the file is missing or no safetensors file.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except FileNotFoundError as error:
        raise UserError(f"no file '{path}'") from error
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"'{path}' is not a whole safetensors file: {error}; remove it to have it made again"
        ) from error


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Tensors of a `.safetensors` file, or of a `.pth` / `.pt` / `.th` file read with `weights_only=True`.

    A dictionary with an entry `state_dict` is unwrapped, and a common `module.` prefix (left by DataParallel) dropped.
    A pair of `NAME.q`, of 8-bit integers, and `NAME.scale`, one per filter, becomes `NAME.weight`, their product.

    Raises:
        UserError: where the file is missing, damaged, or would need unpickling of code, or where a tensor's numbers are
            not all there in memory, one by one: sparse, quantized, nested, or without data.
    """
    if not path.is_file():
        raise UserError(f"no weights file '{path}'")
    try:
        _check_archive(path)
        found: Any = (
            load_file(path) if path.suffix == SAFETENSORS else torch.load(path, map_location="cpu", weights_only=True)
        )
    except pickle.UnpicklingError as error:
        raise UserError(
            f"'{path}' holds more than tensors, and reading it would run its code: refused. Save the state_dict alone, "
            "best as safetensors"
        ) from error
    except Exception as error:  # of a damaged pickle or archive nearly anything comes
        raise UserError(f"cannot read weights from '{path}': {error}") from error
    if isinstance(found, dict) and isinstance(found.get("state_dict"), dict):
        found = found["state_dict"]
    plain = isinstance(found, dict) and all(isinstance(value, Tensor) for value in found.values())
    if not plain or not all(isinstance(name, str) for name in found):
        raise UserError(f"'{path}' holds no state_dict (a dictionary of tensors); save model.state_dict()")
    for name, value in found.items():
        _check_plain(name, value, path)
    if found and all(name.startswith("module.") for name in found):
        found = {name.removeprefix("module."): value for name, value in found.items()}
    return _dequantised(found, path)


def _check_archive(path: Path) -> None:
    """Raises OSError for a .pth that unpacks to more than it is: torch stores tensors as they are, never compressed."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
        if size > path.stat().st_size:
            raise OSError(f"it holds {path.stat().st_size:,} bytes that unpack to {size:,}, as torch never writes them")


def _check_plain(name: str, value: Tensor, path: Path) -> None:
    """Raises UserError for a tensor whose numbers are not laid out one by one in memory."""
    kind = next(
        (
            kind
            for kind, found in (
                ("sparse or packed", value.layout != torch.strided),
                ("nested", value.is_nested),
                ("quantized", value.is_quantized),
                ("without data (device 'meta')", value.is_meta),
                (f"a {type(value).__name__}", type(value) not in (Tensor, nn.Parameter)),
            )
            if found
        ),
        None,
    )
    if kind is not None:
        raise UserError(f"'{path}': {name} is {kind}, expected a plain tensor; save its dequantized, dense values")


def _dequantised(tensors: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Weights stored as integers times a scale, in floating point."""
    plain = dict(tensors)
    for name in [name for name, value in tensors.items() if name.endswith(".q") and value.dtype == torch.int8]:
        layer = name.removesuffix(".q")
        scale, value = tensors.get(f"{layer}.scale"), plain.pop(name)
        if scale is None or not value.dim() or scale.numel() not in (1, len(value)) or not scale.is_floating_point():
            raise UserError(
                f"'{path}' has '{name}' without a '{layer}.scale' per filter, in floating point; use an intact "
                "checkpoint"
            )
        if f"{layer}.weight" in tensors or value.numel() > value.untyped_storage().nbytes():
            raise UserError(
                f"'{path}' has '{name}' beside '{layer}.weight', or as a view of fewer numbers; use an intact "
                "checkpoint"
            )
        scale = plain.pop(f"{layer}.scale").float()
        plain[f"{layer}.weight"] = value.float() * scale.reshape(-1, *[1] * (value.dim() - 1))
    return plain


def fit_weights(model: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Loads weights strictly, except for batch norm's batch counters, which older files lack.

    Raises:
        UserError: where names, shapes or kinds of numbers differ, or a weight is NaN or infinite, or becomes so in the
            model's precision; the model is then unchanged.
    """
    own = model.state_dict()
    missing = [name for name in own if name not in tensors and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in tensors if name not in own]
    shapes = [
        f"{name} is {tuple(tensors[name].shape)}, the model's {tuple(value.shape)}"
        for name, value in own.items()
        if name in tensors and tensors[name].shape != value.shape
    ]
    for problem, rows in (("lacks", missing), ("has unknown", unexpected), ("does not fit:", shapes)):
        if rows:
            more = f" and {len(rows) - 3} more" if len(rows) > 3 else ""
            raise UserError(
                f"weights '{source}' {problem} {', '.join(rows[:3])}{more}; check that [model] describes the "
                "architecture these weights were saved from"
            )
    for name, value in tensors.items():
        came, wanted = _numbers(value.dtype), _numbers(own[name].dtype)
        if came != wanted:
            kind = str(value.dtype).removeprefix("torch.")
            raise UserError(
                f"weights '{source}': {name} is of type {kind}, expected {wanted}; use an intact checkpoint"
            )
    bad = [name for name, value in tensors.items() if not _is_finite(value, own[name].dtype)]
    if bad:
        raise UserError(f"weights '{source}' hold NaN or infinity in {', '.join(bad[:3])}; use an intact checkpoint")
    model.load_state_dict(dict(tensors), strict=False)


def _numbers(dtype: torch.dtype) -> str:
    """The kind of numbers of a type, in words; types of one kind can be converted into each other."""
    if not dtype.is_floating_point:
        return "complex numbers" if dtype.is_complex else "integers"
    # Two numbers of four bits share a byte there, so that shapes do not tell how many there are.
    return "packed numbers" if dtype == torch.float4_e2m1fn_x2 else "floating-point numbers"


def _is_finite(value: Tensor, dtype: torch.dtype) -> bool:
    """Whether numbers are finite in the type into which they are loaded."""
    if not (dtype.is_floating_point or dtype.is_complex):
        return True
    loaded = value.to(dtype)
    return bool((loaded.float() if dtype.itemsize == 1 else loaded).isfinite().all())  # unknown for eight bits


def file_fingerprint(path: Path) -> str:
    """SHA-256 of a file's content.

    Raises:
        UserError: where it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"cannot read '{path}': {error.strerror}") from error


def tensors_fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of the names, types, shapes and contents of tensors, whatever their order.

    >>> tensors_fingerprint({"a": torch.ones(2)}) == tensors_fingerprint({"a": torch.ones(1, 2)})
    False
    """
    digest = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].detach().to("cpu").contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def value_fingerprint(value: Any) -> str:
    """SHA-256 of a value made of JSON types, whatever the order of its keys.

    >>> value_fingerprint({"a": 1, "b": [2]}) == value_fingerprint({"b": [2], "a": 1})
    True
    """
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()

"""Artifacts as JSON values and back; a tensor is a list of numbers, and NaN or infinity in it is null."""

import math
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import torch
from torch import Tensor

from infoprune.errors import UserError

Noun = TypeVar("Noun")


def to_json(value: Any) -> Any:
    """JSON types for a dataclass.

    >>> from infoprune.analyses.base import Measure
    >>> to_json(Measure(torch.tensor([1.5, math.nan])))
    {'value': [1.5, None], 'low': None, 'high': None, 'unit': 'bits'}
    """
    # By way of the text, so that what is written equals what will be read: lists for tuples, null for NaN.
    return msgspec.json.decode(msgspec.json.encode(value, enc_hook=_encode))


def from_json(value: Any, kind: type[Noun], source: str) -> Noun:
    """A dataclass from JSON types; the inverse of `to_json`, except that what was infinite comes back as NaN.

    Args:
        value: what the file holds.
        kind: the dataclass.
        source: the file's name, for messages.

    Raises:
        UserError: where a field is missing or of the wrong type.
    """
    try:
        return msgspec.convert(value, kind, dec_hook=_decode, str_keys=True)
    except (msgspec.ValidationError, TypeError, ValueError) as error:
        raise UserError(f"'{source}' is no valid {kind.__name__.lower()}: {error}; fix it or remove it") from error


def differing(a: Any, b: Any, where: str = "") -> list[str]:
    """Dotted names of the entries in which two JSON values differ.

    >>> differing({"seed": 0, "plan": {"macs": 0.5}}, {"seed": 0, "plan": {"macs": 0.3, "bytes": 9}})
    ['plan.bytes', 'plan.macs']
    """
    if not (isinstance(a, dict) and isinstance(b, dict)):
        return [] if a == b else [where or "all"]
    names = sorted({*a, *b})
    return [row for key in names for row in differing(a.get(key), b.get(key), f"{where}.{key}".lstrip("."))]


def _encode(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().cpu().tolist()
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"cannot write a {type(value).__name__} as JSON")


def _decode(kind: type, value: Any) -> Any:
    if kind is Path:
        return Path(value)
    if kind is not Tensor:
        raise TypeError(f"cannot read a {kind.__name__} from JSON")
    numbers = [math.nan if item is None else item for item in value] if isinstance(value, list) else value
    return torch.tensor(math.nan if numbers is None else numbers, dtype=torch.float64)

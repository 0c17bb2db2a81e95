"""What is installed and at hand: the first thing to look at when something does not work."""

import os
import platform
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import torch

from infoprune import __version__
from infoprune.config import registry
from infoprune.config.recipe import shipped

PACKAGES = ("torch", "torchvision", "torch-pruning", "numpy", "safetensors", "onnx", "onnxruntime")


@dataclass(frozen=True)
class Row:
    """One thing looked at: its name, what was found, and whether that is a problem."""

    what: str
    found: str
    problem: bool = False


def diagnose() -> list[Row]:
    """Versions, devices, threads, and data found; nothing is loaded or changed."""
    rows = [Row("infoprune", __version__), Row("Python", platform.python_version()), Row("system", platform.platform())]
    for name in PACKAGES:
        try:
            rows.append(Row(name, metadata.version(name)))
        except metadata.PackageNotFoundError:
            rows.append(Row(name, f"not installed; pip install {name}", problem=True))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    rows.append(Row("CPU", f"{cores} cores, {torch.get_num_threads()} threads in torch"))
    count = torch.cuda.device_count()
    rows += [Row(f"GPU {i}", torch.cuda.get_device_name(i)) for i in range(count)] or [
        Row("GPU", "none: runs on the CPU")
    ]
    rows.append(_data())
    rows.append(Row("recipes", ", ".join(shipped()) or "none found", problem=not shipped()))
    for kind in ("models", "datasets", "analyses"):
        rows.append(Row(kind, ", ".join(registry.names(kind))))
    return rows


def _data() -> Row:
    folder = os.environ.get("INFOPRUNE_DATA")
    if folder is None:
        return Row("INFOPRUNE_DATA", "not set: recipes then need --set data.root=… (digits needs nothing)")
    if not Path(folder).is_dir():
        return Row("INFOPRUNE_DATA", f"'{folder}' is no folder; fix the variable", problem=True)
    return Row(
        "INFOPRUNE_DATA", f"{folder}: {', '.join(sorted(each.name for each in Path(folder).iterdir())) or 'empty'}"
    )

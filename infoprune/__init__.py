"""Prunes a pretrained CNN by what information theory says it does not need, and proves the result.

Everything public is imported at first use, so that `import infoprune` and the command line's help stay quick.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

# Name -> the module that defines it.
_PUBLIC = {
    "analyze": "observing",
    "channel_graph": "pruning",
    "evaluate": "training",
    "export": "exporting",
    "finetune": "training",
    "load": "checkpoint",
    "measure_sensitivity": "repairing.probing",
    "load_data": "checkpoint",
    "build": "checkpoint",
    "plan": "planning",
    "plot": "reporting.plotting",
    "profile": "profiling",
    "prune": "pruning",
    "rank": "planning.ranking",
    "repair": "repairing",
    "run": "pipeline",
    "save": "checkpoint",
    "verify": "verifying",
    "Finding": "artifacts",
    "ModelReference": "artifacts",
    "Plan": "artifacts",
    "RunError": "errors",
    "UserError": "errors",
}

__all__ = [*_PUBLIC, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'infoprune' has no attribute '{name}'")
    return getattr(import_module(f"infoprune.{_PUBLIC[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "analyses"])

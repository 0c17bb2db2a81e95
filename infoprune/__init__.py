"""Prunes a pretrained CNN by what information theory says it does not need, and proves the result.

Everything public is imported at first use, so that `import infoprune` and the command line's help stay quick.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

# Name -> the module that defines it.
_PUBLIC = {
    "analyze": "analyses.runner",
    "channel_graph": "pruning.channel_graph",
    "evaluate": "evaluation.accuracy",
    "export": "exporting.export",
    "finetune": "training.finetune",
    "load": "io.checkpoint",
    "measure_sensitivity": "planning.sensitivity",
    "load_data": "io.checkpoint",
    "build": "io.checkpoint",
    "plan": "planning.planner",
    "plot": "reporting.plotting",
    "profile": "evaluation.profile",
    "prune": "pruning.prune",
    "rank": "planning.ranking",
    "repair": "repairing.repair",
    "run": "pipeline.run",
    "save": "io.checkpoint",
    "verify": "pruning.verify",
    "Finding": "analyses.base",
    "ModelReference": "evaluation.metrics",
    "Plan": "planning.plan",
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

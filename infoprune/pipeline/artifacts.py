"""The files that steps leave in a run directory: their names, where each came from, and whether it is up to date."""

import logging
import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import TYPE_CHECKING, Any

from infoprune import __version__
from infoprune.exporting.export import EXPORTED
from infoprune.io import checkpoint, storage
from infoprune.io.encoding import differing, to_json
from infoprune.pipeline.run_directory import RunDirectory
from infoprune.utils import distributed

if TYPE_CHECKING:
    from infoprune.pipeline.context import Context

LOGGER = logging.getLogger(__name__)
# Under this key every artifact says which options and inputs it came from.
MADE_FROM = "made_from"
Origin = Mapping[str, Any]
# The four networks that are measured, in their order.
STAGES = ("base", "pruned", "repaired", "finetuned")
COUNTERPARTS = ("finetuned-best", "finetuned-last")
TRAINED = ("trained", "trained-best", "trained-last")


def weights_name(stage: str) -> str:
    """The file that holds the network of a stage."""
    return f"{stage}{storage.SAFETENSORS}"


def finding_name(analysis: str) -> str:
    """The file that holds what an analysis found."""
    return f"findings/{analysis.replace(':', '.').replace('/', '.')}.json"


# Every file that a step may leave, but for findings, whose names are the recipe's.
ARTIFACTS = (
    *("sensitivity.json", "timings.json", "depth.json", "depth-trials.json", "search.json", "choice.json", "plan.json"),
    *(weights_name(stage) for stage in (*STAGES, *COUNTERPARTS, *TRAINED)),
    *("history.csv", "training.csv", "plane-finetuned.json", "plane-trained.json", "metrics.json"),
    *(f"export/{name}" for name in EXPORTED),
    *("report.html", "report.json", "compare.json", "compare.csv", "widths.json", "depth_advice.json"),
)


def versions() -> dict[str, str]:
    """What results depend on, by name."""
    libraries = {name: metadata.version(name) for name in ("torch", "torchvision", "torch-pruning")}
    return {"infoprune": __version__, "Python": platform.python_version(), **libraries}


def origin(
    context: "Context",
    options: Mapping[str, Any],
    *inputs: str,
    code: Sequence[str | None] = (),
    calibrated: bool = True,
    weighted: bool = True,
) -> Origin:
    """Under which an artifact is known to come from these options and inputs, this model and this data.

    Args:
        context: the run.
        options: of the step.
        inputs: names of the artifacts that it reads.
        code: references that may be to the user's own code, beside model and data.
        calibrated: whether it looks at the calibration batches.
        weighted: whether it starts from the recipe's weights, which training from scratch does not.
    """
    settings, directory = context.settings, context.directory
    common = {
        "model": settings.model,
        "weights": context.weights_fingerprint if weighted else None,
        "data": context.data.fingerprint,
        "seed": settings.run.seed,
        "code": context.sources_of([settings.model.name, settings.data[0]]),
    }
    made_from: dict[str, Any] = to_json(
        {
            "versions": versions(),
            "options": dict(options),
            "code": context.sources_of(code),
            "origin": common,
            "calibration": settings.calibration if calibrated else None,
            "inputs": {name: directory.fingerprint(name) for name in inputs},
        }
    )
    return made_from


def is_current(directory: RunDirectory, artifact: str, made_from: Origin) -> bool:
    """Whether an artifact is whole and came from these options and inputs, as the first process finds it."""

    def current() -> bool:
        if directory.is_current(artifact, storage.value_fingerprint(made_from)):
            return True
        _say_why(directory, artifact, made_from)
        return False

    return distributed.decide(current)


def _say_why(directory: RunDirectory, artifact: str, made_from: Origin) -> None:
    """Says why an artifact is made again."""
    if changed := directory.changed(artifact):
        aside = directory.private("changed")
        LOGGER.warning(
            "%s changed after the run wrote it: made again; what was there is kept in %s", ", ".join(changed), aside
        )
    elif directory.state(artifact) == "whole":
        differences = changes(directory, artifact, made_from)
        LOGGER.info("%s is made again; changed: %s", artifact, ", ".join(differences) or "a part of it is missing")


def changes(directory: RunDirectory, artifact: str, made_from: Origin) -> list[str]:
    """Dotted names of what an artifact came from that is different now."""
    path = directory.path / artifact
    header = checkpoint.header_of(path) if path.suffix == storage.SAFETENSORS else storage.read_json(path)
    return differing(header.get(MADE_FROM), made_from)


def write_json(context: "Context", name: str, made_from: Origin, content: Mapping[str, Any], of: str = "") -> None:
    """Writes an artifact, or a part of one, with what it came from."""
    fingerprint = storage.value_fingerprint(made_from)
    context.directory.write_json(name, {MADE_FROM: made_from, **content}, of, fingerprint)

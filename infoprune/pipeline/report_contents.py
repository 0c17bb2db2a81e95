"""What a run directory holds, put together for its report."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from infoprune.analyses.base import Finding
from infoprune.errors import UserError
from infoprune.evaluation.metrics import Cell, StageMetrics, Verification
from infoprune.graph.channels import ChannelGraph
from infoprune.io import storage
from infoprune.io.encoding import from_json
from infoprune.pipeline.run_directory import RunDirectory
from infoprune.planning.plan import Plan
from infoprune.reporting.contents import LayerChange, ReportContents
from infoprune.training.history import read_history
from infoprune.training.plane import read_planes

STAGES = ("base", "pruned", "repaired", "finetuned")


@dataclass(frozen=True)
class About:
    """What no other artifact of a run directory says; `report.json` keeps it.

    Attributes:
        title: name of the recipe.
        recipe: its text.
        findings: files of what the recipe's analyses found, relative to the run directory.
        planes: file of the information planes while training; empty where none were taken.
        layers: the network before and after.
        versions: what the run was made with.
    """

    title: str
    recipe: str
    findings: tuple[str, ...] = ()
    planes: str = ""
    layers: tuple[LayerChange, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)


def gather(folder: Path, about: About | None = None) -> ReportContents:
    """Everything that the report of a run directory shows.

    Args:
        folder: the run directory.
        about: what `report.json` is to say; read from there if not given.

    Raises:
        UserError: where the directory holds no report, or a file of it is damaged.
    """
    directory = RunDirectory(folder)
    if about is None:
        path = folder / "report.json"
        told = storage.read_json(path) if path.exists() else {}
        if told.get("about") is None:
            raise UserError(
                f"'{folder}' holds no run with a report; write it first: infoprune report RECIPE --out '{folder}'"
            )
        about = from_json(told["about"], About, str(path))
        _check_up_to_date(directory, told)
        _check_unchanged(directory, ["report.json", "plan.json", "metrics.json", "history.csv", *about.findings])
    plan, metrics = storage.read_json(folder / "plan.json"), storage.read_json(folder / "metrics.json")
    files = [folder / name for name in about.findings]
    measured = {stage: metrics[stage] for stage in STAGES if stage in metrics}
    return ReportContents(
        title=about.title,
        recipe_text=about.recipe,
        plan=from_json(plan, Plan, str(folder / "plan.json")),
        metrics={stage: from_json(value, StageMetrics, "metrics.json") for stage, value in measured.items()},
        verification=from_json(metrics.get("verification"), Verification, "metrics.json"),
        layers=about.layers,
        findings=[from_json(storage.read_json(path), Finding, str(path)) for path in files],
        cells=_cells(directory, plan),
        history=read_history(folder / "history.csv"),
        planes=read_planes(folder / about.planes) if about.planes else {},
        versions=about.versions,
    )


def _check_unchanged(directory: RunDirectory, names: Sequence[str]) -> None:
    """Raises UserError where a file is not as the run wrote it."""
    changed = [name for name in names if directory.state(name) in ("changed", "foreign")]
    if changed:
        raise UserError(
            f"'{directory.path}': {', '.join(changed)} changed after the run wrote it; bring the run up to date first: "
            f"infoprune report RECIPE --out '{directory.path}'"
        )


def _check_up_to_date(directory: RunDirectory, report: Mapping[str, Any]) -> None:
    """Raises UserError where a report was made from other artifacts than those that are there."""
    inputs = report.get("made_from", {}).get("inputs", {})
    other = [name for name, value in inputs.items() if not directory.has(name) or directory.fingerprint(name) != value]
    if other:
        raise UserError(
            f"'{directory.path}': the report was made from another {', '.join(other)}; bring the run up to date first: "
            f"infoprune report RECIPE --out '{directory.path}'"
        )


def _cells(directory: RunDirectory, plan: Mapping[str, Any]) -> list[Cell]:
    """What was compared, if it was on the same model and data as the run; what came from others would mislead."""
    found = directory.recall("compare.json")
    if _origin(found) != _origin(plan):
        return []
    return [from_json(row, Cell, "compare.json") for row in found.get("cells", [])]


def _origin(artifact: Mapping[str, Any]) -> Any:
    return artifact.get("made_from", {}).get("origin")


def layer_changes(whole: ChannelGraph, left: ChannelGraph, plan: Plan) -> list[LayerChange]:
    """All convolutions and linear layers before and after, in the order of the forward pass.

    Args:
        whole: of the unpruned model.
        left: of what remains of it without the blocks that the plan removes.
        plan: what is kept.
    """
    before = whole.layer_widths({})
    after = left.layer_widths({group.group: group.width_after for group in plan.groups})
    owners = {member.layer: group.name for group in left.groups for member in group.members if member.side == "out"}
    found = []
    for cost in whole.costs:
        if not cost.macs:
            continue
        (read, own), (reads, owns) = before[cost.layer], after.get(cost.layer, (0, 0))
        inputs = 1.0 if cost.depthwise else reads / read
        macs = round(cost.macs * inputs * owns / own)
        found.append(LayerChange(cost.layer, own, owns, cost.macs, macs, owners.get(cost.layer, "")))
    return found


def side_by_side(folders: Sequence[Path]) -> list[ReportContents]:
    """What the reports of several run directories show; runs of one recipe are told apart by their directories."""
    found = [gather(folder) for folder in folders]
    titles = [contents.title for contents in found]
    if len(set(titles)) < len(titles):
        found = [replace(contents, title=folder.name) for contents, folder in zip(found, folders, strict=True)]
    return found

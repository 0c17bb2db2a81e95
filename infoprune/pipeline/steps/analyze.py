"""Runs the analyses of a recipe, all that are not up to date in one pass over the calibration batches."""

from collections.abc import Mapping
from dataclasses import replace

from infoprune.analyses.base import Finding
from infoprune.analyses.runner import analyze
from infoprune.io import storage
from infoprune.io.encoding import from_json, to_json
from infoprune.pipeline.artifacts import Origin, finding_name, origin, write_json
from infoprune.pipeline.context import Context
from infoprune.pipeline.step import Step, always
from infoprune.utils import distributed


def origins(context: Context) -> dict[str, Origin]:
    """One finding per analysis."""
    options = context.settings.analyses
    return {finding_name(name): origin(context, options[name], code=[name]) for name in context.analyses}


def make(context: Context, stale: Mapping[str, Origin]) -> None:
    """Writes the findings."""
    running = {name: analysis for name, analysis in context.analyses.items() if finding_name(name) in stale}
    share = distributed.Share(context.calibration)
    count = context.counter("analyze")
    layers = prunable_layers(context)
    found = analyze(context.model, share, list(running.values()), lambda done: count(done, len(share)), layers=layers)
    for name, finding in zip(running, found, strict=True) if distributed.is_first() else ():
        # Options name an analysis as the recipe does, whatever a user's own calls its finding.
        content, file = to_json(replace(finding, analysis=name)), finding_name(name)
        write_json(context, file, stale[file], content)


def prunable_layers(context: Context) -> list[str]:
    """The layers whose filters belong to a group that can be cut."""
    groups = [group for group in context.graph.groups if not group.refusal]
    return [member.layer for group in groups for member in group.members if member.side == "out"]


def findings(context: Context) -> list[Finding]:
    """What all analyses of the recipe found; each file is read once as long as it stays the same."""
    found = []
    for name in map(finding_name, context.analyses):
        key = name, context.directory.fingerprint(name)
        if key not in context.findings_read:
            path = context.out / name
            context.findings_read[key] = from_json(storage.read_json(path), Finding, str(path))
        found.append(context.findings_read[key])
    return found


STEP = Step("analyze", origins, make, together=always)

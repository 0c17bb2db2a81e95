"""One self-contained page that says what was decided, why, and what it cost."""

import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from infoprune.artifacts import EpochRecord, Finding, Plan, StageMetrics, Verification
from infoprune.errors import UserError
from infoprune.reporting import figures, wording


@dataclass(frozen=True)
class ReportContents:
    """What the page shows.

    Attributes:
        title: name of the recipe or of the job.
        recipe_text: the recipe as it was written; empty where there is none.
        plan: what was decided.
        metrics: the stages measured, under "base", "pruned", "repaired" and "finetuned"; any of them may be missing.
        verification: how far the pruned model is from its masked twin.
        findings: what the analyses found.
        history: the epochs of fine-tuning.
        planes: what `information_plane` found after some steps of fine-tuning, by step.
        versions: what the run was made with.
        notes: anything else worth saying, one sentence each.
    """

    title: str
    plan: Plan
    recipe_text: str = ""
    metrics: Mapping[str, StageMetrics] = field(default_factory=dict)
    verification: Verification | None = None
    findings: Sequence[Finding] = ()
    history: Sequence[EpochRecord] = ()
    planes: Mapping[int, Finding] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()


def report(path: Path | str, contents: ReportContents) -> Path:
    """Writes the page: one HTML file that needs no network and no script; equal contents make equal files.

    Args:
        path: the file to write; its directory is made where it does not exist.
        contents: what the page shows.

    Returns:
        The path of the written file.

    Raises:
        UserError: where the file cannot be written or a stage is unknown.
    """
    unknown = set(contents.metrics) - set(wording.STAGES)
    if unknown:
        raise UserError(f"metrics has the stages {sorted(unknown)}; the report knows {', '.join(wording.STAGES)}")
    path = Path(path)
    page = render(contents)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # A folder of its own, so that the file has the permissions of any new file, and goes with the folder on error.
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".report-") as scratch:
            written = Path(scratch) / path.name
            written.write_text(page, encoding="utf-8")
            os.replace(written, path)
    except OSError as error:
        raise UserError(f"cannot write '{path}': {error.strerror}; choose another place or free it") from error
    return path


def render(contents: ReportContents) -> str:
    """The page's text."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html.jinja").render(
        contents=contents,
        plan=contents.plan,
        decision=wording.decision(contents.plan, contents.metrics, contents.verification),
        stages=[wording.STAGES[stage] for stage in wording.STAGES if stage in contents.metrics],
        rows=wording.stage_rows(contents.metrics),
        notes=list(dict.fromkeys([*contents.plan.notes, *contents.notes])),
        widths=figures.widths(contents.plan),
        findings=[(each, figures.of_finding(each), figures.numbered(each)) for each in contents.findings],
        flag_meanings=wording.FLAG_MEANINGS,
        curves=figures.curves(contents.history),
        planes=figures.planes(contents.planes),
    )

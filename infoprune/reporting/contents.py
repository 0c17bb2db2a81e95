"""What a report is made of."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from infoprune.analyses.base import Finding
from infoprune.evaluation.metrics import Cell, EpochRecord, StageMetrics, Verification
from infoprune.planning.plan import Plan


@dataclass(frozen=True)
class LayerChange:
    """One convolution or linear layer before and after.

    Attributes:
        layer: its dotted name.
        before, after: number of filters; after is 0 where the layer went with its block.
        macs_before, macs_after: multiply-accumulates per sample.
        group: the channel group that cuts its filters; empty where none does.
    """

    layer: str
    before: int
    after: int
    macs_before: int
    macs_after: int
    group: str = ""


@dataclass(frozen=True)
class ReportContents:
    """What the page shows.

    Attributes:
        title: name of the recipe or of the job.
        recipe_text: the recipe as it was written; empty where there is none.
        plan: what was decided.
        metrics: the stages measured, under "base", "pruned", "repaired" and "finetuned"; any of them may be missing.
        verification: how far the pruned model is from its masked reference model.
        layers: all convolutions and linear layers, in the order of the forward pass.
        findings: what the analyses found.
        cells: what `compare` measured: criteria and controls at equal budgets.
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
    layers: Sequence[LayerChange] = ()
    findings: Sequence[Finding] = ()
    cells: Sequence[Cell] = ()
    history: Sequence[EpochRecord] = ()
    planes: Mapping[int, Finding] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()

    def kept_filters(self) -> dict[str, tuple[int, ...]]:
        """Per layer, the filters that stay; of layers whose filters are a group's channels one for one."""
        kept = {group.group: group for group in self.plan.groups}
        own = {name: group.kept for name, group in kept.items()}
        return own | {
            layer.layer: kept[layer.group].kept
            for layer in self.layers
            if layer.group in kept and layer.before == kept[layer.group].width_before
        }

"""The nouns, in the order in which the flow makes them: views, findings, channel groups, plans, metrics."""

from infoprune.artifacts.channels import ChannelGraph, ChannelGroup, Member, width_of
from infoprune.artifacts.costs import Cost, LayerCost
from infoprune.artifacts.exports import ExportResult, Exports
from infoprune.artifacts.findings import Analysis, Curve, Finding, Flag, Joinable, Measure
from infoprune.artifacts.metrics import (
    Cell,
    EpochRecord,
    Latency,
    Metrics,
    ModelReference,
    Score,
    StageMetrics,
    Verification,
)
from infoprune.artifacts.plans import GroupPlan, Plan
from infoprune.artifacts.timings import LayerTimes, Timings
from infoprune.artifacts.views import BatchView, LayerView, Memo

__all__ = [
    "Analysis",
    "BatchView",
    "Cell",
    "ChannelGraph",
    "ChannelGroup",
    "Cost",
    "Curve",
    "EpochRecord",
    "ExportResult",
    "Exports",
    "Finding",
    "Flag",
    "GroupPlan",
    "Joinable",
    "Latency",
    "LayerCost",
    "LayerTimes",
    "LayerView",
    "Measure",
    "Member",
    "Memo",
    "Metrics",
    "ModelReference",
    "Plan",
    "Score",
    "StageMetrics",
    "Timings",
    "Verification",
    "width_of",
]

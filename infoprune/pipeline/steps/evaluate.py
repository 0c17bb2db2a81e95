"""Measures all four stages on the test split and writes `metrics.json`."""

from collections.abc import Mapping
from typing import Any

from infoprune.evaluation.accuracy import evaluate
from infoprune.evaluation.metrics import Metrics, Score, StageMetrics, Verification
from infoprune.evaluation.profile import profile
from infoprune.io import checkpoint, storage
from infoprune.io.encoding import from_json, to_json
from infoprune.pipeline.artifacts import STAGES, Origin, origin, weights_name, write_json
from infoprune.pipeline.context import Context
from infoprune.pipeline.networks import network, save_network
from infoprune.pipeline.step import Step, always
from infoprune.utils import distributed

FILE, BASE = "metrics.json", weights_name("base")


def base_origins(context: Context) -> dict[str, Origin]:
    """The unpruned network, in a file of its own, whose size is measured."""
    return {BASE: origin(context, {})}


def make_base(context: Context, stale: Mapping[str, Origin]) -> None:
    """Writes the unpruned network."""
    save_network(context, "base", context.model, stale[BASE], None)


def origins(context: Context) -> dict[str, Origin]:
    """The figures come from the networks of all stages."""
    stages = [weights_name(stage) for stage in STAGES]
    return {FILE: origin(context, context.settings.tables["evaluate"], *stages, calibrated=False)}


def make(context: Context, stale: Mapping[str, Origin]) -> None:
    """Writes the figures."""
    scores = {stage: score(context, stage) for stage in STAGES}
    if not distributed.is_first():
        return
    rows: dict[str, Any] = {}
    for done, stage in enumerate(STAGES, start=1):
        rows[stage] = to_json(measure(context, stage, scores[stage]))
        context.progress.advance("evaluate latency", done, len(STAGES))
    proof = to_json(checkpoint.proof_of(context.out / weights_name("pruned")))
    write_json(context, FILE, stale[FILE], {**rows, "verification": proof})


def score(context: Context, stage: str) -> Score:
    """Accuracy and loss on the test split."""
    return evaluate(network(context, stage), context.batches("test"), context.counter(f"evaluate {stage}"))


def measure(context: Context, stage: str, score: Score) -> StageMetrics:
    """A score beside what the network costs."""
    cost = profile(network(context, stage), context.calibration[0][0], **context.settings.tables["evaluate"])
    size = (context.out / weights_name(stage)).stat().st_size
    return StageMetrics(score.accuracy, score.loss, cost.parameters, cost.macs, size, cost.latency)


def metrics(context: Context) -> Metrics:
    """What `metrics.json` says of each stage."""
    content = storage.read_json(context.out / FILE)
    return Metrics({stage: from_json(content[stage], StageMetrics, FILE) for stage in STAGES if stage in content})


def proof(context: Context) -> Verification:
    """How far the pruned network is from its masked reference model, as `metrics.json` says."""
    return from_json(storage.read_json(context.out / FILE).get("verification"), Verification, FILE)


BASE_STEP = Step("base", base_origins, make_base, together=always, silent=True)
STEP = Step("evaluate", origins, make, together=always)

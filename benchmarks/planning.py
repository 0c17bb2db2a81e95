"""Which planning options keep most, without any training: rankings, allocations, recommended widths, joining of layers.

    INFOPRUNE_DATA=DATA python -m benchmarks.planning --recipe digits [--keep 0.48 0.3] [--output NOTE.md]

Each row is a plan for a share of the MACs, pruned and repaired by `compensate`; the accuracy is that on the validation
split, since this is where defaults are chosen. Random rankings are means over three seeds. The test split is not used.
"""

import argparse
import copy
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import mean, pstdev
from typing import Any

import torch

from benchmarks.information.machine import header
from infoprune.analyses.base import Finding
from infoprune.analyses.baselines import Random
from infoprune.analyses.runner import analyze
from infoprune.config import recipe
from infoprune.errors import UserError
from infoprune.evaluation.accuracy import evaluate
from infoprune.pipeline.context import open_run
from infoprune.pipeline.run import run_until
from infoprune.pipeline.steps.analyze import findings as findings_of
from infoprune.planning.planner import plan
from infoprune.planning.ranking import rank
from infoprune.planning.sensitivity import measure_sensitivity
from infoprune.pruning.prune import prune
from infoprune.repairing.repair import repair

ANALYSES = ("information_bottleneck", "redundancy", "spectral_rolloff", "cmi_permutation", "response_information")
BASELINES = ("l1", "l2", "taylor", "batch_norm_scale")
NO_SIGNALS: dict[str, Any] = {"redundancy_by": [], "width_by": []}
JOINED: dict[str, Any] = {"redundancy_by": ["redundancy", "spectral_rolloff"]}
# What the rows differ in, beside the ranking.
RULES: dict[str, dict[str, Any]] = {
    "uniform": NO_SIGNALS,
    "global": {**NO_SIGNALS, "allocation": "global"},
    "sensitivity": {**NO_SIGNALS, "allocation": "sensitivity"},
    "uniform, redundancy joins": {**JOINED, "width_by": []},
    "uniform, CMI floors": {"redundancy_by": []},
    "sensitivity, CMI floors": {"redundancy_by": [], "allocation": "sensitivity"},
    "CMI prior": {"redundancy_by": [], "width_as": "prior"},
    "response prior": {"redundancy_by": [], "width_by": ["response_information"], "width_as": "prior"},
    "all signals, uniform": JOINED,
    "all signals, sensitivity": {**JOINED, "allocation": "sensitivity"},
}
JOINS = [(reduce, scale) for scale in ("standardized", "ranks", "values") for reduce in ("mean", "max")]


class Bench:
    """One recipe's model, with all findings."""

    def __init__(self, name: str, batches: int, folder: Path, given: list[str]) -> None:
        analyses = [f"analyses.{each}={{}}" for each in (*ANALYSES, *BASELINES)]
        overrides = [f"calibration.batches={batches}", *analyses, *given]
        self.job = open_run(recipe.read(name, overrides), folder)
        start = time.perf_counter()
        run_until(self.job, "analyze")
        self.seconds = time.perf_counter() - start
        self.findings = findings_of(self.job)
        layers = [layer for finding in self.findings if finding.analysis == "l2" for layer in finding.importance]
        controls = [Random(seed=seed) for seed in range(3)]
        self.random = analyze(self.job.model, self.job.calibration[:1], controls, layers=layers)
        self.tables: dict[str, Mapping[str, Mapping[int, float]]] = {}

    def accuracy(self, findings: list[Finding], rank_by: str, keep: float, rule: Mapping[str, Any]) -> float:
        """Validation accuracy in percent after repair."""
        job, table = self.job, None
        if rule.get("allocation") == "sensitivity":
            table = self._sensitivity(findings, rank_by)
        chosen = plan(findings, job.graph, table, rank_by=rank_by, macs=keep, **rule)
        model = prune(job.model, chosen)
        repair(model, job.model, job.graph, chosen.kept(), job.calibration)
        return 100 * evaluate(model, job.data.batches("validation", batch_size=256)).accuracy

    def _sensitivity(self, findings: list[Finding], rank_by: str) -> Mapping[str, Mapping[int, float]]:
        if rank_by not in self.tables or rank_by == "random":
            scores = rank(findings, self.job.graph, rank_by)
            self.tables[rank_by] = measure_sensitivity(self.job.model, self.job.graph, scores, self.job.calibration[:4])
        return self.tables[rank_by]

    def row(self, rank_by: str, keep: float, rule: Mapping[str, Any]) -> str:
        """Mean and deviation over seeds for the random control, one figure otherwise."""
        others = [finding for finding in self.findings if finding.analysis != "random"]
        draws = self.random if rank_by == "random" else [None]
        try:
            found = [self.accuracy([*others, *([draw] if draw else [])], rank_by, keep, rule) for draw in draws]
        except UserError as error:
            return f"refused: {error}"
        return f"{mean(found):.2f}" + (f" ± {pstdev(found):.2f}" if len(found) > 1 else "")


def main() -> None:
    """Prints the note."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="digits")
    parser.add_argument("--batches", type=int, default=4, help="calibration batches")
    parser.add_argument("--keep", type=float, nargs="+", default=[0.48, 0.3], help="shares of the MACs")
    parser.add_argument("--set", dest="given", action="append", default=[], help="override an option of the recipe")
    parser.add_argument("--ranks", nargs="+", help="only these rankings")
    parser.add_argument("--folder", type=Path, help="run directory, where findings are kept between calls")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    torch.manual_seed(0)
    opening = header(f"INFOPRUNE_DATA=DATA python -m benchmarks.planning {' '.join(sys.argv[1:])}")
    bench = Bench(
        args.recipe, args.batches, args.folder or Path("runs") / f"benchmark-planning-{args.recipe}", args.given
    )
    batches = bench.job.data.batches("validation", batch_size=256)
    base = 100 * evaluate(copy.deepcopy(bench.job.model), batches).accuracy
    kept = " | ".join(f"{keep:.0%} of MACs" for keep in args.keep)
    rows = [f"Recipe `{args.recipe}`; unpruned {base:.2f} on validation; {args.batches} calibration batches.", ""]
    rows += [f"| ranked by | widths | {kept} |", "|---|---|" + "---|" * len(args.keep)]
    grid = [(name, rule) for name in ("l2", "response_information", "information_bottleneck") for rule in RULES]
    others = ("l1", "taylor", "batch_norm_scale", "redundancy", "cmi_permutation", "random")
    grid += [(name, rule) for name in others for rule in ("uniform", "sensitivity")]
    grid = [(name, rule) for name, rule in grid if not args.ranks or name in args.ranks]
    for name, rule in grid:
        cells = " | ".join(bench.row(name, keep, RULES[rule]) for keep in args.keep)
        rows.append(f"| {name} | {rule} | {cells} |")
        print(rows[-1], flush=True)
    weighted = {cost.layer for cost in bench.job.graph.costs if cost.macs}
    outs = [
        [m.layer in weighted for m in g.members if m.side == "out"] for g in bench.job.graph.groups if not g.refusal
    ]
    if any(sum(layers) > 1 for layers in outs):  # several layers put out the same channels
        rows += ["", "Joining the layers of a residual stream (uniform widths):", ""]
        rows += [f"| ranked by | reduce | scale | {kept} |", "|---|---|---|" + "---|" * len(args.keep)]
        for rank in ("l2", "taylor", "information_bottleneck", "response_information"):
            for reduce, scale in JOINS:
                options = {**NO_SIGNALS, "reduce": reduce, "scale": scale}
                cells = " | ".join(bench.row(rank, keep, options) for keep in args.keep)
                rows.append(f"| {rank} | {reduce} | {scale} | {cells} |")
                print(rows[-1], flush=True)
    if args.output:
        title = f"# What planning options keep without training: {args.recipe}"
        args.output.write_text("\n".join([title, "", *opening, *rows]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

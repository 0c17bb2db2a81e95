"""What it spares to measure the sensitivities of several rankings together instead of one after the other.

    python -m benchmarks.sensitivity RECIPE [--rounds N] [--set TABLE.KEY=VALUE ...] [--output NOTE.md]

The rankings are those of the recipe's `[choose] among`. Both ways take turns within a round, so that other work on the
machine reaches both, and the medians of their processor times count; their losses are compared as well.
"""

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from infoprune.pipeline.surveying import SENSITIVITY_BATCHES

from benchmarks.information.machine import header
from infoprune.analyses.runner import analyze
from infoprune.config import recipe
from infoprune.config.registry import find
from infoprune.pipeline.context import open_run
from infoprune.planning.ranking import rank
from infoprune.planning.sensitivity import measure_sensitivities, measure_sensitivity


def main() -> None:
    """Measures and prints, or writes, the note."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--set", dest="given", action="append", default=[], help="override an option of the recipe")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    torch.manual_seed(0)
    opening = header(f"INFOPRUNE_DATA=DATA python -m benchmarks.sensitivity {' '.join(sys.argv[1:])}")
    with tempfile.TemporaryDirectory() as folder:
        job = open_run(recipe.read(args.recipe, args.given), folder)
        among = [name.split("+") for name in job.settings.tables["choose"]["among"]]
        names = dict.fromkeys(name for each in among for name in each)
        groups = [group for group in job.graph.groups if not group.refusal]
        layers = [member.layer for group in groups for member in group.members if member.side == "out"]
        analyses = [find("analyses", name)(**job.settings.analyses.get(name, {})) for name in names]
        findings = analyze(job.model, job.calibration, analyses, layers=layers)
        scores = {"+".join(each): rank(findings, job.graph, each) for each in among}
        few = job.calibration[:SENSITIVITY_BATCHES]
        alone, together = [], []
        for _ in range(args.rounds):
            start = time.process_time()
            one_by_one = {name: measure_sensitivity(job.model, job.graph, each, few) for name, each in scores.items()}
            middle = time.process_time()
            at_once = measure_sensitivities(job.model, job.graph, scores, few)
            alone.append(middle - start)
            together.append(time.process_time() - middle)
            assert at_once == one_by_one
    slow, fast = statistics.median(alone), statistics.median(together)
    lines = [f"# Sensitivities of several rankings: {args.recipe}", "", *opening]
    lines += ["| rankings | one after the other, s | together, s | times faster |", "|---|---|---|---|"]
    lines += [f"| {', '.join(scores)} | {slow:.1f} | {fast:.1f} | {slow / fast:.2f} |"]
    text = "\n".join(lines) + "\n"
    print(text)
    if args.output:
        args.output.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()

"""ResNet-56 on CIFAR-10 after fine-tuning, at the budgets at which others have published figures.

    INFOPRUNE_DATA=DATA python -m benchmarks.published [--shares 0.474] [--seeds 0] [--set …] [--output NOTE.md]

Every row is a run of the recipe `resnet56_cifar10` with a seed and a budget of its own: analyses, plan, repair, its
schedule of fine-tuning to the last epoch, the test split once. Runs are kept under the folder, and what was interrupted
goes on where it stopped, to the epoch. Two processes may share the work, each with its own shares or seeds; a last call
with all of them writes the note. On a CPU, `--set finetune.epochs=10 --set finetune.precision=bfloat16 --set
finetune.channels_last=true` is what a night allows.
"""

import argparse
import sys
from pathlib import Path
from statistics import mean, pstdev

from benchmarks.information.machine import header
from infoprune.config import recipe
from infoprune.evaluation.metrics import Metrics
from infoprune.pipeline.context import Silence, open_run
from infoprune.pipeline.run import run_until
from infoprune.pipeline.steps.evaluate import metrics as metrics_of
from infoprune.utils.allocator import keep_freed_memory

# From base accuracies of about 93.5, after full schedules.
PUBLISHED = (
    ("DepGraph, sparse training before (Fang et al., 2301.12900)", 2.13, 93.77),
    ("DepGraph, sparse training before (Fang et al., 2301.12900)", 2.57, 93.64),
    ("DepGraph without sparse training (Fang et al., 2301.12900)", 2.11, 93.46),
    ("L1 (Li et al., 1608.08710, as in Fang et al.)", 2.12, 92.93),
)


class Lines(Silence):
    """Says which step is done."""

    def step(self, name: str, state: str) -> None:
        """One line per step."""
        print(f"{name}: {state}", flush=True)


def ran(share: float, seed: int, given: list[str], folder: Path) -> Metrics:
    """What a run measured of each stage; it goes on with whatever is missing."""
    asked = recipe.read("resnet56_cifar10", [f"plan.macs={share}", f"run.seed={seed}", *given])
    job = open_run(asked, folder / f"{share}-{seed}", Lines())
    run_until(job, "evaluate")
    return metrics_of(job)


def rows(share: float, found: dict[int, Metrics]) -> list[str]:
    """A row per seed and one for their mean."""
    lines = []
    for seed, stages in found.items():
        fewer = stages["base"].macs / stages["finetuned"].macs
        scores = " | ".join(f"{100 * stages[stage].accuracy:.2f}" for stage in ("base", "repaired", "finetuned"))
        lines.append(f"| {share} | {seed} | {fewer:.2f} | {scores} |")
    means = [[100 * stages[stage].accuracy for stages in found.values()] for stage in ("repaired", "finetuned")]
    ends = " | ".join(f"{mean(scores):.2f} ± {pstdev(scores):.2f}" for scores in means)
    return [*lines, f"| {share} | mean ± deviation | | | {ends} |"] if len(found) > 1 else lines


def main() -> None:
    """Runs what is missing and writes the note."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shares", type=float, nargs="+", default=[0.474, 0.388], help="of the MACs: 2.11x and 2.58x")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--set", dest="given", action="append", default=[], help="override an option of the recipe")
    parser.add_argument("--folder", type=Path, default=Path("runs/published"), help="where runs are kept between calls")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    keep_freed_memory()
    lines = ["# ResNet-56 on CIFAR-10 after fine-tuning, beside published figures", ""]
    lines += header(f"INFOPRUNE_DATA=DATA python -m benchmarks.published {' '.join(sys.argv[1:])}")
    schedule = recipe.read("resnet56_cifar10", args.given).table("finetune")
    lines += ["Fine-tuning: " + ", ".join(f"{name} {value}" for name, value in schedule.items()) + ".", ""]
    lines += ["| share of MACs | seed | fewer MACs | unpruned | repaired | fine-tuned |", "|---|---|---|---|---|---|"]
    for share in args.shares:
        lines += rows(share, {seed: ran(share, seed, args.given, args.folder) for seed in args.seeds})
    lines += ["", "| published | fewer MACs | fine-tuned |", "|---|---|---|"]
    lines += [f"| {name} | {fewer} | {accuracy} |" for name, fewer, accuracy in PUBLISHED]
    print("\n".join(lines))
    if args.output:
        args.output.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

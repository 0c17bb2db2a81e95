"""The grid behind the claims: every ranking, torch-pruning as it comes, and the controls, at equal budgets.

    INFOPRUNE_DATA=DATA python -m benchmarks.evidence resnet20_cifar10 --folder runs/evidence-resnet20 --output NOTE.md

`infoprune compare` does the measuring, cell by cell, into `compare.json` under the folder; the same command again goes
on with the cells that are missing, and writes the note from all of them. `--set compare.epochs=2` adds fine-tuning of
equal length, `--set compare.images=10000` on that many training images, `--set compare.shares=[0.47]` other budgets.
"""

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import mean, pstdev

import torch
from torch import nn

from benchmarks.information.machine import header
from infoprune.config import recipe, registry
from infoprune.evaluation.accuracy import evaluate
from infoprune.evaluation.metrics import Cell
from infoprune.pipeline.compare import RANDOM, SMALL, compare
from infoprune.pipeline.context import Silence, open_run
from infoprune.pipeline.options import PEER, RECIPE, UNIFORM
from infoprune.pruning.baselines import CRITERIA
from infoprune.utils.allocator import keep_freed_memory

MIXED = ("l2+response_information", "information_bottleneck+response_information", "l2+taylor")
OURS = tuple(name for name in registry.giving("importance") if name != "random")  # which is a control already
STAGES = ("cut", "repaired", "finetuned")


class Lines(Silence):
    """Says which cell is done."""

    def advance(self, step: str, done: int, total: int) -> None:
        """One line per cell."""
        print(f"{step} {done}/{total}", flush=True)


def criteria(model: nn.Module) -> list[str]:
    """All that can rank, all of torch-pruning's, and uniform widths beside measured ones."""
    uniform = [f"{UNIFORM}{name}" for name in ("l2", "response_information", "information_bottleneck")]
    every = [RECIPE, *OURS, *MIXED, *uniform, *(f"{PEER}{name}" for name in CRITERIA)]
    normed = any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())
    return [name for name in every if normed or "batch_norm" not in name]


def spread(values: Iterable[float | None]) -> str:
    """Mean and deviation in percent; a dash for what was not measured."""
    known = [100 * value for value in values if value is not None]
    if not known:
        return "–"
    return f"{mean(known):.2f}" + (f" ± {pstdev(known):.2f}" if len(known) > 1 else "")


def table(cells: Sequence[Cell], whole: int, share: float) -> list[str]:
    """One budget: a row per criterion, ordered by the last stage; validation is what defaults are chosen on."""
    groups: dict[str, list[Cell]] = {}
    for cell in cells:
        if cell.share == share:
            groups.setdefault(cell.criterion, []).append(cell)
    last = [stage for stage in STAGES if any(getattr(cell, stage) is not None for cell in cells)][-1]
    order = sorted(groups, key=lambda name: -mean(getattr(cell, last) or 0.0 for cell in groups[name]))
    lines = ["| criterion | fewer MACs | parameters | cut | repaired | fine-tuned | validation | ms | choosing, s |"]
    lines += ["|---|---|---|---|---|---|---|---|---|"]
    for name in order:
        own = groups[name]
        fewer, parameters = whole / mean(cell.macs for cell in own), mean(cell.parameters for cell in own)
        scores = " | ".join(spread(getattr(cell, stage) for cell in own) for stage in (*STAGES, "validation"))
        latency, cost = mean(cell.latency_ms for cell in own), mean(cell.seconds for cell in own)
        lines.append(f"| {name} | {fewer:.2f} | {parameters:,.0f} | {scores} | {latency:.2f} | {cost:.0f} |")
    return lines


def verdict(cells: Sequence[Cell]) -> list[str]:
    """The default against the best of torch-pruning, L2, Taylor and chance, budget by budget, stage by stage."""
    lines = ["| budget | stage | recipe | best of torch-pruning | margin | l2 | taylor | random, same widths |"]
    lines += ["|---|---|---|---|---|---|---|---|"]
    for share in dict.fromkeys(cell.share for cell in cells):
        for stage in STAGES[1:]:
            found: dict[str, list[float]] = {}
            for cell in cells:
                if cell.share == share and getattr(cell, stage) is not None:
                    found.setdefault(cell.criterion, []).append(getattr(cell, stage))
            peers = {name: mean(scores) for name, scores in found.items() if name.startswith(PEER)}
            if RECIPE not in found or not peers:
                continue
            own, best = mean(found[RECIPE]), max(peers, key=lambda name: peers[name])
            others = " | ".join(spread(found.get(name, ())) for name in ("l2", "taylor", RANDOM))
            peer = f"{100 * peers[best]:.2f} ({best.removeprefix(PEER)})"
            lines.append(
                f"| {share} | {stage} | {100 * own:.2f} | {peer} | {100 * (own - peers[best]):+.2f} | {others} |"
            )
    return lines


def main() -> None:
    """Measures what is missing and writes the note."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("--set", dest="given", action="append", default=[], help="override an option of the recipe")
    parser.add_argument("--criteria", nargs="+", help="only these; the controls stand beside them in any case")
    parser.add_argument("--without", nargs="+", default=[], help="all but these, which cannot rank every layer of it")
    parser.add_argument("--folder", type=Path, required=True, help="run directory, where cells are kept between calls")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    keep_freed_memory()
    torch.manual_seed(0)
    opening = header(f"INFOPRUNE_DATA=DATA python -m benchmarks.evidence {' '.join(sys.argv[1:])}")
    base = open_run(recipe.read(args.recipe, args.given), args.folder).model
    chosen = args.criteria or [name for name in criteria(base) if name not in args.without]
    job = open_run(recipe.read(args.recipe, [f"compare.criteria={chosen!r}", *args.given]), args.folder, Lines())
    whole_accuracy = 100 * evaluate(job.model, job.batches("test")).accuracy
    cells = compare(job, job.settings.compare)
    whole, options = job.graph.unpruned.macs, job.settings.compare
    lines = [f"# Criteria at equal budgets: {args.recipe}", "", *opening, ""]
    lines += [
        f"Unpruned: {whole_accuracy:.2f} on the test split, {whole:,} MACs. Test split once per stage of each cell."
    ]
    if options.epochs:
        seen = f"{options.images:,} training images" if options.images else "the training split"
        lines += [f"Fine-tuning: {options.epochs} epochs on {seen}, equal for all (`{SMALL}` without a teacher)."]
    lines += ["", "## The recipe's own way against what people would use instead", "", *verdict(cells)]
    for share in dict.fromkeys(cell.share for cell in cells):
        lines += ["", f"## {share:.1%} of the MACs", "", *table(cells, whole, share)]
    print("\n".join(lines))
    if args.output:
        args.output.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

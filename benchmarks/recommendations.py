"""Do the recommendations hold? Recommended widths against others at equal cost, and named blocks against all others.

    INFOPRUNE_DATA=DATA python -m benchmarks.recommendations resnet20_cifar10 --share 0.47 --epochs 6 --images 10000
    INFOPRUNE_DATA=DATA python -m benchmarks.recommendations resnet20_cifar10 --depth

Widths: networks of equal multiply-accumulates are trained from scratch on an equal schedule, three seeds each: the
widths that a run chooses (measured sensitivity), those in proportion to what an analysis recommends, uniform ones, and
random ones. What is trained is written down under the folder, and the same command goes on with the rest;
`--set finetune.precision=bfloat16` computes all of them in fewer bits. Depth: every block that could give way to the
identity is removed alone and the network repaired; the accuracy is that on the validation split, and beside it stands
what `data_processing` says of the block.
"""

import argparse
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import mean, pstdev
from typing import Any

import torch

from benchmarks.information.machine import header
from infoprune.analyses.data_processing import DataProcessing
from infoprune.analyses.runner import analyze
from infoprune.config import recipe
from infoprune.evaluation.accuracy import evaluate
from infoprune.graph.channels import ChannelGraph
from infoprune.graph.depth import check_blocks
from infoprune.io import checkpoint, storage
from infoprune.pipeline.architecture import narrowed
from infoprune.pipeline.context import Context, open_run
from infoprune.pipeline.run import run_until
from infoprune.pipeline.steps.analyze import findings as findings_of
from infoprune.planning.allocation import Span, in_proportion, meet
from infoprune.planning.budget import budget_of
from infoprune.planning.plan import Plan
from infoprune.planning.planner import plan
from infoprune.planning.ranking import rank
from infoprune.planning.sensitivity import measure_sensitivity
from infoprune.pruning.prune import prune
from infoprune.repairing.repair import repair
from infoprune.training.finetune import finetune
from infoprune.utils.allocator import keep_freed_memory

ADVISING = ("response_information", "cmi_permutation", "redundancy", "energy_propagation")
SEEDS = 3


def random_widths(graph: ChannelGraph, share: float, seed: int) -> dict[str, int]:
    """Widths in proportion to ones drawn evenly between a fifth and the whole, as wide as the budget allows."""
    generator = torch.Generator().manual_seed(seed)
    spans = [Span(group, 1, group.width, group.partitions) for group in graph.groups if not group.refusal]
    drawn = {span.group.name: 0.2 + 0.8 * float(torch.rand((), generator=generator)) for span in spans}
    like = in_proportion({span.group.name: max(1, round(drawn[span.group.name] * span.group.width)) for span in spans})
    return meet(budget_of(graph, macs=share), spans, like)


def candidates(job: Context, share: float) -> dict[str, list[dict[str, int]]]:
    """Widths per way of choosing them; random ones again for every seed."""
    graph, found = job.graph, findings_of(job)
    known = {finding.analysis: finding for finding in found}
    how: dict[str, Any] = {"rank_by": "response_information", "macs": share, "redundancy_by": []}
    scores = rank(found, graph, "response_information")
    table = measure_sensitivity(job.model, graph, scores, job.calibration[:4])
    plans = {"measured sensitivity": plan(found, graph, table, allocation="sensitivity", width_by=[], **how)}
    plans["uniform"] = plan(found, graph, allocation="uniform", width_by=[], **how)
    for name in ADVISING:
        if known[name].widths:
            plans[f"in proportion to {name}"] = plan(
                found, graph, allocation="uniform", width_by=[name], width_as="prior", **how
            )
    ways = {name: [{g.group: g.width_after for g in chosen.groups}] * SEEDS for name, chosen in plans.items()}
    ways["random"] = [random_widths(graph, share, seed) for seed in range(SEEDS)]
    return ways


def trained(
    job: Context, widths: Mapping[str, int], seed: int, epochs: int, images: int, rate: float
) -> tuple[int, float]:
    """Multiply-accumulates and test accuracy of a network of these widths, trained from new weights."""
    layers = {layer: own for layer, (_, own) in job.graph.layer_widths(dict(widths)).items()}
    reference = narrowed(job.settings.model, job.model, layers)
    if reference is None:
        raise SystemExit(f"the family {job.settings.model.name} has no arguments for these widths")
    torch.manual_seed(seed)
    model = checkpoint.build(reference).to(job.device)
    batches = job.batches("train", seed, images)
    given = job.settings.tables["finetune"]
    faster = {name: given[name] for name in ("precision", "channels_last") if name in given}
    finetune(model, batches, job.batches("validation"), epochs=epochs, learning_rate=rate, seed=seed, **faster)
    return job.graph.macs(dict(widths)), evaluate(model, job.batches("test")).accuracy


def widths_rows(job: Context, args: argparse.Namespace) -> list[str]:
    """A row per way of choosing widths."""
    lines = [f"{args.epochs} epochs on {args.images or 'all'} training images from new weights, {SEEDS} seeds.", ""]
    lines += ["| widths | share of MACs | test accuracy | single seeds |", "|---|---|---|---|"]
    path = job.out / "trainings.json"
    known: dict[str, Any] = storage.read_json(path) if path.exists() else {}
    for name, ways in candidates(job, args.share).items():
        found = []
        for seed, widths in enumerate(ways):
            key = repr((widths, seed, args.epochs, args.images, args.rate, job.settings.tables["finetune"]))
            if key not in known:
                known[key] = trained(job, widths, seed, args.epochs, args.images, args.rate)
                storage.write_json(path, known)
            found.append(known[key])
        scores = [100 * accuracy for _, accuracy in found]
        cost = mean(macs for macs, _ in found) / job.graph.unpruned.macs
        singles = ", ".join(f"{score:.2f}" for score in scores)
        lines.append(f"| {name} | {cost:.3f} | {mean(scores):.2f} ± {pstdev(scores):.2f} | {singles} |")
        print(lines[-1], flush=True)
    return lines


def depth_rows(job: Context) -> list[str]:
    """A row per block that could be removed, ordered by what is left without it."""
    analysis = DataProcessing()
    start = time.perf_counter()
    found = analyze(job.model, job.calibration, [analysis])[0]
    took, base = time.perf_counter() - start, evaluate(job.model, job.batches("validation")).accuracy
    rows = []
    for block in analysis.blocks():
        try:
            check_blocks(job.model, [block], job.calibration[0][0][:1])
        except Exception as error:
            rows.append((0.0, f"| {block} | | refused: {str(error).splitlines()[0]} | | |"))
            continue
        graph = job.graph_without((block,))
        model = prune(job.model, Plan((), {}, graph.unpruned.macs, graph.macs({}), graph.input_shape, removed=(block,)))
        cut = evaluate(model, job.batches("validation")).accuracy
        repair(model, job.model, graph, {}, job.calibration)
        after = evaluate(model, job.batches("validation")).accuracy
        figures = found.measures.get(block, {})
        said = "; ".join(
            f"{name.removeprefix('block: ')} {float(m.value):+.3f}" for name, m in figures.items() if "block" in name
        )
        named = "yes" if block in found.removable else "no"
        saved = 1 - graph.macs({}) / graph.unpruned.macs
        rows.append((after, f"| {block} | {named} | {100 * cut:.2f} | {100 * after:.2f} | {saved:.1%} | {said} |"))
        print(rows[-1][1], flush=True)
    head = ["| block removed | named | cut only | repaired | MACs saved | bits |", "|---|---|---|---|---|---|"]
    return [
        f"Unpruned {100 * base:.2f} on validation; `data_processing` took {took:.0f} s.",
        "",
        *head,
        *(row for _, row in sorted(rows, reverse=True)),
    ]


def main() -> None:
    """Prints the note."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("--depth", action="store_true", help="blocks instead of widths")
    parser.add_argument("--share", type=float, default=0.47, help="of the unpruned network's MACs")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--images", type=int, default=10_000, help="training images; 0 for all")
    parser.add_argument("--rate", type=float, default=0.1)
    parser.add_argument("--set", dest="given", action="append", default=[], help="override an option of the recipe")
    parser.add_argument("--folder", type=Path, required=True, help="run directory, where findings are kept")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    keep_freed_memory()
    torch.manual_seed(0)
    opening = header(f"INFOPRUNE_DATA=DATA python -m benchmarks.recommendations {' '.join(sys.argv[1:])}")
    wanted = [] if args.depth else [f"analyses.{name}={{}}" for name in ADVISING]
    job = open_run(recipe.read(args.recipe, [*wanted, *args.given]), args.folder)
    if args.depth:
        lines = depth_rows(job)
    else:
        run_until(job, "analyze")
        lines = widths_rows(job, args)
    title = f"# {'Removing one block' if args.depth else 'Training recommended widths'}: {args.recipe}"
    text = "\n".join([title, "", *opening, *lines])
    print(text)
    if args.output:
        args.output.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

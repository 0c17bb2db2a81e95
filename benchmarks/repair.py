"""Accuracy without any training: criterion x widths x repair, on the CIFAR-10 ResNets.

    INFOPRUNE_DATA=DATA python -m benchmarks.repair --depth 20 [--output NOTE.md]

`DATA` holds `cifar10/` and `weights/`. Inner widths of all blocks are cut: uniformly to 47 %, or as sensitivity says.
Calibration images come from the training split, without labels; Taylor alone sees their labels. The test split is used
once per row.
"""

import argparse
import copy
import os
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.information.machine import header
from infoprune.analyses.baselines import L2, Random, Taylor
from infoprune.artifacts import ChannelGraph, GroupPlan, Plan
from infoprune.datasets import cifar10
from infoprune.models import cifar_resnet
from infoprune.observing import analyze
from infoprune.pruning import channel_graph, prune
from infoprune.repairing import repair
from infoprune.repairing.probing import measure_sensitivity
from infoprune.planning.sensitivity import allocate
from infoprune.training import evaluate

WEIGHTS = {20: "resnet20-12fca82f.th", 56: "resnet56-4bfd9763.th"}
UNIFORM = 0.47


def load_model(depth: int, folder: Path) -> nn.Module:
    """A pretrained CIFAR ResNet of akamaster/pytorch_resnet_cifar10."""
    model = cifar_resnet.build(depth=depth)
    stored = torch.load(folder / WEIGHTS[depth], map_location="cpu", weights_only=True)["state_dict"]
    missing = model.load_state_dict(
        {name.removeprefix("module."): value for name, value in stored.items()}, strict=False
    )
    assert not missing.unexpected_keys
    return model.eval()


def cut(
    model: nn.Module, graph: ChannelGraph, scores: dict[str, Tensor], widths: dict[str, int]
) -> tuple[nn.Module, Plan]:
    """The network with the best channels of each group."""
    kept = {name: tuple(sorted(scores[name].topk(width).indices.tolist())) for name, width in widths.items()}
    full = {group.name: group.width for group in graph.groups}
    groups = tuple(GroupPlan(n, k, full[n], len(k), 0, 0, "benchmark") for n, k in kept.items())
    plan = Plan(groups, {}, graph.macs({}), graph.macs(widths), graph.input_shape)
    return prune(model, plan), plan


class Bench:
    """One network with its data, scores and sensitivities."""

    def __init__(self, depth: int, images: int) -> None:
        root = Path(os.environ["INFOPRUNE_DATA"])
        self.model = load_model(depth, root / "weights")
        self.graph = channel_graph(self.model, torch.zeros(1, 3, 32, 32))
        data = cifar10.load()
        self.calibration = [b for b, _ in zip(data.batches("train", seed=0), range(images // 128), strict=False)]
        self.test = data.batches("test", batch_size=500)
        self.inner = {g.name: g.width for g in self.graph.groups if g.name.endswith(".conv1")}
        findings = analyze(self.model, self.calibration, [L2(), Random(), Taylor()], layers=list(self.inner))
        self.scores = {finding.analysis: dict(finding.importance) for finding in findings}
        start = time.perf_counter()
        evaluate(self.model, self.calibration)
        self.forward = time.perf_counter() - start
        self.table: dict[str, dict[int, float]] = {}
        self.sensitivity_seconds = 0.0

    def widths(self, budget: float) -> dict[str, int]:
        """Uniform for a budget of 0, else from sensitivity measured with L2 ranking."""
        if not budget:
            return {name: round(UNIFORM * width) for name, width in self.inner.items()}
        if not self.table:
            start = time.perf_counter()
            self.table = measure_sensitivity(self.model, self.graph, self.scores["l2"], self.calibration[:4])
            self.sensitivity_seconds = time.perf_counter() - start
        return allocate(self.table, self.graph, 1 / budget)

    def rows(self, criterion: str, budget: float, methods: Sequence[str]) -> list[str]:
        """One line of the note per repair."""
        smaller, plan = cut(self.model, self.graph, self.scores[criterion], self.widths(budget))
        lines = []
        for method in methods:
            model = copy.deepcopy(smaller)
            start = time.perf_counter()
            repair(model, self.model, self.graph, plan.kept(), self.calibration, method=method)
            seconds = time.perf_counter() - start
            accuracy = 100 * evaluate(model, self.test).accuracy
            widths = "measured" if budget else "uniform"
            lines.append(
                f"| {criterion} | {widths} | {plan.macs_before / plan.macs_after:.2f} | {method} | {accuracy:.2f} | "
                f"{seconds:.1f} | {seconds / self.forward:.1f} |"
            )
            print(lines[-1], flush=True)
        return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--depth", type=int, choices=sorted(WEIGHTS), default=20)
    parser.add_argument("--images", type=int, default=1024, help="calibration images, 128 a batch")
    parser.add_argument("--criteria", nargs="+", default=["l2", "taylor", "random"], help="for uniform widths")
    parser.add_argument("--budgets", nargs="*", type=float, default=[2.1, 2.6], help="for measured widths, L2 ranking")
    parser.add_argument("--methods", nargs="+", default=["none", "batch_norm", "compensate", "reconstruct"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    bench = Bench(options.depth, options.images)
    given = f"--depth {options.depth} --images {options.images} --criteria {' '.join(options.criteria)}"
    given += f" --budgets {' '.join(map(str, options.budgets))} --methods {' '.join(options.methods)}"
    lines = header(f"INFOPRUNE_DATA=DATA python -m benchmarks.repair {given} --threads {options.threads}")
    lines += ["| filters kept by | inner widths | fewer MACs | repair | test accuracy | s | forward passes |"]
    lines += ["|---|---|---|---|---|---|---|"]
    for budget in options.budgets:
        lines += bench.rows("l2", budget, options.methods)
    for criterion in options.criteria:
        lines += bench.rows(criterion, 0, options.methods)
    lines += ["", f"Sensitivity: {bench.sensitivity_seconds:.0f} s on 512 images. One forward pass of the unpruned"]
    lines += [f"network over the calibration images: {bench.forward:.2f} s."]
    if options.output:
        options.output.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

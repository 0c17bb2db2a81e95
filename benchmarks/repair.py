"""Accuracy without any training: criterion x widths x repair, and torch-pruning as it comes beside it.

    INFOPRUNE_DATA=DATA python -m benchmarks.repair --network resnet20 [--output NOTE.md]

`DATA` holds `cifar10/` or `nips2017/`, and `weights/`. Widths inside the blocks are cut: uniformly, or as sensitivity
says, which for `response_information` are those of all groups that it ranks. Calibration images are never those of the
test split, and come without labels; Taylor alone sees their labels. The test split is used once per row.
"""

import argparse
import copy
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.information.machine import header
from infoprune.analyses.baselines import L2, Random, Taylor
from infoprune.analyses.response_information import ResponseInformation
from infoprune.analyses.runner import analyze
from infoprune.data.dataset import Data
from infoprune.evaluation.accuracy import evaluate
from infoprune.evaluation.metrics import ModelReference
from infoprune.evaluation.profile import count_macs
from infoprune.graph.channels import ChannelGraph, ChannelGroup
from infoprune.io import checkpoint
from infoprune.planning.greedy import allocate
from infoprune.planning.masks import compose
from infoprune.planning.plan import GroupPlan, Plan
from infoprune.planning.planner import plan
from infoprune.planning.sensitivity import SHARES, measure_sensitivity
from infoprune.pruning.baselines import masks_of
from infoprune.pruning.channel_graph import channel_graph
from infoprune.pruning.prune import prune
from infoprune.repairing.distill import match_predictions
from infoprune.repairing.reconstruct import reconstruct
from infoprune.repairing.repair import repair

Batches = list[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Network:
    """A published network, what it is calibrated and tested on, and where it is cut.

    Attributes:
        reference, weights, data, options: what a recipe would say.
        inner: how the names of the groups inside its blocks end.
        few: calibration images that sensitivity is measured on.
        uniform: share of their widths that the uniform cut leaves.
        shares: widths at which sensitivity is measured.
    """

    reference: ModelReference
    weights: str
    data: str
    options: dict[str, str]
    inner: str
    uniform: float
    few: int = 512
    shares: tuple[float, ...] = SHARES

    def calibration(self, data: Data, images: int, view: int = 0) -> Batches:
        """Images of the training split, changed at random for views after the first.

        Of the 500 of nips2017 that are not for testing, those for validation too.
        """
        how: dict[str, Any] = {"augment": view > 0, "view": view}
        if self.data == "nips2017":
            parts = [data.batches(split, batch_size=50, seed=0, **how) for split in ("train", "validation")]
            return [batch for part in parts for batch in part][: images // 50]
        return [batch for batch, _ in zip(data.batches("train", seed=0, **how), range(images // 128), strict=False)]


NETWORKS = {
    **{
        f"resnet{depth}": Network(
            ModelReference("cifar_resnet", {"depth": depth}), f"weights/{file}", "cifar10", {}, ".conv1", 0.47
        )
        for depth, file in ((20, "resnet20-12fca82f.th"), (56, "resnet56-4bfd9763.th"))
    },
    "mobilenet_v2": Network(
        ModelReference("mobilenet_v2", {"folded": True, "padding": "same"}),
        "weights/mobilenet_v2_int8.pth",
        "nips2017",
        {"normalisation": "symmetric"},
        ".conv.0.0",
        0.735,
        500,
        (0.9, 0.8, 0.7, 0.6, 0.5, 0.4),
    ),
}


class Bench:
    """One network with its data, scores and sensitivities."""

    def __init__(
        self,
        network: Network,
        images: int,
        criteria: Sequence[str],
        *,
        views: int,
        cache_mb: int,
        state: Path | None,
    ) -> None:
        self.network, self.cache_mb = network, cache_mb
        self.round: tuple[Plan, nn.Module, ChannelGraph, dict[str, Tensor], dict[str, dict[int, float]]] | None = None
        self.model = checkpoint.build(network.reference, network.weights)
        data = checkpoint.load_data(network.data, network.options)
        self.calibration = network.calibration(data, images)
        more = [network.calibration(data, images, view) for view in range(1, views + 1)]
        self.views = [batch for view in more for batch in view]
        self.test = data.batches("test", batch_size=100)
        self.example = self.calibration[0][0][:1]
        self.graph = channel_graph(self.model, self.example)
        self.inner = {g.name: g.width for g in self.graph.groups if g.name.endswith(network.inner) and not g.refusal}
        known = {"l2": L2(), "taylor": Taylor(), "response_information": ResponseInformation(positions=64)}
        known |= {f"random{seed}": Random(seed=seed) for seed in range(10)}
        self.state = state
        kept = torch.load(state, weights_only=True) if state and state.exists() else {}
        self.scores: dict[str, dict[str, Tensor]] = kept.get("scores", {})
        self.tables: dict[str, dict[str, dict[int, float]]] = kept.get("tables", {})
        self.seconds: dict[str, float] = kept.get("seconds", {})
        wanted = [name for name in dict.fromkeys(criteria) if name not in self.scores]
        start = time.perf_counter()
        findings = analyze(self.model, self.calibration, [known[name] for name in wanted])
        self.scores |= {name: dict(finding.importance) for name, finding in zip(wanted, findings, strict=True)}
        if wanted:
            self.keep(f"scoring by {', '.join(wanted)}", start)
        start = time.perf_counter()
        evaluate(self.model, self.calibration)
        self.forward = time.perf_counter() - start

    def keep(self, what: str, start: float) -> None:
        """Notes how long it took, and keeps scores and sensitivities for a later call."""
        self.seconds[what] = time.perf_counter() - start
        if self.state:
            torch.save({"scores": self.scores, "tables": self.tables, "seconds": self.seconds}, self.state)

    def row(self, kept_by: str, widths: str, model: nn.Module, method: str, seconds: float) -> str:
        """One line of the note; the only place where test images are looked at."""
        fewer = count_macs(self.model, self.example) / count_macs(model, self.example)
        accuracy = 100 * evaluate(model, self.test).accuracy
        line = (
            f"| {kept_by} | {widths} | {fewer:.2f} | {method} | {accuracy:.2f} | {seconds:.1f} | "
            f"{seconds / self.forward:.1f} |"
        )
        print(line, flush=True)
        return line

    def widths(self, criterion: str, budget: float) -> dict[str, int]:
        """Uniform for a budget of 0, else from sensitivity measured with that ranking."""
        if not budget:
            return {name: round(self.network.uniform * width) for name, width in self.inner.items()}
        if criterion not in self.tables:
            start = time.perf_counter()
            # Of all groups that it ranks: those that cost too much to cut keep their widths by themselves.
            scores = {g.name: self.scores[criterion][g.name] for g in self.graph.groups if self._ranked(g, criterion)}
            few = self.calibration[: self.network.few // len(self.calibration[0][0])]
            table = measure_sensitivity(self.model, self.graph, scores, few, shares=self.network.shares)
            self.tables[criterion] = table
            self.keep(f"sensitivity, {criterion}", start)
        return allocate(self.tables[criterion], self.graph, 1 / budget)

    def _ranked(self, group: ChannelGroup, criterion: str) -> bool:
        return not group.refusal and group.name in self.scores[criterion]

    def repaired(self, criterion: str, budget: float, methods: Sequence[str], steps: int, match: int) -> list[str]:
        """Cut by a criterion: one line of the note per repair."""
        plan = _plan(self.graph, self.scores[criterion], self.widths(criterion, budget))
        how = "measured" if budget else "uniform"
        return self._repairs(criterion, how, plan, prune(self.model, plan), methods, steps, match)

    def twice(
        self, criterion: str, first: float, budget: float, methods: Sequence[str], steps: int, match: int
    ) -> list[str]:
        """Cut and repaired for a first budget, then scored and measured again and cut for the second."""
        if self.round is None:
            plan = _plan(self.graph, self.scores[criterion], self.widths(criterion, first))
            model = prune(self.model, plan)
            repair(model, self.model, self.graph, plan.kept(), self.calibration, cache_mb=self.cache_mb)
            start, graph = time.perf_counter(), channel_graph(model, self.example)
            scores = dict(analyze(model, self.calibration, [ResponseInformation(positions=64)])[0].importance)
            ranked = {g.name: scores[g.name] for g in graph.groups if not g.refusal and g.name in scores}
            few = self.calibration[: self.network.few // len(self.calibration[0][0])]
            table = measure_sensitivity(model, graph, ranked, few, shares=self.network.shares)
            self.round = plan, model, graph, scores, table
            self.seconds["scoring and sensitivity of the second round"] = time.perf_counter() - start
        plan, model, graph, scores, table = self.round
        left = self.graph.macs({}) / budget / graph.macs({})
        second = _plan(graph, scores, allocate(table, graph, left))
        both = compose(plan, second)
        return self._repairs(
            criterion, f"measured at {first:g}x and again", both, prune(model, second), methods, steps, match
        )

    def _repairs(
        self, kept_by: str, widths: str, plan: Plan, smaller: nn.Module, methods: Sequence[str], steps: int, match: int
    ) -> list[str]:
        lines = []
        corrected, before = smaller, 0.0
        for method in methods:
            start, model = time.perf_counter(), copy.deepcopy(smaller)
            models, seen = (self.model, self.graph, plan.kept()), [*self.calibration, *self.views]
            if method == "match":  # after what came before
                model, start = copy.deepcopy(corrected), start - before
                match_predictions(model, *models, seen, blocks=match, cache_mb=self.cache_mb)
            elif method == "reconstruct" and "compensate" in methods[: methods.index(method)]:
                # What `repair` does, without doing its first half again.
                model, start = corrected, start - before
                reconstruct(model, *models, seen, steps=steps, cache_mb=self.cache_mb)
            else:
                how: dict[str, Any] = {"method": method, "steps": steps, "cache_mb": self.cache_mb}
                repair(model, *models, self.calibration, None, self.views, **how)
            seconds = time.perf_counter() - start
            lines.append(self.row(kept_by, widths, model, method, seconds))
            if method in ("compensate", "reconstruct"):
                corrected, before = model, seconds
        return lines

    def as_it_comes(self, name: str, budget: float) -> str:
        """torch-pruning's own pruner with its own defaults: all groups but the logits at one ratio, no repair.

        Channels behind zero-padded shortcuts are left whole: cut as the library would, such a network does not run.
        """
        start = time.perf_counter()
        masks = masks_of(self.model, self.graph, self.calibration, name, self.graph.macs({}) / budget)
        model = prune(self.model, plan([], self.graph, masks=masks))
        return self.row(f"torch-pruning, {name}", "its own", model, "none", time.perf_counter() - start)


def _plan(graph: ChannelGraph, scores: Mapping[str, Tensor], widths: Mapping[str, int]) -> Plan:
    """The best channels for these widths."""
    kept = {name: tuple(sorted(scores[name].topk(width).indices.tolist())) for name, width in widths.items()}
    full = {group.name: group.width for group in graph.groups}
    groups = tuple(GroupPlan(n, k, full[n], len(k), 0, 0, "benchmark") for n, k in kept.items())
    return Plan(groups, {}, graph.macs({}), graph.macs(widths), graph.input_shape)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=sorted(NETWORKS), default="resnet20")
    parser.add_argument("--images", type=int, default=1024, help="calibration images, at most")
    parser.add_argument("--criteria", nargs="*", default=["l2", "taylor", "random0", "random1", "random2"])
    parser.add_argument("--measured", default="l2", help="criterion at measured widths")
    parser.add_argument("--budgets", nargs="*", type=float, default=[2.1, 2.6], help="fewer MACs, measured widths")
    parser.add_argument("--methods", nargs="+", default=["none", "batch_norm", "compensate", "reconstruct"])
    parser.add_argument("--views", type=int, default=0, help="of the calibration images, which repair sees as well")
    parser.add_argument("--match", type=int, default=6, help='blocks of the method "match", counted from the output')
    parser.add_argument("--cache-mb", type=int, default=2048, help="memory for maps")
    parser.add_argument("--control-methods", nargs="+", default=["none", "compensate"], help="at uniform widths")
    parser.add_argument("--plain", nargs="*", type=float, default=[2.1], help="fewer MACs, torch-pruning as it comes")
    parser.add_argument("--first", type=float, help="fewer MACs of a first round, repaired and measured again")
    parser.add_argument("--steps", type=int, default=200, help="of reconstruct, per block")
    parser.add_argument("--state", type=Path, help="file that keeps scores and sensitivities from call to call")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    needed = [*options.criteria, *([options.measured] if options.budgets else [])]
    bench = Bench(
        NETWORKS[options.network],
        options.images,
        needed,
        views=options.views,
        cache_mb=options.cache_mb,
        state=options.state,
    )
    lines = header(f"INFOPRUNE_DATA=DATA python -m benchmarks.repair {' '.join(sys.argv[1:])}")
    lines += ["| filters kept by | widths | fewer MACs | repair | test accuracy | s | forward passes |"]
    lines += ["|---|---|---|---|---|---|---|", bench.row("all", "full", bench.model, "none", 0.0)]

    def write(line: str) -> None:
        lines.append(line)
        if options.output:  # after each row, so that a run that is ended has its rows
            options.output.write_text("\n".join(lines) + "\n", encoding="utf-8")

    for budget in options.budgets:
        how = (options.methods, options.steps, options.match)
        one = bench.repaired(options.measured, budget, *how) if options.first is None else []
        for line in one or bench.twice(options.measured, options.first, budget, *how):
            write(line)
    for budget in options.plain:
        for name in ("l2", "taylor"):
            write(bench.as_it_comes(name, budget))
    for criterion in options.criteria:
        for line in bench.repaired(criterion, 0, options.control_methods, options.steps, options.match):
            write(line)
    took = "; ".join(f"{what}: {seconds:.0f} s" for what, seconds in bench.seconds.items())
    write(f"\n{took}. One forward pass of the unpruned network over\nthe calibration images: {bench.forward:.2f} s.")


if __name__ == "__main__":
    main()

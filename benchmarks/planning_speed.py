"""Time and memory of planning: channel groups, widths under a budget, and pruning with its proof.

    python -m benchmarks.planning_speed [--output NOTE.md]

Findings and sensitivities are drawn by chance, since only the planner is timed. Memory is the resident size that
pruning adds at its most, in copies of the model, the pruned model and activations included.
"""

import argparse
import gc
import time
from pathlib import Path

import torch
from torch import nn

from benchmarks.information.machine import header, peak_memory_gib, reset_peak_memory
from infoprune.analyses.base import Finding
from infoprune.graph.channels import ChannelGraph
from infoprune.models import torchvision
from infoprune.planning.planner import plan
from infoprune.pruning.channel_graph import channel_graph
from infoprune.pruning.prune import prune

NETWORKS = ("mobilenet_v2", "resnet50", "wide_resnet101_2")


def random_findings(graph: ChannelGraph, model: nn.Module) -> tuple[Finding, dict[str, dict[int, float]]]:
    """An importance for every filter and a loss for every group at seven widths."""
    importance = {name: torch.rand(m.out_channels) for name, m in model.named_modules() if isinstance(m, nn.Conv2d)}
    table = {}
    for group in graph.groups:
        shares = (0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.9, 1.0)
        table[group.name] = {max(1, int(s * group.width)): float(torch.rand(())) * (1 - s) / s for s in shares}
    return Finding("drawn", importance=importance), table


def main() -> None:
    """Prints the note."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    torch.manual_seed(0)
    lines = ["# Time and memory of planning", "", *header("python -m benchmarks.planning_speed")]
    lines += [
        "| network | filters | groups | channel graph | uniform | global | sensitivity | prune | memory of prune |"
    ]
    lines += ["|---|---|---|---|---|---|---|---|---|"]
    for name in NETWORKS:
        model = torchvision.build(architecture=name).eval()
        example = torch.zeros(1, 3, 64, 64)
        start = time.perf_counter()
        graph = channel_graph(model, example)
        cells = [f"{time.perf_counter() - start:.2f} s"]
        finding, table = random_findings(graph, model)
        for allocation in ("uniform", "global", "sensitivity"):
            start = time.perf_counter()
            chosen = plan([finding], graph, table, rank_by="drawn", macs=0.5, allocation=allocation)
            cells.append(f"{time.perf_counter() - start:.2f} s")
            assert 0.495 < chosen.macs_after / chosen.macs_before <= 0.5
        start = time.perf_counter()
        prune(model, chosen)
        cells.append(f"{time.perf_counter() - start:.2f} s")
        gc.collect()
        reset_peak_memory()
        before = peak_memory_gib()
        smaller = prune(model, chosen)
        own = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters()) / 2**30
        cells.append(f"{(peak_memory_gib() - before) / own:.2f} copies")
        del smaller
        filters = sum(len(scores) for scores in finding.importance.values())
        lines.append(f"| {name} | {filters:,} | {len(graph.groups)} | {' | '.join(cells)} |")
        print(lines[-1], flush=True)
    if args.output:
        args.output.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

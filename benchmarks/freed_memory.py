"""What keeping freed memory (`infoprune.utils.allocator`) is worth: processor time and peak memory.

    python -m benchmarks.freed_memory [--rounds 3] [--output NOTE.md]

Every round starts two processes in turn, one that keeps freed memory and one that does not; each evaluates, repairs and
trains on one thread, with random weights and images, which do not matter for time. Medians of the rounds.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch

from benchmarks.information.machine import header
from infoprune.analyses.baselines import L2
from infoprune.analyses.runner import analyze
from infoprune.evaluation.accuracy import evaluate
from infoprune.models import cifar_resnet, mobilenet_v2
from infoprune.planning.planner import plan
from infoprune.pruning.channel_graph import channel_graph
from infoprune.pruning.prune import prune
from infoprune.repairing.repair import repair
from infoprune.training.finetune import finetune
from infoprune.utils.allocator import keep_freed_memory

NETWORKS = {"ResNet-20, 32x32": (20, 128, 32, 0.5), "MobileNetV2, 224x224": (0, 16, 224, 0.8)}


def child(network: str) -> dict[str, float]:
    """Processor seconds per step, and the largest resident size in MiB."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    depth, size, pixels, share = NETWORKS[network]
    model = cifar_resnet.build(depth=depth) if depth else mobilenet_v2.build()
    batches = [(torch.randn(size, 3, pixels, pixels), torch.arange(size) % 10) for _ in range(4)]
    graph = channel_graph(model, batches[0][0][:1])
    chosen = plan(analyze(model, batches[:1], [L2()]), graph, macs=share, rank_by="l2", width_by=[])
    pruned, found = prune(model, chosen), {}
    steps: dict[str, Callable[[], object]] = {
        "evaluate": lambda: [evaluate(model, batches) for _ in range(3)],
        "repair": lambda: repair(pruned, model, graph, chosen.kept(), batches),
        "finetune": lambda: finetune(pruned, batches, epochs=1, learning_rate=0.01),
    }
    for name, step in steps.items():
        start = time.process_time()
        step()
        found[name] = time.process_time() - start
    return found | {"peak, MiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def main() -> None:
    """Measures and prints, or writes, the note; with `--child`, one process's figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--child", nargs=2, metavar=("KEPT", "NETWORK"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        if args.child[0] == "kept" and not keep_freed_memory():
            raise SystemExit("this C library cannot be told, or its settings are in the environment")
        print(json.dumps(child(args.child[1])))
        return
    lines = header(f"python -m benchmarks.freed_memory {' '.join(sys.argv[1:])}".strip())
    lines += ["| network | step | handed back | kept | ratio |", "|---|---|---|---|---|"]
    for network in NETWORKS:
        found: dict[str, list[dict[str, float]]] = {"handed back": [], "kept": []}
        for _ in range(args.rounds):
            for kept, results in found.items():
                command = [sys.executable, "-m", "benchmarks.freed_memory", "--child", kept, network]
                results.append(json.loads(subprocess.run(command, capture_output=True, check=True).stdout))
        for step in found["kept"][0]:
            back, kept = (median(one[step] for one in found[how]) for how in ("handed back", "kept"))
            unit = "" if "MiB" in step else ", processor s"
            lines.append(f"| {network} | {step}{unit} | {back:.2f} | {kept:.2f} | {back / kept:.2f} |")
    text = "\n".join(lines) + "\n"
    print(text)
    if args.output:
        args.output.write_text(f"# Freed memory, handed back or kept\n\n{text}", encoding="utf-8")


if __name__ == "__main__":
    main()

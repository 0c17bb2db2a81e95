"""All analyses in one pass over ResNet-56 and CIFAR-10, and each one's share of the time.

    INFOPRUNE_DATA=DATA python -m benchmarks.all_analyses [--batches 8] [--size 128] [--output NOTE.md]

Time in an analysis is what passes while it observes a layer or concludes; what several share (distances, Gram matrices)
counts for whoever asks first. The rest is the network itself, forward and backward.
"""

import argparse
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.information.machine import header, peak_memory_gib, reset_peak_memory
from infoprune.analyses.base import Finding, LayerView
from infoprune.analyses.runner import analyze
from infoprune.config import registry
from infoprune.evaluation.metrics import ModelReference
from infoprune.io.checkpoint import build, load_data

NAMES = (
    "information_bottleneck",
    "redundancy",
    "cmi_permutation",
    "data_processing",
    "information_plane",
    "spectral_rolloff",
    "energy_propagation",
    "information_scaling",
    "response_information",
)


class Timed:
    """An analysis whose time is taken."""

    def __init__(self, name: str, analysis: Any) -> None:
        self.name, self.analysis = name, analysis
        self.wall = self.processor = 0.0
        self.observes, self.needs_gradients = analysis.observes, analysis.needs_gradients
        self.needs_labels = analysis.needs_labels
        self.across_layers = getattr(analysis, "across_layers", False)

    def observe(self, view: LayerView) -> None:
        """Passes the view on."""
        self._take(self.analysis.observe, view)

    def conclude(self) -> Finding:
        """Passes the finding on."""
        found: Finding = self._take(self.analysis.conclude)
        return found

    def _take(self, function: Any, *given: Any) -> Any:
        wall, processor = time.perf_counter(), time.process_time()
        try:
            return function(*given)
        finally:
            self.wall += time.perf_counter() - wall
            self.processor += time.process_time() - processor


def main() -> None:
    """Prints the note."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, default=8)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--only", nargs="+", default=NAMES, choices=NAMES)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    lines = ["# All analyses in one pass over ResNet-56", ""]
    lines += header(f"INFOPRUNE_DATA=DATA python -m benchmarks.all_analyses {' '.join(sys.argv[1:])}")
    folder = Path(os.environ["INFOPRUNE_DATA"]) / "weights"
    model = build(ModelReference("cifar_resnet", {"depth": 56}), folder / "resnet56-4bfd9763.th")
    batches = load_data("cifar10").batches("train", batch_size=args.size, seed=0)
    some = [batch for _, batch in zip(range(args.batches), batches, strict=False)]
    timed = [Timed(name, registry.find("analyses", name)()) for name in args.only]
    reset_peak_memory()
    wall, processor = time.perf_counter(), time.process_time()
    analyze(model, some, timed)
    wall, processor = time.perf_counter() - wall, time.process_time() - processor
    lines += [
        f"{args.batches} batches of {args.size} images, {torch.get_num_threads()} threads: {wall:.0f} s in all "
        f"({processor:.0f} s of processor time), peak memory {peak_memory_gib():.1f} GiB.",
        "",
        "| analysis | seconds | share | processor seconds |",
        "|---|---|---|---|",
    ]
    for each in sorted(timed, key=lambda each: -each.wall):
        lines.append(f"| {each.name} | {each.wall:.1f} | {each.wall / wall:.0%} | {each.processor:.1f} |")
    rest = wall - sum(each.wall for each in timed), processor - sum(each.processor for each in timed)
    lines.append(f"| the network, forward and backward | {rest[0]:.1f} | {rest[0] / wall:.0%} | {rest[1]:.1f} |")
    print("\n".join(lines))
    if args.output:
        args.output.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

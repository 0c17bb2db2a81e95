"""Memory over many calibration batches, and networks of many filters and of many layers.

    python -m benchmarks.long_runs [--batches 1000] [--filters 10000] [--layers 1000] [--output NOTE.md]

Analyses see one batch after the other and keep sums only, so the resident size has to stay where it is after the first
tenth of the batches. The networks are drawn by chance: one layer of many filters, and many convolutions in a row; each
goes the way from channel groups over a plan to the cut and its proof, with a batch of one image.
"""

import argparse
import gc
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.information.machine import header
from infoprune.analyses.baselines import L2
from infoprune.analyses.runner import analyze
from infoprune.config import registry
from infoprune.models import cifar_resnet
from infoprune.planning.planner import plan
from infoprune.pruning.channel_graph import channel_graph
from infoprune.pruning.prune import prune
from infoprune.pruning.verify import verify


def resident_mib() -> float:
    """Memory of this process now."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


class Batches:
    """Random images, made again for each batch."""

    def __init__(self, count: int, samples: int) -> None:
        self.count, self.samples = count, samples

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        draw = torch.Generator().manual_seed(0)
        for _ in range(self.count):
            yield torch.randn(self.samples, 1, 8, 8, generator=draw), torch.arange(self.samples) % 10


def memory_of(name: str, batches: int) -> str:
    """A row of the table: resident size after a tenth and after all of the batches, for one analysis."""
    model = cifar_resnet.build(depth=8, input_channels=1, widths=[4, 4, 8]).eval()
    seen: list[float] = []

    def note(done: int) -> None:
        if done in (max(1, batches // 10), batches):
            seen.append(resident_mib())

    start = time.perf_counter()
    analyze(model, Batches(batches, 32), [registry.find("analyses", name)()], note)
    seconds = time.perf_counter() - start
    return f"| {name} | {seen[0]:.0f} | {seen[-1]:.0f} | {seen[-1] - seen[0]:+.1f} | {seconds:.0f} s |"


def chain(widths: list[int]) -> nn.Module:
    """Convolutions in a row, scaled so that the signal neither dies nor grows."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for before, after in zip([1, *widths[:-1]], widths, strict=True):
        layers += [nn.Conv2d(before, after, 3, padding=1, bias=False), nn.ReLU()]
        nn.init.kaiming_normal_(layers[-2].weight)
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], 10)).eval()


def whole_way(name: str, widths: list[int]) -> str:
    """A row of the table: seconds from channel groups to the proof, for one network."""
    model, image = chain(widths), torch.randn(1, 1, 8, 8)
    times = []

    def timed(act):  # type: ignore[no-untyped-def]
        start = time.perf_counter()
        found = act()
        times.append(f"{time.perf_counter() - start:.1f} s")
        return found

    graph = timed(lambda: channel_graph(model, image))
    findings = analyze(model, [(image, torch.zeros(1, dtype=torch.long))], [L2()])
    chosen = timed(lambda: plan(findings, graph, rank_by="l2", macs=0.5))
    smaller = timed(lambda: prune(model, chosen))
    proof = verify(model, smaller, graph, chosen.kept(), image)
    assert proof.max_rel_difference <= 1e-5
    share = chosen.macs_after / chosen.macs_before
    return f"| {name} | {' | '.join(times)} | {share:.1%} | {resident_mib():.0f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batches", type=int, default=1000)
    parser.add_argument("--filters", type=int, default=10_000)
    parser.add_argument("--layers", type=int, default=1000)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    lines = ["# Long runs and large networks", "", *header("python -m benchmarks.long_runs"), ""]
    lines += [f"| analysis | MiB after {max(1, args.batches // 10)} | after {args.batches} | growth | time |"]
    lines += ["|---|---|---|---|---|"]
    print("\n".join(lines), flush=True)
    rows = [(memory_of, name, args.batches) for name in registry.names("analyses")]
    for act, name, value in rows:
        lines.append(act(name, value))
        print(lines[-1], flush=True)
    lines += ["", "| network | groups | plan | prune | MACs left | MiB |", "|---|---|---|---|---|---|"]
    for name, widths in (
        (f"a layer of {args.filters:,} filters", [args.filters, 8]),
        (f"{args.layers:,} convolutions of 8 filters", [8] * args.layers),
    ):
        lines.append(whole_way(name, widths))
        print(lines[-1], flush=True)
    if args.output:
        args.output.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

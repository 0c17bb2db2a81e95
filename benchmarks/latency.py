"""What fewer multiply-accumulates are worth in milliseconds: torch and ONNX Runtime, 1 and 2 threads, batch 1 and 64.

    INFOPRUNE_DATA=DATA python -m benchmarks.latency --recipe resnet56_cifar10 [--shares …] [--output NOTE.md]

Widths are uniform, filters ranked by L2: only widths matter here, so a network without weights at hand can be measured
`--untrained`. All networks of a table are timed in turn, pass by pass, so that whatever else the machine does meets all
of them; medians and interquartile ranges over the passes. The second table asks at one budget which multiple
`plan.round_to` should make of the widths.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from torch import Tensor, nn

from benchmarks.information.machine import header
from infoprune.analyses.baselines import L2
from infoprune.analyses.runner import analyze
from infoprune.config import recipe
from infoprune.errors import UserError
from infoprune.evaluation.profile import count_macs
from infoprune.exporting.export import export
from infoprune.pipeline.context import open_run
from infoprune.planning.planner import plan
from infoprune.pruning.prune import prune

Pass = Callable[[], Any]


def onnx_bytes(model: nn.Module, example: Tensor) -> bytes:
    """The model as an ONNX file, checked against it."""
    with tempfile.TemporaryDirectory() as folder:
        return export(model, example[:2], folder, formats=["onnx"])[0].path.read_bytes()


def session(content: bytes, threads: int) -> onnxruntime.InferenceSession:
    """ONNX Runtime on the CPU with so many threads."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, threads
    # Threads that wait by spinning would take the cores from the network that is timed next.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def timed(passes: Sequence[Pass], seconds: float) -> list[list[float]]:
    """Milliseconds of every pass, taken in turn until the time is up, at least eight rounds."""
    found: list[list[float]] = [[] for _ in passes]
    for one in passes:
        one(), one()
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(found[0]) < 8:
        for one, times in zip(passes, found, strict=True):
            start = time.perf_counter()
            one()
            times.append(1000 * (time.perf_counter() - start))
    return found


def figures(times: list[float], whole: list[float]) -> str:
    """Median, interquartile range, and speed-up over the unpruned network."""
    low, median, high = statistics.quantiles(times, n=4, method="inclusive")
    return f"{median:.2f} ({high - low:.2f}), {statistics.median(whole) / median:.2f}×"


def rows(models: dict[str, nn.Module], images: Tensor, batches: Sequence[int], seconds: float) -> list[str]:
    """One row per network, a column per runtime, number of threads and batch size."""
    files = {name: onnx_bytes(model, images) for name, model in models.items()}
    columns: list[list[list[float]]] = []
    heads: list[str] = []
    with torch.no_grad():
        for threads in (1, 2):
            torch.set_num_threads(threads)
            for batch in batches:
                given = images[torch.arange(batch) % len(images)]
                columns.append(timed([lambda m=m, x=given: m(x) for m in models.values()], seconds))
                sessions = [session(content, threads) for content in files.values()]
                array = given.numpy()
                columns.append(timed([lambda s=s, x=array: s.run(None, {"input": x}) for s in sessions], seconds))
                heads += [
                    f"{runtime}, {threads} thread{'s' * (threads > 1)}, batch {batch}" for runtime in ("torch", "ONNX")
                ]
    whole = count_macs(next(iter(models.values())), images[:1])
    lines = [f"| network | fewer MACs | {' | '.join(heads)} |", "|---|---|" + "---|" * len(heads)]
    for place, (name, model) in enumerate(models.items()):
        fewer = whole / count_macs(model, images[:1])
        cells = " | ".join(figures(column[place], column[0]) for column in columns)
        lines.append(f"| {name} | {fewer:.2f} | {cells} |")
    return lines


def main() -> None:
    """Prints the note."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="resnet56_cifar10")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.67, 0.47, 0.38, 0.25, 0.125])
    parser.add_argument("--round-to", type=int, nargs="+", default=[1, 4, 8, 16], help="at the second of the shares")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 64])
    parser.add_argument("--untrained", action="store_true", help="initial weights in place of the recipe's")
    parser.add_argument("--seconds", type=float, default=8, help="for each cell of all networks")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    opening = header(f"INFOPRUNE_DATA=DATA python -m benchmarks.latency {' '.join(sys.argv[1:])}")
    asked = recipe.read(args.recipe)
    if args.untrained:
        model = {name: value for name, value in asked.table("model").items() if name != "weights"}
        asked = replace(asked, tables={**asked.tables, "model": model})
    with tempfile.TemporaryDirectory() as folder:
        job = open_run(asked, folder)
        images, base, graph = job.calibration[0][0], job.model.eval(), job.graph
    found = analyze(base, [(images[:2], torch.zeros(2, dtype=torch.long))], [L2()])

    def cut(share: float, multiple: int) -> nn.Module:
        how: dict[str, Any] = {"rank_by": "l2", "width_by": [], "allocation": "uniform", "round_to": multiple}
        return prune(base, plan(found, graph, macs=share, **how)).eval()

    lines = [f"# What fewer MACs are worth in milliseconds: {args.recipe}", "", *opening]
    lines += ["Milliseconds for a whole batch: median (interquartile range), speed-up over the unpruned network.", ""]
    shares = {f"{share:.1%} of the MACs": cut(share, 1) for share in args.shares}
    lines += rows({"unpruned": base, **shares}, images, args.batches, args.seconds)
    if len(args.round_to) > 1:
        share = args.shares[min(1, len(args.shares) - 1)]
        lines += ["", f"Widths in multiples of so many channels, {share:.1%} of the MACs at most:", ""]
        multiples, beyond = {}, []
        for multiple in args.round_to:
            try:
                multiples[f"round_to = {multiple}"] = cut(share, multiple)
            except UserError as error:
                beyond += ["", f"round_to = {multiple}: {error}"]
        lines += [*rows({"unpruned": base, **multiples}, images, args.batches, args.seconds), *beyond]
    print("\n".join(lines))
    if args.output:
        args.output.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

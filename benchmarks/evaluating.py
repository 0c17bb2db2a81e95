"""How fast evaluation goes: `evaluate`, which lays maps out with their channels last, against a plain loop.

    python -m benchmarks.evaluating [--threads 1 2] [--output NOTE.md]

Random weights and images; neither matters for time. The two take turns within a round, so that other work on the
machine reaches both, and the median of the rounds counts.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.information.machine import header
from infoprune.evaluation.accuracy import evaluate
from infoprune.models import cifar_resnet, lenet, mobilenet_v2

Loader = list[tuple[Tensor, Tensor]]


def plain_loop(model: nn.Module, batches: Loader) -> None:
    """What a reader would write."""
    hits = 0
    with torch.no_grad():
        for images, labels in batches:
            hits += int((model(images).argmax(1) == labels).sum())


def milliseconds(model: nn.Module, batches: Loader, rounds: int) -> tuple[float, float]:
    """Per image, of the plain loop and of `evaluate`; the first round warms up."""
    count, found = sum(len(labels) for _, labels in batches), []
    for _ in range(rounds + 1):
        for scored in (plain_loop, evaluate):
            start = time.perf_counter()
            scored(model, batches)
            found.append(1000 * (time.perf_counter() - start) / count)
    return statistics.median(found[2::2]), statistics.median(found[3::2])


def main() -> None:
    """Measures and prints, or writes, the note."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    torch.manual_seed(0)
    networks = {
        "LeNet-5, 28x28": (lenet.build(), (512, 1, 28, 28), 128),
        "ResNet-20, 32x32": (cifar_resnet.build(depth=20), (256, 3, 32, 32), 128),
        "ResNet-56, 32x32": (cifar_resnet.build(depth=56), (256, 3, 32, 32), 128),
        "MobileNetV2, 224x224": (mobilenet_v2.build(), (64, 3, 224, 224), 32),
    }
    lines = header(f"python -m benchmarks.evaluating {' '.join(sys.argv[1:])}".strip())
    lines += [
        "| network | threads | plain loop, ms/image | `evaluate`, ms/image | times faster |",
        "|---|---|---|---|---|",
    ]
    for name, (model, shape, size) in networks.items():
        images, labels = torch.randn(shape), torch.zeros(shape[0], dtype=torch.long)
        batches = list(zip(images.split(size), labels.split(size), strict=True))
        for threads in args.threads:
            torch.set_num_threads(threads)
            plain, ours = milliseconds(model.eval(), batches, args.rounds)
            lines.append(f"| {name} | {threads} | {plain:.3f} | {ours:.3f} | {plain / ours:.2f} |")
    text = "\n".join(lines) + "\n"
    print(text)
    if args.output:
        args.output.write_text(f"# Evaluation, batch by batch\n\n{text}", encoding="utf-8")


if __name__ == "__main__":
    main()

"""Scoring every filter of ResNet-50 against its forward pass and against the plain per-filter loop.

    python -m benchmarks.information.resnet50_scoring [--rounds 3] [--output NOTE.md]

Weights are random and batch norm is calibrated; the images are noise with the 1/f amplitude spectrum of natural
ones, which gives feature maps correlated in space and across channels. Time depends on shapes, not on content: the
spectra are always found in full. Forward, scoring and plain loop alternate within one process; medians count.
"""

import argparse
import math
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torchvision
from torch import Tensor, nn

from benchmarks.information.machine import header, peak_memory_gib, reset_peak_memory
from infoprune.information.gram import delta, filter_grams
from infoprune.information.scoring import FilterInformation, filter_information


class Clock:
    """Wall and processor seconds of named work, one total a round."""

    def __init__(self) -> None:
        self.wall: dict[str, list[float]] = {}
        self.cpu: dict[str, list[float]] = {}

    def add(self, name: str, wall: float, cpu: float, *, fresh: bool) -> None:
        for table, value in ((self.wall, wall), (self.cpu, cpu)):
            totals = table.setdefault(name, [])
            if fresh:
                totals.append(0.0)
            totals[-1] += value

    def median(self, name: str) -> tuple[float, float]:
        return statistics.median(self.wall[name]), statistics.median(self.cpu[name])


def timed(work: Callable[[], object]) -> tuple[object, float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    result = work()
    return result, time.perf_counter() - wall, time.process_time() - cpu


def natural_noise(count: int, size: int, seed: int) -> Tensor:
    """Images with a 1/f amplitude spectrum, correlated colours, and their own contrast and tint."""
    generator = torch.Generator().manual_seed(seed)
    frequency = torch.fft.fftfreq(size)
    radius = (frequency[:, None] ** 2 + frequency**2).sqrt()
    radius[0, 0] = 1 / size
    shape = (count, 4, size, size)
    waves = torch.randn(shape, generator=generator, dtype=torch.complex64) / radius
    images = torch.fft.ifft2(waves[:, :1] + 0.3 * waves[:, 1:]).real
    images = images / images.std((1, 2, 3), keepdim=True)
    contrast, tint = torch.rand(count, 1, 1, 1, generator=generator), torch.randn(count, 3, 1, 1, generator=generator)
    return images * (0.5 + contrast) + 0.7 * tint


def plain_loop(maps: Tensor, filters: list[int], input_gram: Tensor, label_gram: Tensor) -> Tensor:
    """I(X; T) and I(T; Y) as published code has it: distances, three Gram matrices, three eigvalsh per filter."""

    def entropy(gram: Tensor) -> Tensor:
        eigenvalues = torch.linalg.eigvalsh(gram / gram.trace()).clamp_min(1e-300)
        return -(eigenvalues * eigenvalues.log2()).sum()

    of_input, of_label, found = entropy(input_gram), entropy(label_gram), []
    for i in filters:
        x = maps[:, i].flatten(1).double()
        n, d = x.shape
        x = (x - x.mean()) / x.std(correction=0)
        norms = x.square().sum(1)
        squared = (norms[:, None] + norms - 2 * x @ x.T).clamp_min(0).fill_diagonal_(0)
        gram = torch.exp(-squared / (2 * d * n ** (-2 / (4 + d))))
        own = entropy(gram)
        found.append(
            torch.stack([own + of_input - entropy(gram * input_gram), own + of_label - entropy(gram * label_gram)])
        )
    return torch.stack(found, 1)


def one_round(
    model: nn.Module, images: Tensor, labels: Tensor, sample: int, clock: Clock
) -> tuple[int, float, dict[str, float]]:
    """Forward alone, then forward with every convolution's output scored; filters, worst difference, peaks."""
    peaks = {}
    reset_peak_memory()
    _, wall, cpu = timed(lambda: model(images))
    clock.add("forward", wall, cpu, fresh=True)
    peaks["forward"] = peak_memory_gib()
    reset_peak_memory()
    input_gram, wall, cpu = timed(lambda: filter_grams(images.flatten(1)[:, None])[0])
    clock.add("scoring", wall, cpu, fresh=True)
    clock.add("plain", wall, cpu, fresh=True)
    label_gram, count, worst = delta(labels), 0, 0.0

    def score(module: nn.Module, inputs: object, maps: Tensor) -> None:
        nonlocal count, worst
        found, wall, cpu = timed(lambda: filter_information(maps, input_gram, labels))
        assert isinstance(found, FilterInformation)
        clock.add("scoring", wall, cpu, fresh=False)
        c = maps.shape[1]
        chosen = torch.linspace(0, c - 1, min(sample, c)).long().tolist()
        # one thread: matrices this small gain nothing from a second, and where cores are shared the loop with two
        # was ten to seventy times slower, which would flatter the ratio
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        plain, wall, cpu = timed(lambda: plain_loop(maps, chosen, input_gram, label_gram))
        torch.set_num_threads(before)
        clock.add("plain", wall * c / len(chosen), cpu * c / len(chosen), fresh=False)
        fast = torch.stack([found.input[chosen], found.label[chosen]])
        count, worst = count + c, max(worst, float((fast - plain).abs().max()))

    handles = [m.register_forward_hook(score) for m in model.modules() if isinstance(m, nn.Conv2d)]
    model(images)
    peaks["scoring"] = peak_memory_gib()
    for handle in handles:
        handle.remove()
    return count, worst, peaks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--sample", type=int, default=8, help="filters a layer on which the plain loop is timed")
    parser.add_argument(
        "--cores", type=int, help="use only this many; processor seconds on one suffer least from others"
    )
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    if options.cores:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.cores])
        torch.set_num_threads(options.cores)
    torch.manual_seed(0)
    command = "python -m benchmarks.information.resnet50_scoring " + " ".join(
        [
            f"--rounds {options.rounds} --classes {options.classes}",
            *(["--channels-last"] if options.channels_last else []),
            *([f"--cores {options.cores}"] if options.cores else []),
        ]
    )
    lines = header(command)
    images = natural_noise(options.batch, options.size, seed=0)
    labels = torch.randint(options.classes, (options.batch,))
    model = torchvision.models.resnet50(weights=None)
    if options.channels_last:
        model, images = (
            model.to(memory_format=torch.channels_last),
            images.contiguous(memory_format=torch.channels_last),
        )
    with torch.inference_mode():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = None
        model.train()(images[:32])
        model.eval()
        clock, results = Clock(), []
        for _ in range(options.rounds):
            results.append(one_round(model, images, labels, options.sample, clock))
            print({name: clock.wall[name][-1] for name in clock.wall}, results[-1], flush=True)
    filters, worst = results[0][0], max(r[1] for r in results)
    forward, scoring, plain = clock.median("forward"), clock.median("scoring"), clock.median("plain")
    extra = statistics.median(r[2]["scoring"] - r[2]["forward"] for r in results)
    layout = "channels-last" if options.channels_last else "default"
    lines += [
        f"{filters:,} filters of 53 convolutions, n = {options.batch}, {options.size}², α = 1, "
        f"{options.classes} classes, {layout} layout, {options.rounds} rounds.",
        "",
        "| | wall s (median) | processor s (median) |",
        "|---|---|---|",
        f"| forward pass | {forward[0]:.1f} | {forward[1]:.1f} |",
        f"| scoring all filters, I(X;T) and I(T;Y) | {scoring[0]:.1f} | {scoring[1]:.1f} |",
        f"| plain loop on one thread ({options.sample} filters a layer, scaled up) | {plain[0]:.1f} | {plain[1]:.1f} |",
        f"| **scoring / forward** | **{scoring[0] / forward[0]:.2f}** | {scoring[1] / forward[1]:.2f} |",
        f"| **plain / scoring** | **{plain[0] / scoring[0]:.1f}** | {plain[1] / scoring[1]:.1f} |",
        "",
        f"Largest difference from the plain loop: {worst:.1e} bit. "
        f"Peak resident memory above the forward pass alone: {extra:.2f} GiB "
        f"(forward {results[0][2]['forward']:.2f} GiB). Each round, wall s: "
        + "; ".join(
            ", ".join(f"{name} {clock.wall[name][i]:.1f}" for name in clock.wall) for i in range(options.rounds)
        )
        + ".",
    ]
    text = "\n".join(lines)
    print(text)
    if options.output:
        options.output.write_text(text + "\n")
    assert math.isfinite(worst)


if __name__ == "__main__":
    main()

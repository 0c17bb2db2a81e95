"""Information-bottleneck values and CMI-permutation on 512 filters of VGG-16's conv5-3, CIFAR-10 (Figs. 6b, 9).

    INFOPRUNE_DATA=DATA python -m benchmarks.papers.ib_distribution [--output benchmarks/results/papers]

A small training, for one thread: all convolutions but conv5-3 have a quarter of the published filters, and a part of
the training images is used. On a GPU, the recipe vgg16_cifar10 trains the network of the paper.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.papers.common import Report, accuracy, calibration, found_in, mean_and_spread, panels, stages
from infoprune.analyses.cmi_permutation import CmiPermutation
from infoprune.analyses.information_bottleneck import InformationBottleneck
from infoprune.information.selection import Selection
from infoprune.io.checkpoint import load_data
from infoprune.models import vgg

WIDTHS = [16, 16, 32, 32, 64, 64, 64, 128, 128, 128, 128, 128, 512]
LAYERS = ("conv5_3", "relu5_3")
PRESETS = ("paper", "corrected")
BETA = 2.0
Values = dict[tuple[str, str, str], list[Tensor]]
"""Stage, layer, preset -> IB value of every filter, by seed."""
Selections = dict[tuple[str, str], list[Selection]]
"""Layer, preset -> selections of all seeds and mini-batches."""


def main() -> None:
    options: dict[str, Any] = {"images": 6_000, "epochs": 4, "batches": 4, "selections": 2, "permutations": 100}
    report = Report(__doc__ or "", "ib_distribution", seeds=2, **options)
    given, data = report.options, load_data("cifar10")
    values, selections, scores = Values(), Selections(), dict[str, list[float]]()
    for seed in report.seeds:
        models = stages(
            partial(vgg.build, widths=WIDTHS),
            data,
            images=given.images,
            epochs=given.epochs,
            learning_rate=0.02,
            seed=seed,
        )
        batches = calibration(data, max(given.batches, given.selections), seed)
        for stage in ("initial", "end"):
            scores.setdefault(stage, []).append(accuracy(models[stage], data))
            analyses = [InformationBottleneck(preset=preset, beta=BETA) for preset in PRESETS]
            for preset, finding in zip(
                PRESETS, found_in(models[stage], batches[: given.batches], LAYERS, *analyses), strict=True
            ):
                for layer in LAYERS:
                    values.setdefault((stage, layer, preset), []).append(-finding.importance[layer])
        for preset in PRESETS:
            analysis = CmiPermutation(
                preset=preset, permutations=given.permutations, batches=given.selections, seed=seed, max_filters=64
            )
            found_in(models["end"], batches[: given.selections], LAYERS, analysis)
            for layer in LAYERS:
                selections.setdefault((layer, preset), []).extend(analysis.selections(layer))
    tell(report, values, selections, scores)


def tell(report: Report, values: Values, selections: Selections, scores: dict[str, list[float]]) -> None:
    """The note."""
    given = report.options
    report.say(
        f"VGG-16 with batch norm, filters {WIDTHS}, {given.images} training images, {given.epochs} epochs, "
        f"{given.seeds} seeds; test accuracy {mean_and_spread(scores['end'], 1)} %. IB = I(X;T) − {BETA:g}·I(T;Y), "
        f"mean over {given.batches} mini-batches of 128 validation images. Published: nearly 55 % of the filters above "
        "a line that the paper draws without saying where; here it is the middle between the least and the greatest "
        "value. conv5-3 is looked at before its norm, and behind its ReLU.",
    )
    columns = ["stage", "maps", "preset", "above the middle, % (published: 55)", "above the mean, %"]
    report.table([*columns, "least, median, greatest IB, bits", "filters with equal values"], shares(values))
    report.say(
        f"CMI-permutation at the end, {given.selections} mini-batches per seed, P = {given.permutations}, significance "
        "0.05, at most 64 filters. Published: **21 of 512**.",
    )
    report.table(["maps", "preset", "filters selected", "ended by"], widths(selections))
    report.close(picture(values))


def shares(values: Values) -> Iterator[list[str]]:
    """One row per stage, layer and preset."""
    for (stage, layer, preset), runs in values.items():
        middle = [100 * float((v > (v.max() + v.min()) / 2).double().mean()) for v in runs]
        mean = [100 * float((v > v.mean()).double().mean()) for v in runs]
        every = torch.cat(runs)
        ends = f"{every.min():.2f}, {every.median():.2f}, {every.max():.2f}"
        ties = sum(len(run) - len(run.mul(1e6).round().unique()) for run in runs) // len(runs)
        yield [stage, layer, preset, mean_and_spread(middle, 1), mean_and_spread(mean, 1), ends, str(ties)]


def widths(selections: Selections) -> Iterator[list[str]]:
    """One row per layer and preset."""
    for (layer, preset), found in selections.items():
        counts = [float(selection.width) for selection in found]
        yield [layer, preset, mean_and_spread(counts, 1), ", ".join(selection.stop for selection in found)]


def picture(values: Values):  # type: ignore[no-untyped-def]
    """Fig. 9: histograms of the IB values, trained and not, with the middle as a dashed line."""
    figure, axes = panels(len(PRESETS), len(LAYERS), figsize=(7, 4.4))
    for row, preset in enumerate(PRESETS):
        for column, layer in enumerate(LAYERS):
            panel = axes[row][column]
            for stage, color in (("initial", "0.6"), ("end", "C0")):
                found = values[stage, layer, preset][0]
                panel.stairs(*found.float().histogram(40), color=color, fill=stage == "end", alpha=0.7, label=stage)
            panel.axvline(float(found.max() + found.min()) / 2, c="C3", ls="--", lw=0.8)
            panel.set_title(f"{layer}, {preset}")
    for panel in axes[-1]:
        panel.set_xlabel("IB, bits")
    axes[0][0].set_ylabel("filters")
    axes[0][0].legend()
    return figure


if __name__ == "__main__":
    main()

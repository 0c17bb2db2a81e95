"""The information plane and the modified plane over the steps of a training, sigmoid and ReLU (Figs. 7, 13).

    INFOPRUNE_DATA=DATA python -m benchmarks.papers.plane [--output benchmarks/results/papers]
    INFOPRUNE_DATA=DATA python -m benchmarks.papers.plane --data fruits360 --activations relu --name plane_fruits360 […]

Points are collected while the networks are trained, behind each activation, on mini-batches of 128 validation images.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.papers.common import (
    FAMILIES,
    Report,
    accuracy,
    calibration,
    found_in,
    load,
    mean_and_spread,
    panels,
    training_batches,
)
from infoprune.analyses.base import Finding
from infoprune.analyses.information_plane import InformationPlane, trajectories
from infoprune.training.finetune import finetune

WIDTHS = {"mnist": [6, 32], "fashion_mnist": [6, 32], "fruits360": [16, 32, 64, 128]}
RATES = {"mnist": 0.02, "fashion_mnist": 0.02, "fruits360": 0.01}
SIGMOID_RATE = 0.1
PRESETS = ("paper", "corrected")
PLANES = {False: "plane", True: "modified"}
POINTS = 14
Paths = dict[tuple[str, str, str, bool], dict[str, list[Tensor]]]
"""Data set, activation, preset, whether modified -> layer -> one path per seed, `points x 3`."""


def main() -> None:
    options: dict[str, Any] = {"data": ["mnist", "fashion_mnist"], "activations": ["sigmoid", "relu"]}
    report = Report(__doc__ or "", "plane", **options, images=8_000, epochs=8, batches=2)
    given = report.options
    report.say(
        f"Published widths, at most {given.images} training images, {given.epochs} epochs (published: all, 10 or 15), "
        f"{given.seeds} seeds, {given.batches} mini-batches of 128 validation images, {POINTS} points in the logarithm "
        "of the step. A coordinate is given at the start, at its largest, and at the end; the fall is from the largest "
        "to the end, mean ± deviation over seeds, and is the paper's compression. Published: no fall in the plane, an "
        "evident one in the modified plane, more for sigmoid than for ReLU."
    )
    paths, scores = Paths(), dict[tuple[str, str], list[float]]()
    for name in given.data:
        for activation in given.activations:
            collect(name, activation, report, paths, scores)
    columns = ["data", "activation", "accuracy", "preset", "plane", "layer", "about X, bits", "fall", "about Y, bits"]
    report.table([*columns, "fall"], rows(paths, scores))
    report.close(picture(paths, given.data, given.activations))


def collect(
    name: str, activation: str, report: Report, paths: Paths, scores: dict[tuple[str, str], list[float]]
) -> None:
    """Trains one network per seed and keeps its paths."""
    given, data = report.options, load(name)
    for seed in report.seeds:
        torch.manual_seed(seed)
        model = FAMILIES[name](widths=WIDTHS[name], activation=activation, classes=data.classes)
        layers = [layer for layer, module in model.named_modules() if isinstance(module, nn.ReLU | nn.Sigmoid)]
        batches, few = training_batches(data, given.images, seed), calibration(data, given.batches, seed)
        last = given.epochs * len(batches)
        wanted = {0, *(round(last ** (point / (POINTS - 2))) for point in range(POINTS - 1))}
        found: dict[str, dict[int, Finding]] = {preset: {} for preset in PRESETS}

        def look(step: int, _: int = 0) -> None:
            if step in wanted:  # noqa: B023  (called within this round of the loop)
                analyses = [InformationPlane(preset=preset, permutations=0, seed=seed) for preset in PRESETS]  # noqa: B023
                for preset, finding in zip(PRESETS, found_in(model, few, layers, *analyses), strict=True):  # noqa: B023
                    found[preset][step] = finding  # noqa: B023

        look(0)
        rate = SIGMOID_RATE if activation == "sigmoid" else RATES[name]
        options: dict[str, Any] = {"learning_rate": rate, "momentum": 0.95, "weight_decay": 0.0}
        finetune(model, batches, on_step=look, epochs=given.epochs, seed=seed, **options)
        scores.setdefault((name, activation), []).append(accuracy(model, data))
        for preset, steps in found.items():
            for modified in PLANES:
                kept = paths.setdefault((name, activation, preset, modified), {})
                for layer, path in trajectories(steps, modified=modified).items():
                    kept.setdefault(layer, []).append(path)


def rows(paths: Paths, scores: dict[tuple[str, str], list[float]]) -> Iterator[list[str]]:
    """One row per network, preset, plane and layer."""
    for (name, activation, preset, modified), layers in paths.items():
        for layer, runs in layers.items():
            cells = []
            for axis in (1, 2):
                start, most, end = (
                    torch.stack([pick(run[:, axis]) for run in runs]) for pick in (first, torch.amax, final)
                )
                cells.append(f"{start.mean():.2f} → {most.mean():.2f} → {end.mean():.2f}")
                cells.append(mean_and_spread((most - end).tolist()))
            score = mean_and_spread(scores[name, activation], 1)
            yield [name, activation, score, preset, PLANES[modified], layer, *cells]


def first(values: Tensor) -> Tensor:
    """Before training."""
    return values[0]


def final(values: Tensor) -> Tensor:
    """At the end of training."""
    return values[-1]


def picture(paths: Paths, names: list[str], activations: list[str]):  # type: ignore[no-untyped-def]
    """Planes of the first seed; colour is the logarithm of the step, as in Fig. 7."""
    columns = [(preset, modified) for preset in PRESETS for modified in PLANES]
    lines = [(name, activation) for name in names for activation in activations]
    figure, axes = panels(len(lines), len(columns), figsize=(2.6 * len(columns), 2 * len(lines)))
    for row, (name, activation) in enumerate(lines):
        for column, (preset, modified) in enumerate(columns):
            panel = axes[row][column]
            for layer, runs in paths[name, activation, preset, modified].items():
                step, x, y = runs[0].unbind(1)
                panel.plot(x, y, "-", c="0.7", lw=0.6, zorder=1)
                panel.scatter(x, y, c=(step + 1).log(), s=6, cmap="viridis", zorder=2)
                panel.annotate(layer, (float(x[-1]), float(y[-1])), fontsize=6)
            panel.set_title(f"{name}, {activation}, {preset}, {PLANES[modified]}", fontsize=6)
    for panel in axes[-1]:
        panel.set_xlabel("about X, bits")
    for panel in axes[:, 0]:
        panel.set_ylabel("about Y, bits")
    return figure


if __name__ == "__main__":
    main()

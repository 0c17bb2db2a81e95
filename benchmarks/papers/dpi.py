"""The forward and the backward data-processing inequality before, during and after training (Fig. 2).

    INFOPRUNE_DATA=DATA python -m benchmarks.papers.dpi [--output benchmarks/results/papers]

LeNet-5 on MNIST and Fashion-MNIST, a small AlexNet on Fruits-360, at initialisation, after one epoch and at the end;
I(X;T) from layer to layer and I(δK;δ) back, by the paper's preset and by the corrected default.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

from torch import nn

from benchmarks.papers.common import (
    FAMILIES,
    SEVERAL,
    Report,
    accuracy,
    calibration,
    load,
    mean_and_spread,
    panels,
    stages,
)
from infoprune.analyses.base import Finding
from infoprune.analyses.data_processing import DataProcessing
from infoprune.analyses.runner import analyze

WIDTHS = {"mnist": [6, 12], "fashion_mnist": [6, 12], "fruits360": [16, 32, 64, 128]}
RATES = {"mnist": 0.02, "fashion_mnist": 0.02, "fruits360": 0.01}
PRESETS = ("paper", "corrected")
CHAINS = {"forward": "I(X;T)", "backward": "I(δK;δ)"}
Found = dict[tuple[str, str, str], list[Finding]]
"""Data set, stage, preset -> findings by seed."""


def main() -> None:
    options: dict[str, Any] = {"data": list(SEVERAL), "images": 10_000, "epochs": 4, "fruit_epochs": 5, "batches": 4}
    report = Report(__doc__ or "", "dpi", **options)
    given = report.options
    report.say(
        f"Published widths ({'; '.join('-'.join(map(str, w)) for w in WIDTHS.values())}), ReLU, at most {given.images} "
        f"training images, {given.epochs} epochs ({given.fruit_epochs} on Fruits-360; published: all, 10 and 15), "
        f"{given.seeds} seeds, {given.batches} mini-batches of 128 validation images. A step violates an inequality "
        "where the whole 95 % interval of its drop over the mini-batches is below 0; shares of all steps of all seeds. "
        "A layer is saturated where S(X,T) comes within 0.05 bit of log2 n: its I(X;T) means nothing. Published: both "
        'hold "in most of the cases", with "a few disruptions" in the backward chain.'
    )
    found, scores = Found(), dict[tuple[str, str], list[float]]()
    for name in given.data:
        collect(name, report, found, scores)
    columns = ["data", "stage", "accuracy", "preset", "forward violated", "backward violated", "saturated layers"]
    report.table([*columns, "I(X;T), first to last, bits", "I(δK;δ), first to last, bits"], rows(found, scores))
    report.close(picture(found, given.data))


def collect(name: str, report: Report, found: Found, scores: dict[tuple[str, str], list[float]]) -> None:
    """Trains one network per seed and looks at its stages."""
    given, data = report.options, load(name)
    for seed in report.seeds:
        models = stages(
            partial(FAMILIES[name], widths=WIDTHS[name], classes=data.classes),
            data,
            images=given.images,
            epochs=given.fruit_epochs if name == "fruits360" else given.epochs,
            learning_rate=RATES[name],
            seed=seed,
        )
        batches = calibration(data, given.batches, seed)
        for stage, model in models.items():
            scores.setdefault((name, stage), []).append(accuracy(model, data))
            analyses = [DataProcessing(preset=preset, permutations=0, seed=seed) for preset in PRESETS]
            for analysis in analyses:  # activations only serve the search for removable blocks
                analysis.observes = (nn.Conv2d, nn.Linear)
            for preset, finding in zip(PRESETS, analyze(model, batches, analyses), strict=True):
                found.setdefault((name, stage, preset), []).append(finding)


def rows(found: Found, scores: dict[tuple[str, str], list[float]]) -> Iterator[list[str]]:
    """One row per data set, stage and preset."""
    for (name, stage, preset), findings in found.items():
        steps = [
            [float(m[f"{chain} violated"].value) for f in findings for m in f.measures.values() if f"{chain} drop" in m]
            for chain in CHAINS
        ]
        yield [
            name,
            stage,
            mean_and_spread(scores[name, stage], 1),
            preset,
            *(f"{sum(violated):.0f} of {len(violated)}" for violated in steps),
            f"{sum(len(f.flags) for f in findings)} of {sum(len(f.measures) for f in findings)}",
            *(" ".join(f"{value:.2f}" for value in chain(findings, term)) for term in CHAINS.values()),
        ]


def chain(findings: list[Finding], term: str) -> list[float]:
    """Mean over seeds, layer by layer."""
    layers = findings[0].measures
    return [sum(float(finding.measures[layer][term].value) for finding in findings) / len(findings) for layer in layers]


def picture(found: Found, names: list[str]):  # type: ignore[no-untyped-def]
    """A row per data set, a column per stage, as Fig. 2: blue forward, green backward; means over seeds."""
    moments = list(dict.fromkeys(stage for _, stage, _ in found))
    figure, axes = panels(len(names), len(moments), figsize=(8, 1.9 * len(names)), sharey=True)
    for row, name in enumerate(names):
        for column, stage in enumerate(moments):
            panel = axes[row][column]
            for preset, style in (("paper", "o-"), ("corrected", "s--")):
                findings = found[name, stage, preset]
                for kind, term, color in zip(CHAINS, CHAINS.values(), ("C0", "C2"), strict=True):
                    panel.plot(
                        list(findings[0].measures),
                        chain(findings, term),
                        style,
                        c=color,
                        ms=3,
                        label=f"{kind}, {preset}",
                    )
            panel.set_title(f"{name}, {stage}")
        axes[row][0].set_ylabel("bits")
    axes[0][0].legend()
    return figure


if __name__ == "__main__":
    main()

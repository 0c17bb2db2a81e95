"""CMI-permutation on LeNet-5's second convolution with 128 filters (Fig. 6a): published 5.

    INFOPRUNE_DATA=DATA python -m benchmarks.papers.cmi [--output benchmarks/results/papers]

One LeNet-5 per seed is trained on part of MNIST; the selection then runs on mini-batches of 128 validation images.
"""

from collections import Counter
from collections.abc import Iterator
from functools import partial
from typing import Any

from benchmarks.papers.common import Report, accuracy, calibration, found_in, load, mean_and_spread, panels, stages
from infoprune.analyses.cmi_permutation import CmiPermutation
from infoprune.data.dataset import Data
from infoprune.information.selection import Selection
from infoprune.models import lenet

WIDTHS = [6, 128]
LAYERS = {"before": "conv2", "behind": "act2"}
"""Where the maps of the 128 filters are looked at: before or behind the activation."""
PRESETS = ("paper", "corrected")
RATES = {"relu": 0.02, "sigmoid": 0.1}
"""The published rate, 0.1, makes ReLUs diverge."""


Found = dict[tuple[str, str], list[Selection]]
"""Place of the maps, preset -> selections of all seeds and mini-batches."""


def main() -> None:
    options: dict[str, Any] = {"activations": ["relu", "sigmoid"], "images": 20_000, "epochs": 5, "batches": 3}
    report = Report(__doc__ or "", "cmi", **options, permutations=100)
    given, data = report.options, load("mnist")
    report.say(
        f"LeNet-5 with {WIDTHS[0]} and {WIDTHS[1]} filters, {given.images} training images, {given.epochs} epochs "
        f"(published: 60,000 and 10), {given.seeds} seeds, {given.batches} mini-batches of 128 validation images each, "
        f"P = {given.permutations}, significance 0.05. Published width: **5 of 128**. Accuracy is of the test split.",
    )
    columns = ["activation", "maps", "preset", "accuracy", "filters selected", "range", "ended by"]
    columns += ["log2 n − S(Ts) at the end, bit", "width concluded, by seed"]
    every: dict[str, Found] = {}

    def rows() -> Iterator[list[str]]:
        for activation in given.activations:
            found, concluded, scores = selections(report, data, activation)
            every[activation] = found
            for (place, preset), those in found.items():
                last = [selection.steps[-1].margin for selection in those]
                yield [
                    activation,
                    place,
                    preset,
                    mean_and_spread(scores),
                    mean_and_spread([float(selection.width) for selection in those], 1),
                    f"{min(s.width for s in those)}–{max(s.width for s in those)}",
                    ", ".join(f"{count} {stop}" for stop, count in Counter(s.stop for s in those).items()),
                    f"{sum(last) / len(last):.3f}",
                    ", ".join(concluded[place, preset]),
                ]

    report.table(columns, rows())
    report.close(picture(every))


def selections(
    report: Report, data: Data, activation: str
) -> tuple[Found, dict[tuple[str, str], list[str]], list[float]]:
    """Selections, the widths that the analysis concludes from them, and test accuracies."""
    given, found, concluded, scores = report.options, Found(), dict[tuple[str, str], list[str]](), list[float]()
    for seed in report.seeds:
        model = stages(
            partial(lenet.build, widths=WIDTHS, activation=activation),
            data,
            images=given.images,
            epochs=given.epochs,
            learning_rate=RATES[activation],
            seed=seed,
        )["end"]
        scores.append(accuracy(model, data))
        batches = calibration(data, given.batches, seed)
        for place, layer in LAYERS.items():
            for preset in PRESETS:
                analysis = CmiPermutation(
                    preset=preset, permutations=given.permutations, batches=given.batches, seed=seed
                )
                finding = found_in(model, batches, [layer], analysis)[0]
                found.setdefault((place, preset), []).extend(analysis.selections(layer))
                concluded.setdefault((place, preset), []).append(str(finding.widths.get(layer, "none")))
    return found, concluded, scores


def picture(every: dict[str, Found]):  # type: ignore[no-untyped-def]
    """Fig. 6: the statistic of each tested filter and its chance band, first seed and mini-batch."""
    figure, axes = panels(2, len(every), figsize=(3.4 * len(every), 4.2))
    for column, (activation, found) in enumerate(every.items()):
        for row, preset in enumerate(PRESETS):
            panel, selection = axes[row][column], found["behind", preset][0]
            steps = selection.steps
            place = range(1, len(steps) + 1)
            low, high = [step.permuted_low for step in steps], [step.permuted_high for step in steps]
            panel.fill_between(place, low, high, alpha=0.3, label="t permuted")
            panel.plot(place, [s.conditional for s in steps], "o-", ms=2.5, lw=0.8, label="I({Tr − t}; Y | {Ts, t})")
            panel.set_title(f"{activation}, {preset}: {selection.width} of {WIDTHS[1]}")
            panel.set_xlabel("filters tested" if row else "")
            panel.set_ylabel("" if column else "bits")
    axes[0][0].legend()
    return figure


if __name__ == "__main__":
    main()

"""Multivariate information, its saturation, redundancy and synergy against width (Figs. 4, 5, 11, 12).

    INFOPRUNE_DATA=DATA python -m benchmarks.papers.mmi --data mnist fashion_mnist [--output benchmarks/results/papers]
    INFOPRUNE_DATA=DATA python -m benchmarks.papers.mmi --data fruits360 --name mmi_fruits360 […]

One network per width and seed is trained on part of the data; the measures are of the layer whose width changes,
behind its activation, on mini-batches of 128 validation images, by the paper's preset and by the corrected default.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

from benchmarks.papers.common import (
    FAMILIES,
    Report,
    accuracy,
    calibration,
    found_in,
    load,
    mean_and_spread,
    panels,
    stages,
)
from infoprune.analyses.redundancy import Redundancy

LENET = [("act1", [width, 12]) for width in (2, 6, 12, 32)] + [("act2", [6, width]) for width in (2, 6, 12, 64)]
ALEXNET = [
    (layer, widths)
    for widths in ([3, 6, 8, 16], [6, 12, 16, 32], [16, 32, 64, 128])
    for layer in ("act1", "act2", "act3")
]
TOPOLOGIES = {"mnist": LENET, "fashion_mnist": LENET, "fruits360": ALEXNET}
RATES = {"mnist": 0.02, "fashion_mnist": 0.02, "fruits360": 0.01}
PRESETS = ("paper", "corrected")
FIGURES = ("H(X)", "MMI", "trade-off share", "non-redundant share")
Found = dict[tuple[str, str, int, str], dict[str, list[float]]]
"""Data set, layer, width, preset -> figures by seed."""


def main() -> None:
    options: dict[str, Any] = {"data": ["mnist", "fashion_mnist"], "images": 8_000, "epochs": 2, "batches": 3}
    report = Report(__doc__ or "", "mmi", **options)
    given = report.options
    found: Found = {}
    report.say(
        f"At most {given.images} training images, {given.epochs} epochs (published: all, and 10 or 15), "
        f"{given.seeds} seeds, {given.batches} mini-batches of 128 validation images. Shares are of I(X; {{Ti, Tj}}). "
        "Published: H(X) = 4.7281 bits on Fruits-360 (at 100x100), reached by MMI with 6, 12 and 16 filters; the "
        "trade-off share is positive and falls with width, the non-redundant share rises."
    )
    columns = ["data", "filters", "accuracy", "layer", "preset", "H(X), bits", "MMI, bits", "MMI / H(X)"]
    columns += ["trade-off share, %", "non-redundant share, %", "saturated"]
    report.table(columns, (row for name in given.data for row in rows(name, report, found)))
    report.close(picture(found, given.data))


def rows(name: str, report: Report, found: Found) -> Iterator[list[str]]:
    """One row per topology, layer and preset."""
    given, data = report.options, load(name)
    topologies: dict[tuple[int, ...], list[str]] = {}
    for layer, widths in TOPOLOGIES[name]:
        topologies.setdefault(tuple(widths), []).append(layer)
    for widths, layers in topologies.items():
        scores, flagged = [], {}
        for seed in report.seeds:
            model = stages(
                partial(FAMILIES[name], widths=list(widths), classes=data.classes),
                data,
                images=given.images,
                epochs=given.epochs,
                learning_rate=RATES[name],
                seed=seed,
            )["end"]
            scores.append(accuracy(model, data))
            analyses = [Redundancy(preset=preset, permutations=0, seed=seed) for preset in PRESETS]
            findings = found_in(model, calibration(data, given.batches, seed), layers, *analyses)
            for preset, finding in zip(PRESETS, findings, strict=True):
                flags = {flag.layer for flag in finding.flags}
                for layer in layers:
                    key = name, layer, widths[int(layer[-1]) - 1], preset
                    flagged[layer, preset] = flagged.get((layer, preset), 0) + (layer in flags)
                    for figure in FIGURES:
                        value = float(finding.measures[layer][figure].value)
                        found.setdefault(key, {}).setdefault(figure, []).append(value)
        for layer in layers:
            for preset in PRESETS:
                figures = found[name, layer, widths[int(layer[-1]) - 1], preset]
                entropy, mmi, shared, own = (figures[figure][-given.seeds :] for figure in FIGURES)
                yield [
                    name,
                    "-".join(map(str, widths)),
                    mean_and_spread(scores, 1),
                    layer,
                    preset,
                    mean_and_spread(entropy, 3),
                    mean_and_spread(mmi, 3),
                    f"{sum(mmi) / sum(entropy):.3f}",
                    mean_and_spread([100 * share for share in shared], 1),
                    mean_and_spread([100 * share for share in own], 1),
                    f"{flagged[layer, preset]} of {given.seeds}",
                ]


def picture(found: Found, names: list[str]):  # type: ignore[no-untyped-def]
    """Share of H(X) above, trade-off and non-redundant shares below, against width; means over seeds."""
    figure, axes = panels(2, 2 * len(names), figsize=(5.2 * len(names), 4.4), sharex=True, sharey="row")
    for number, name in enumerate(names):
        for place, preset in enumerate(PRESETS):
            above, below = axes[0][2 * number + place], axes[1][2 * number + place]
            layers = sorted({layer for data, layer, _, _ in found if data == name})
            for number_of, layer in enumerate(layers):
                color = f"C{number_of}"
                widths = sorted(w for d, la, w, p in found if (d, la, p) == (name, layer, preset))
                means = [
                    [sum(values) / len(values) for values in (found[name, layer, width, preset][f] for f in FIGURES)]
                    for width in widths
                ]
                above.plot(widths, [mmi / entropy for entropy, mmi, _, _ in means], "o-", c=color, ms=3)
                below.plot(widths, [row[2] for row in means], "o-", c=color, ms=3, label=f"{layer} trade-off")
                below.plot(widths, [row[3] for row in means], "s--", c=color, ms=3, label=f"{layer} non-redundant")
            above.set_title(f"{name}, {preset}")
            below.set_xlabel("filters")
            below.set_xscale("log", base=2)
    axes[0][0].set_ylabel("MMI / H(X)")
    axes[1][0].set_ylabel("share of I(X; {Ti, Tj})")
    axes[1][0].legend()
    return figure


if __name__ == "__main__":
    main()

"""CMI-permutation on a layer of 512 filters until 21 are selected, and its cost against C, P and n.

    python -m benchmarks.information.cmi_permutation [--output NOTE.md] [--plot PLOT.svg]

The layer is synthetic: every filter sees the class through its own noise (14×14 maps, ten classes), so that no early
stop shortens the run; ``max_filters`` ends it at 21, the published width of VGG-16 conv5-3.
"""

import argparse
import time
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.information.machine import header
from infoprune.information.gram import filter_exponents
from infoprune.information.permutation import cmi_permutation
from infoprune.information.selection import Selection


def layer(filters: int, samples: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Exponents of filters that all see the class, and the classes."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(10, (samples,), generator=generator)
    templates = torch.randn(10, filters, 196, generator=generator)
    maps = templates[labels] + 3 * torch.randn(samples, filters, 196, generator=generator)
    return filter_exponents(maps), labels


def timed(filters: int, permutations: int, samples: int, width: int, variant: str) -> tuple[Selection, float, float]:
    """The selection, wall seconds and processor seconds."""
    exponents, labels = layer(filters, samples)
    generator = torch.Generator().manual_seed(0)
    wall, cpu = time.perf_counter(), time.process_time()
    found = cmi_permutation(
        exponents, labels, permutations=permutations, max_filters=width, variant=variant, generator=generator
    )
    return found, time.perf_counter() - wall, time.process_time() - cpu


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=21)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    lines = header(f"python -m benchmarks.information.cmi_permutation --width {options.width}")
    runs = [timed(512, 100, 128, options.width, "corrected") for _ in range(options.repeats)]
    middle = sorted(run[1] for run in runs)[options.repeats // 2]
    lines += [
        f"512 filters, P = 100, n = 128, ten classes, corrected variant, until {runs[0][0].width} filters are selected "
        f"(stop: {runs[0][0].stop}): **{middle:.1f} s** wall (median of {options.repeats}: "
        + ", ".join(f"{run[1]:.1f}" for run in runs)
        + " s; processor "
        + ", ".join(f"{run[2]:.1f}" for run in runs)
        + " s).",
        "",
        "Cost of selecting 5 filters, one run each, wall and processor seconds:",
        "",
        "| C | P | n | wall s | processor s |",
        "|---|---|---|---|---|",
    ]
    print(lines[-7:], flush=True)
    series: dict[str, list[tuple[int, float]]] = {"C": [], "P": [], "n": []}
    for name, values in (("C", (64, 128, 256, 512)), ("P", (25, 50, 100, 200)), ("n", (64, 128, 256))):
        for value in values:
            case = {"C": 128, "P": 100, "n": 128} | {name: value}
            _, wall, cpu = timed(case["C"], case["P"], case["n"], 5, "corrected")
            series[name].append((value, cpu))
            lines.append(f"| {case['C']} | {case['P']} | {case['n']} | {wall:.2f} | {cpu:.2f} |")
            print(lines[-1], flush=True)
    lines += [
        "",
        "A round costs C − |T_s| candidates and 2P permuted sets, each one n × n entropy and its label blocks: linear "
        "in C and in P, cubic in n. The plot draws processor seconds, which a shared machine disturbs least.",
    ]
    if options.output:
        options.output.write_text("\n".join(lines) + "\n")
    if options.plot:
        draw(series, options.plot)


def draw(series: dict[str, list[tuple[int, float]]], path: Path) -> None:
    """One panel a parameter, both axes logarithmic."""
    import matplotlib as mpl
    import matplotlib.pyplot as plt

    mpl.rcParams["svg.hashsalt"] = "infoprune"
    figure, panels = plt.subplots(1, 3, figsize=(9, 3), sharey=True, layout="constrained")
    meaning = {"C": "filters C", "P": "permutations P", "n": "samples n"}
    for panel, (name, points) in zip(panels, series.items(), strict=True):
        panel.loglog(*zip(*points, strict=True), "o-", base=2)
        panel.set_xlabel(meaning[name])
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("processor s, 5 filters")
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    main()

"""The information scaling law and its bounds over random arithmetic circuits (Theorems 3 to 5).

    python -m benchmarks.papers.convac [--circuits 200] [--output benchmarks/results/papers]

Entropies are exact, by enumeration of all states. Deep circuits are the paper's HT model, shallow ones its CP model.
"""

import math
from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor

from benchmarks.papers.common import Report, panels
from infoprune.information.convac import ScalingLaw, entropy_bits, hierarchical, shallow

SHARPNESS = 2.0
"""Of the softmax over normal logits that draws a row of probabilities."""
Law = tuple[int, ScalingLaw]
"""Number of leaves, and what the theorems speak about."""


def row(outputs: int, inputs: int) -> Tensor:
    """Random row-stochastic matrix."""
    return torch.softmax(SHARPNESS * torch.randn(outputs, inputs, dtype=torch.float64), 1)


def deep(levels: int) -> Law:
    """A random HT circuit of binary leaves with widths up to 3."""
    widths = torch.randint(2, 4, (levels + 1,)).tolist()
    mixing = [row(after, before) for before, after in pairwise(widths)]
    return 2**levels, hierarchical(row(widths[0], 2), mixing, row(1, widths[-1])[0])


def flat(leaves: int) -> Law:
    """A random CP circuit of binary leaves with widths up to 3."""
    inner, outer = torch.randint(2, 4, (2,)).tolist()
    return leaves, shallow(row(inner, 2), [row(outer, inner) for _ in range(leaves)], row(1, outer)[0])


def main() -> None:
    report = Report(__doc__ or "", "convac", seeds=0, circuits=200)
    count = report.options.circuits
    torch.manual_seed(0)
    groups = {f"HT, {2**levels} leaves": [deep(levels) for _ in range(count)] for levels in (1, 2, 3)}
    groups |= {f"CP, {leaves} leaves": [flat(leaves) for _ in range(count)] for leaves in (2, 4, 8)}
    report.say(
        f"{count} random circuits of each kind, binary leaves, widths 2 and 3; rows of probabilities are softmaxes "
        f"of {SHARPNESS:g} times normal numbers. The gain is H(X) − Σ H(x_i | d), in bits; shares are means. "
        "C is each circuit's largest gain, β its largest ratio; the bound is mappings · C.",
    )
    columns = ["circuits", "gain", "Theorem 3: a mapping loses", "Theorems 4, 5: gain above the bound"]
    columns += ["gain / bound", "gain above Σ log2 width", "gain / Σ log2 width", "H(X) above β^depth · leaves"]
    report.table(columns, (summary(name, laws) for name, laws in groups.items()))
    report.say("What the paper also claims, on random mappings of three components over three states:")
    report.table(["claim", "refuted in", "missed there by, mean bits", "at most"], claims(5 * count))
    report.close(picture(groups))


def summary(name: str, laws: list[Law]) -> list[str]:
    """One row: how often each theorem fails, and how tight it is."""
    gains = [law.entropy - law.leaves for _, law in laws]
    ratios = [law.entropy / law.leaves > law.largest_ratio**law.depth * (1 + 1e-9) for _, law in laws]
    shares = [
        sum(gain / getattr(law, bound) for gain, (_, law) in zip(gains, laws, strict=True)) / len(laws)
        for bound in ("bound", "budget")
    ]
    beyond = [
        sum(gain > getattr(law, bound) + 1e-9 for gain, (_, law) in zip(gains, laws, strict=True))
        for bound in ("bound", "budget")
    ]
    below = sum(min(law.gains) < -1e-12 for _, law in laws)
    counts = [f"{number} of {len(laws)}" for number in (below, *beyond, sum(ratios))]
    mean = f"{sum(gains) / len(gains):.3f}"
    return [name, mean, counts[0], counts[1], f"{shares[0]:.2f}", counts[2], f"{shares[1]:.2f}", counts[3]]


def claims(count: int) -> Iterator[list[str]]:
    """Single mappings from φ | d^{l−1} to φ | d^l: three components over three states."""
    component, invertible, singular = list[float](), list[float](), list[float]()
    for _ in range(count):
        parts, matrix, top = row(3, 3), row(3, 3), row(1, 3)[0]
        before, after = entropy_bits(parts), entropy_bits(matrix @ parts)
        component.append(float(top @ matrix @ before - after.min()))
        invertible.append(float(top @ after - top @ matrix @ before))
        # Two equal rows make it singular. What it loses is I(φ; d^{l−1}) − I(φ; d^l), and the most is the former.
        equal = matrix[[0, 0, 2]]
        singular.append(float(entropy_bits(top @ equal @ parts) - top @ entropy_bits(equal @ parts)))
    for claim, misses in (
        ("Eq. (29), for every j: H(φ given d^l = j) ≥ H(φ given d^(l−1))", component),
        ("Eq. (32): an invertible A leaves the entropy as it is", invertible),
        ("Assumption 1: a singular A loses as much as can be lost", singular),
    ):
        refuting = [miss for miss in misses if miss > 1e-9]
        mean = sum(refuting) / max(1, len(refuting))
        yield [claim, f"{len(refuting)} of {count}", f"{mean:.3f}", f"{max(refuting, default=0.0):.3f}"]


def picture(groups: dict[str, list[Law]]):  # type: ignore[no-untyped-def]
    """Gain against both bounds; every point lies below the diagonal."""
    figure, axes = panels(1, 2, figsize=(7, 3.2), sharey=True)
    for panel, bound, title in zip(axes[0], ("bound", "budget"), ("mappings · C", "Σ log2 width"), strict=True):
        for name, laws in groups.items():
            shown = [law for _, law in laws[:25]]
            x = [getattr(law, bound) for law in shown]
            panel.plot(x, [law.entropy - law.leaves for law in shown], ".", ms=2.5, label=name, rasterized=True)
        end = max(law.entropy - law.leaves for laws in groups.values() for _, law in laws)
        panel.plot([0, end], [0, end], "k-", lw=0.8)
        panel.set_xlabel(f"{title}, bits")
        panel.set_xlim(left=0)
    axes[0][0].set_ylabel("H(X) − Σ H(x_i | d), bits")
    axes[0][0].legend()
    assert math.isfinite(end)
    return figure


if __name__ == "__main__":
    main()

"""Energy: the theorem's depths, a Parseval frame, and the decay measured in real networks (1704.03636).

    INFOPRUNE_DATA=DATA python -m benchmarks.papers.energy [--output benchmarks/results/papers]

The networks are the pretrained ResNet-20 and ResNet-56 on CIFAR-10 and MobileNetV2 on the images of NIPS 2017, each
beside the same architecture with random weights.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.papers.common import Pair, Report, panels
from infoprune.analyses.base import Finding
from infoprune.analyses.energy_propagation import NETWORK, EnergyPropagation
from infoprune.analyses.runner import analyze
from infoprune.evaluation.metrics import ModelReference
from infoprune.information.spectrum import scattering_depth
from infoprune.io.checkpoint import build, load_data

SHARES = (0.25, 0.5, 0.75, 0.9, 0.95, 0.99)
PUBLISHED = {
    "wavelets": (2, 3, 4, 6, 8, 11),
    "weyl_heisenberg": (2, 4, 5, 8, 10, 14),
    "general": (2, 3, 7, 19, 39, 199),
}
"""Layers for a share of the energy, L = R = δ = 1, l = 1.0001, d = 1 (as recalled from the paper)."""
FOLDED = {"folded": True, "padding": "same"}
NETWORKS: dict[str, tuple[ModelReference, str, str, dict[str, Any]]] = {
    "ResNet-20": (ModelReference("cifar_resnet", {"depth": 20}), "resnet20-12fca82f.th", "cifar10", {}),
    "ResNet-56": (ModelReference("cifar_resnet", {"depth": 56}), "resnet56-4bfd9763.th", "cifar10", {}),
    "MobileNetV2": (
        ModelReference("mobilenet_v2", FOLDED),
        "mobilenet_v2_int8.pth",
        "nips2017",
        {"normalisation": "symmetric"},
    ),
}
HAAR = torch.tensor([[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]]).double().view(4, 1, 2, 2) / 4
"""Σ_k |ŵ_k(ω)|² = 1 at every frequency."""


class Modulus(nn.Module):
    """The theorem's non-linearity."""

    def forward(self, maps: Tensor) -> Tensor:
        return maps.abs()


def parseval(layers: int) -> nn.Module:
    """Haar frames on every channel and the modulus behind each, then a head that nothing depends on."""
    model, channels = nn.Sequential(), 1
    for _ in range(layers):
        frame = nn.Conv2d(
            channels, 4 * channels, 2, padding="same", padding_mode="circular", groups=channels, bias=False
        )
        with torch.no_grad():
            frame.weight.copy_(HAAR.repeat(channels, 1, 1, 1))
        model.append(frame).append(Modulus())
        channels *= 4
    return model.double()


def main() -> None:
    report = Report(__doc__ or "", "energy", seeds=0, networks=list(NETWORKS), batches=2, batch_size=32)
    given = report.options
    report.say("Layers of a scattering network that hold a share of the energy: computed, then published.")
    report.table(["filters", *(f"{share:.0%}" for share in SHARES)], depths())
    frame = measured(parseval(3), [(torch.rand(8, 1, 16, 16, dtype=torch.float64), torch.zeros(8).long())])
    report.say("Three layers of Haar frames with the modulus, random images of 16x16:")
    report.table(
        ["layer", "energy / input", "error"],
        ([name, f"{energy:.9f}", f"{abs(energy - 1):.1e}"] for name, energy in energies(frame).items()),
    )
    report.say(
        f"Real networks, {given.batches} mini-batches of {given.batch_size} training images; energy ‖T‖² of each "
        "convolution's output relative to the image's. Decay: fit of W_n = c·rateⁿ over the layers, R² in brackets "
        "(rates below 1 decay), and of W_n = c·n^−rate. Depth: layers until a tenth of the first one's energy is left."
    )
    found: dict[tuple[str, str], Finding] = {}
    columns = ["network", "weights", "layers", "first", "last", "exponential", "polynomial", "depth for 90 %"]
    report.table([*columns, "frame bounds: median A, median B, convolutions with A > 0"], rows(report, found))
    report.close(picture(found))


def depths() -> Iterator[list[str]]:
    """The theorem's table."""
    for filters, published in PUBLISHED.items():
        computed = [scattering_depth(share, filters=filters, smoothness=1.0001) for share in SHARES]
        pairs = zip(computed, published, strict=True)
        yield [filters, *(f"{own} ({theirs})" for own, theirs in pairs)]
    yield ["general, d = 2", *(str(scattering_depth(share, filters="general", dimension=2)) for share in SHARES)]


def measured(model: nn.Module, batches: list[Pair]) -> Finding:
    """Energies of all layers and of the network."""
    return analyze(model, batches, [EnergyPropagation()])[0]


def energies(finding: Finding) -> dict[str, float]:
    """Energy of each layer relative to the input's."""
    return {name: float(each["energy"].value) for name, each in finding.measures.items() if name != NETWORK}


def rows(report: Report, found: dict[tuple[str, str], Finding]) -> Iterator[list[str]]:
    """One row per network and kind of weights."""
    given = report.options
    for name in given.networks:
        reference, weights, data_name, options = NETWORKS[name]
        data = load_data(data_name, options)
        batches = data.batches("train", batch_size=given.batch_size, seed=0)
        some = [pair for _, pair in zip(range(given.batches), batches, strict=False)]
        for kind, file in (("pretrained", weights), ("random", None)):
            torch.manual_seed(0)
            finding = found[name, kind] = measured(build(reference, file), some)
            yield [name, kind, *figures(finding)]


def figures(finding: Finding) -> list[str]:
    """What the table says of a network."""
    whole = {term: float(measure.value) for term, measure in finding.measures[NETWORK].items()}
    values = list(energies(finding).values())
    bounds = [
        (float(each["frame bound A"].value), float(each["frame bound B"].value))
        for each in finding.measures.values()
        if "frame bound A" in each
    ]
    low, high = (torch.tensor([pair[end] for pair in bounds]) for end in (0, 1))
    return [
        str(len(values)),
        f"{values[0]:.3g}",
        f"{values[-1]:.3g}",
        f"{whole['exponential rate']:.3f} ({whole['exponential goodness']:.2f})",
        f"{whole['polynomial rate']:.2f} ({whole['polynomial goodness']:.2f})",
        "never"
        if whole["depth for the share"] != whole["depth for the share"]
        else f"{whole['depth for the share']:g}",
        f"{low.median():.2g}, {high.median():.3g}, {int((low > 1e-6).sum())} of {len(low)}",
    ]


def picture(found: dict[tuple[str, str], Finding]):  # type: ignore[no-untyped-def]
    """Energy over depth, pretrained and random."""
    names = list(dict.fromkeys(name for name, _ in found))
    figure, axes = panels(1, len(names), figsize=(3.2 * len(names), 2.8), sharey=True)
    for panel, name in zip(axes[0], names, strict=True):
        for kind, style in (("pretrained", "C0-"), ("random", "C7--")):
            values = list(energies(found[name, kind]).values())
            panel.semilogy(range(1, len(values) + 1), values, style, lw=0.9, label=kind)
        panel.set_title(name)
        panel.set_xlabel("layer")
    axes[0][0].set_ylabel("energy / image's energy")
    axes[0][0].legend()
    return figure


if __name__ == "__main__":
    main()

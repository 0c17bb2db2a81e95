"""The figures of the report, a file per theme; which analysis has which is the table below."""

from collections.abc import Callable, Collection, Mapping, Sequence

from infoprune.analyses.base import Finding, Measure
from infoprune.reporting.canvas import NAMED, Drawing
from infoprune.reporting.figures import informational, layerwise, spectral

Own = Callable[[Finding, Sequence[str]], list[Drawing]]

OWN: Mapping[str, tuple[Own, tuple[str, ...]]] = {
    "redundancy": (
        informational.redundancy,
        ("trade-off share", "non-redundant share", "PID redundancy", "PID unique", "PID synergy"),
    ),
    "cmi_permutation": (informational.permutation, ()),
    "response_information": (informational.response, ("explained", "error once gone")),
    "data_processing": (
        informational.processing,
        (
            *("I(X;T)", "I(T;Y)", "I(δK;δ)", "forward violated", "backward violated"),
            *("block: loss of I(X;T)", "block: gain of I(T;Y)"),
        ),
    ),
    "information_plane": (informational.plane, ("I(X;T)", "I(T;Y)", "non-redundant X", "non-redundant Y")),
    "spectral_rolloff": (spectral.rolloff, ("SROP", "lower quartile", "upper quartile", "baseline")),
    "energy_propagation": (spectral.energy, ("energy", "energy per filter", "frame bound A", "frame bound B")),
    "information_scaling": (
        spectral.scaling,
        ("rank", "effective rank", "stable rank", "entropy", "log2 width", "entropy gain"),
    ),
}
"""Per analysis its own figures, and the measures that they show; what is left is drawn as any measure is."""
FOLDED = "More figures"
BLOCK = "block: "
"""How measures of a block begin, which is no layer."""


def of_finding(
    finding: Finding, kept: Mapping[str, Collection[int]] | None = None, full: Mapping[str, int] | None = None
) -> list[Drawing]:
    """The figures of one analysis.

    Args:
        finding: what it found.
        kept: per layer, the filters that stay, where they are known.
        full: per layer, the number of filters; in the order of the forward pass.
    """
    layers, (own, shown) = layers_of(finding, full), OWN.get(finding.analysis, (None, ()))
    found = layerwise.importance(finding, layers, kept or {})
    found += own(finding, layers) if own else []
    found += layerwise.widths(finding, layers, full or {})
    known = (*shown, "width") if full and finding.widths else shown
    return [*found, *layerwise.others(finding, layers, known, FOLDED if own else "")]


def layers_of(finding: Finding, full: Mapping[str, int] | None = None) -> list[str]:
    """The layers that an analysis has figures for, in the order of the forward pass; the network as a whole is none."""
    found = dict.fromkeys([*finding.measures, *finding.importance, *finding.curves])
    blocks = [name for name, own in finding.measures.items() if own and all(each.startswith(BLOCK) for each in own)]
    layers = [name for name in found if name not in (*blocks, *facts(finding))]
    # What needs gradients sees the layers from the last to the first.
    return [name for name in full if name in found] if full and set(layers) <= set(full) else layers


def facts(finding: Finding) -> dict[str, Mapping[str, Measure]]:
    """What an analysis says of the network as a whole, which no figure over layers shows."""
    measures = finding.measures.get(spectral.NETWORK)
    return {} if measures is None or any(each.value.dim() for each in measures.values()) else {"network": measures}


def numbered(finding: Finding, full: Mapping[str, int] | None = None) -> list[str]:
    """The layers that the figures of an analysis give by number, in this order; none where the names fit."""
    layers = layers_of(finding, full)
    return layers if len(layers) > NAMED else []

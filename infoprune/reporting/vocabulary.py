"""What the page calls things, and what they mean."""

from collections.abc import Mapping

STAGES = {"base": "Base", "pruned": "Pruned", "repaired": "Repaired", "finetuned": "Fine-tuned"}

FLAG_MEANINGS = {
    "saturated": "The estimate is at the ceiling that the batch size sets: every sample looks unlike every other, so "
    "the figures no longer tell filters or layers apart. Larger batches or a wider kernel lift the ceiling.",
    "undefined": "The figure does not exist here, as for a filter that never changes. Such scores decide nothing.",
}

ANALYSES: Mapping[str, tuple[str, str]] = {
    "information_bottleneck": (
        "Information bottleneck",
        "What each filter keeps of the image, I(X;T), against what it says about the class, I(T;Y).",
    ),
    "response_information": (
        "Response information",
        "What the next layer's response still learns from a filter, given the filters that are kept.",
    ),
    "redundancy": (
        "Redundancy and synergy",
        "How much the filters of a layer repeat each other, and how many of them hold what the layer knows of the "
        "image.",
    ),
    "cmi_permutation": (
        "CMI permutation",
        "How many filters it takes until the rest of the layer says nothing more about the class than chance would.",
    ),
    "data_processing": (
        "Data processing",
        "Where information about the image is lost on the way, and which blocks neither lose nor gain any.",
    ),
    "information_plane": (
        "Information plane",
        "What each layer knows of the image and of the class. Nothing is decided by it.",
    ),
    "spectral_rolloff": (
        "Spectral roll-off",
        "How fine the detail is that a layer's maps carry, against what pooling the image alone would leave.",
    ),
    "energy_propagation": (
        "Energy propagation",
        "How much of the input's energy reaches each layer and filter, and how it decays with depth.",
    ),
    "information_scaling": (
        "Information scaling",
        "How many directions a layer's weights mix: ranks of its mixing matrix, and entropies over depth.",
    ),
    "l1": ("L1 norm", "The sum of a filter's absolute weights: a baseline."),
    "l2": ("L2 norm", "The length of a filter's weights: a baseline."),
    "batch_norm_scale": ("Batch-norm scale", "The scale of the batch norm behind a filter: a baseline."),
    "taylor": ("Taylor", "The first-order change of the loss when a filter's map goes: a baseline."),
    "random": ("Random", "Scores drawn by chance: the control."),
}
"""Name and meaning of our own analyses."""


def analysis(name: str) -> tuple[str, str]:
    """Name and meaning; those of a user are called as they call them.

    >>> analysis("l2")[0], analysis("activation_energy")
    ('L2 norm', ('Activation energy', ''))
    """
    return ANALYSES.get(name, (f"{name[:1].upper()}{name[1:].replace('_', ' ')}", ""))

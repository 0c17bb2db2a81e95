"""Whether a written file computes what the model computes."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from infoprune.errors import RunError

Run = Callable[[Tensor], Any]

TOLERANCE = {
    # Two correct float32 runtimes differ by 1e-7 to 1e-5 in deep networks; a wrong operator differs by far more.
    "float32": 1e-4,
    # Weights keep 11 and 8 significant bits: 5e-4 and 4e-3 each, which some fifty layers may add up.
    "float16": 2e-2,
    "bfloat16": 1e-1,
    # Eight bits for weights and activations: how far that goes is for the measured accuracy to say.
    "int8": math.inf,
}


def compare(
    name: str, run: Run, batches: list[Tensor], expected: list[list[Tensor]], tolerance: float
) -> tuple[float, float]:
    """Largest absolute and relative difference between what the file computes and what the model computes.

    Raises:
        RunError: where shapes differ, the file puts out NaN, or the difference is above the tolerance.
    """
    absolute = relative = 0.0
    for batch, outputs in zip(batches, expected, strict=True):
        came = outputs_of(run, batch)
        if [output.shape for output in came] != [output.shape for output in outputs]:
            shapes = [[tuple(output.shape) for output in each] for each in (came, outputs)]
            raise RunError(f"the {name} file puts out shapes {shapes[0]}, the model {shapes[1]}; nothing was written")
        for ours, theirs in zip(outputs, came, strict=True):
            difference = (ours - theirs).abs().max().item() if ours.numel() else 0.0
            if math.isnan(difference):
                raise RunError(f"the {name} file puts out NaN; nothing was written. Try another format or precision")
            largest = ours.abs().max().item() if ours.numel() else 0.0
            absolute = max(absolute, difference)
            relative = max(relative, difference / largest if largest else math.inf if difference else 0.0)
    if relative > tolerance:
        raise RunError(
            f"the {name} file differs from the model by {relative:.1e} of its largest output, at most {tolerance:.0e} "
            "is accepted; nothing was written. Try another format or precision"
        )
    return absolute, relative


def batches_of(example: Tensor, any_size: bool) -> list[Tensor]:
    """The example; for files that take any batch size also one sample more than it has, and one sample."""
    example = example.detach().to("cpu", torch.float32).contiguous()
    if not any_size:
        return [example]
    longer = torch.cat([example, example[:1]])
    return [example, longer, example[:1]] if len(example) > 1 else [example, longer]


def outputs_of(run: Run, batch: Tensor) -> list[Tensor]:
    """All tensors that come out for a batch, in the order in which exporters lay them out."""
    with torch.no_grad():
        return [output.float() for output in _leaves(run(batch))]


def _leaves(outputs: Any) -> list[Tensor]:
    if isinstance(outputs, Tensor):
        return [outputs]
    if isinstance(outputs, Mapping):
        outputs = outputs.values()
    return [] if outputs is None else [leaf for output in outputs for leaf in _leaves(output)]

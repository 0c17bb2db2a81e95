"""Figures of one layer over mini-batches, as running sums."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from scipy import special
from torch import Tensor

from infoprune.analyses.base import Flag, Measure
from infoprune.errors import UserError
from infoprune.information.entropy import SATURATION_BITS


class Running:
    """Mean of named figures over mini-batches and its 95 % interval (Student's t), in constant memory.

    A figure is a number or one number per filter. NaN stands for "undefined in this mini-batch": such entries are
    left out and counted, never averaged in. A name that starts with "_" is for the analysis alone and no measure.

    Attributes:
        margin: least distance of an entropy from its ceiling log2 n, in bits, over mini-batches.
    """

    def __init__(self) -> None:
        self._sums: dict[str, tuple[Tensor, Tensor, Tensor]] = {}
        self.margin = math.inf

    def add(self, figures: Mapping[str, Tensor | float]) -> None:
        """Adds the figures of one mini-batch (Welford's update, which does not cancel)."""
        for name, figure in figures.items():
            value = torch.as_tensor(figure, dtype=torch.float64).detach().cpu()
            zeros = torch.zeros_like(value)
            count, mean, squares = self._sums.get(name, (zeros, zeros, zeros))
            known = ~value.isnan()
            count = count + known
            step = torch.where(known, value - mean, 0.0)
            mean = mean + step / count.clamp_min(1)
            squares = squares + step * torch.where(known, value - mean, 0.0)
            self._sums[name] = (count, mean, squares)

    def tensors(self) -> dict[str, Tensor]:
        """All sums by name, for other processes to take in."""
        names = ("count", "mean", "squares")
        found = {
            f"{name}/{part}": each for name, sums in self._sums.items() for part, each in zip(names, sums, strict=True)
        }
        return {**found, "margin": torch.tensor(self.margin, dtype=torch.float64)}

    def join(self, parts: Sequence[Mapping[str, Tensor]]) -> None:
        """Replaces the sums by those of all processes (Chan, Golub and LeVeque, 1979, Eq. 2.1; does not cancel)."""
        for name in self._sums:
            count, mean, squares = (parts[0][f"{name}/{part}"] for part in ("count", "mean", "squares"))
            for part in parts[1:]:
                more, other = part[f"{name}/count"], part[f"{name}/mean"]
                share = more / (count + more).clamp_min(1)
                squares = squares + part[f"{name}/squares"] + (other - mean).square() * count * share
                mean, count = mean + (other - mean) * share, count + more
            self._sums[name] = (count, mean, squares)
        self.margin = min(float(part["margin"]) for part in parts)

    def names(self) -> list[str]:
        """Names of all figures so far."""
        return list(self._sums)

    def mean(self, name: str) -> Tensor:
        """Mean over the mini-batches in which the figure is defined; NaN where there was none."""
        count, mean, _ = self._sums[name]
        return torch.where(count > 0, mean, torch.nan)

    def undefined(self, name: str) -> Tensor:
        """Which entries were defined in no mini-batch."""
        return self._sums[name][0] == 0

    def measures(self, units: Mapping[str, str] | None = None) -> dict[str, Measure]:
        """All figures as measures; in bits where `units` says nothing else."""
        shown = [name for name in self._sums if not name.startswith("_")]
        return {name: self.measure(name, (units or {}).get(name, "bits")) for name in shown}

    def measure(self, name: str, unit: str = "bits") -> Measure:
        """One figure, with its interval where two mini-batches or more have it."""
        count, _, squares = self._sums[name]
        value = self.mean(name)
        if not (count > 1).any():
            return Measure(value, unit=unit)
        quantile = torch.as_tensor(special.stdtrit((count - 1).clamp_min(1).numpy(), 0.975), dtype=torch.float64)
        half = quantile * (squares.clamp_min(0) / (count - 1).clamp_min(1) / count.clamp_min(1)).sqrt()
        # One mini-batch says nothing about spread, so where others had two such an entry's interval is unknown.
        half = torch.where(count > 1, half, torch.nan)
        return Measure(value, value - half, value + half, unit)


class RunningByLayer:
    """An analysis all of whose sums are figures of single layers; several processes can each see some batches."""

    def __init__(self) -> None:
        self._layers: dict[str, Running] = {}

    def layer(self, name: str) -> Running:
        """The running figures of a layer, from the first time it is seen."""
        return self._layers.setdefault(name, Running())

    def sums(self) -> dict[str, Tensor]:
        """The figures of the batches of this process, by layer."""
        return {
            f"{layer}/{name}": value for layer, sums in self._layers.items() for name, value in sums.tensors().items()
        }

    def join(self, parts: Sequence[Mapping[str, Tensor]]) -> None:
        """Replaces them by those of all processes."""
        for layer, sums in self._layers.items():
            own = f"{layer}/"
            sums.join([{k.removeprefix(own): v for k, v in part.items() if k.startswith(own)} for part in parts])


def saturated(layers: Mapping[str, Running], what: str) -> tuple[Flag, ...]:
    """A flag for every layer in which an entropy, named by `what`, came so near log2 n that nothing follows from it."""
    return tuple(
        Flag(
            name,
            "saturated",
            f"{what} comes within {max(0.0, running.margin):.3f} bit of log2 n: larger batches or a wider kernel are "
            "needed",
        )
        for name, running in layers.items()
        if running.margin < SATURATION_BITS
    )


def require(analysis: str, options: Iterable[tuple[str, Any, bool, str]]) -> None:
    """Refuses the first option that is not fine.

    Args:
        analysis: its name in recipes.
        options: name, value, whether it is fine, and what is expected.

    Raises:
        UserError: "[analyses.NAME] option = value: expected …".
    """
    for option, value, fine, expected in options:
        if not fine:
            raise UserError(f"[analyses.{analysis}] {option} = {value}: expected {expected}")

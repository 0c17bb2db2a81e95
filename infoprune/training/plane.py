"""The information plane while a network is trained: a finding for each of some steps, in one file."""

from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from infoprune.analyses.base import Finding
from infoprune.analyses.information_plane import InformationPlane
from infoprune.analyses.runner import analyze
from infoprune.io import storage
from infoprune.io.encoding import from_json, to_json


class PlaneFile:
    """Collects points and writes each down at once, so that a killed training loses none.

    Args:
        before: what the file holds; empty where there is none yet.
        save: replaces the file by a JSON object.
        made_from: what must be equal for earlier points to count.
        steps: gives the steps to look at, from the number of all steps.
        options: of the analysis `information_plane`.
    """

    def __init__(
        self,
        before: Mapping[str, Any],
        save: Callable[[Mapping[str, Any]], None],
        made_from: Mapping[str, Any],
        steps: Callable[[int], Collection[int]],
        options: Mapping[str, Any],
    ) -> None:
        self.save, self.made_from, self.steps, self.options = save, made_from, steps, options
        self.points: dict[str, Any] = before["points"] if before.get("made_from") == made_from else {}

    def look(self, model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], step: int, total: int) -> None:
        """Takes the plane after a step, if this is one of the steps to look at and it is not known yet."""
        if step not in self.steps(total) or str(step) in self.points:
            return
        finding = analyze(model, batches, [InformationPlane(**self.options)])[0]
        self.points[str(step)] = to_json(finding)
        self.save({"made_from": self.made_from, "points": self.points})


def read_planes(path: Path) -> dict[int, Finding]:
    """Training step -> finding; empty where there is no file.

    Raises:
        UserError: for a damaged file.
    """
    if not path.exists():
        return {}
    points = storage.read_json(path).get("points", {})
    found = {int(step): from_json(value, Finding, str(path)) for step, value in points.items()}
    return dict(sorted(found.items()))

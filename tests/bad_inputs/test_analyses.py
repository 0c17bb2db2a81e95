"""Analyses of a user's own that lack something, fail, or give something else: one message, as early as can be."""

from pathlib import Path
from typing import Any

import pytest

from infoprune.io import storage

HEAD = """
import torch
from torch import nn
from infoprune.analyses.base import Finding


class Own:
    observes = (nn.Conv2d, nn.Linear)
    needs_gradients = False
    needs_labels = False

    def __init__(self, *, scale: float = 1.0):
        self.scores = {}

    def observe(self, view):
        self.scores[view.layer] = torch.arange(float(view.activations.shape[1]))

    def conclude(self):
        return Finding("whatever", importance=self.scores)
"""
# What is put into the class above, and what has to be said; the first group before anything is analysed.
EARLY = {
    "observes nothing": ("observes = None", "observes is None; expected kinds of modules"),
    "observes by name": ("observes = ('Conv2d',)", "observes is ('Conv2d',); expected kinds of modules"),
    "no conclusion": ("conclude = property(lambda self: self.nowhere)", "lacks conclude; an analysis has observes"),
    "gives a word": ("gives = 'importance'", "gives is 'importance'; expected a tuple of importance, widths, rem"),
    "gives nothing known": ("gives = ('scores',)", "gives is ('scores',); expected a tuple of"),
    "gives widths only": ("gives = ('widths',)", "gives no importance to rank by"),
    "a constructor that fails": ("def __init__(self): self.nowhere", "AttributeError: 'Own' object has no attribute"),
}
LATE = {
    "observing fails": ("def observe(self, view): view.nowhere", "own, layer 'first', calibration batch 0: AttributeE"),
    "observing divides by zero": ("def observe(self, view): 1 / 0", "ZeroDivisionError: division by zero (own.py, lin"),
    "concluding fails": ("def conclude(self): return self.scores['x']", "own, at its conclusion: KeyError: 'x' (own.p"),
    "concludes nothing": ("def conclude(self): pass", "own, at its conclusion: came NoneType; expected a Finding"),
    "lists for scores": (
        "def conclude(self): return Finding('x', importance={'first': [1, 2, 3, 4]})",
        "importance of 'first' is list; expected a tensor, one real score per filter",
    ),
    "scores of two dimensions": (
        "def conclude(self): return Finding('x', importance={'first': torch.ones(4, 2)})",
        "importance of 'first' is [4, 2]; expected a tensor",
    ),
    "too few scores": (
        "def conclude(self): return Finding('x', importance={'first': torch.ones(3)})",
        "gives importance of shape (3,) for 'first', which has 4 filters",
    ),
    "no scores": ("def conclude(self): return Finding('x')", "gives no importance to rank by"),
    "scores that are NaN": (
        "def conclude(self): return Finding('x', importance={name: s / 0 * 0 for name, s in self.scores.items()})",
        "gives NaN or infinite importance",
    ),
    "half a filter": (
        "def conclude(self): return Finding('x', importance=self.scores, widths={'first': 1.5})",
        "the width of 'first' is 1.5; expected a whole number",
    ),
}


def write(folder: Path, body: str = "") -> str:
    (folder / "own.py").write_text(HEAD + (f"\n    {body}\n" if body else ""))
    return f"plan.rank_by={folder}/own.py:Own"


@pytest.mark.parametrize("name", EARLY | LATE)
def test_own_analyses(workshop: Any, tmp_path: Path, name: str) -> None:
    body, expected = (EARLY | LATE)[name]
    assert expected in workshop.refuses("plan", write(tmp_path, body))
    assert name in LATE or not (workshop.out / "findings").exists()
    assert not (workshop.out / "plan.json").exists()


def test_a_finding_is_known_by_the_name_that_the_recipe_has(workshop: Any, tmp_path: Path) -> None:
    chosen = write(tmp_path)
    assert workshop.step("plan", chosen).code == 0
    cut = [
        group
        for group in storage.read_json(workshop.out / "plan.json")["groups"]
        if group["width_after"] < group["width_before"]
    ]
    assert cut
    for group in cut:  # the last filters have the largest scores
        assert group["kept"] == list(range(group["width_before"] - group["width_after"], group["width_before"]))
    assert workshop.step("compare", chosen, "compare.criteria=['recipe']", "compare.shares=[0.7]").code == 0

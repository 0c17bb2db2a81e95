"""The commands that re-measure the papers' figures: one from end to end, and what all of them lean on."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parent.parent


@pytest.fixture
def papers(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The package `benchmarks.papers`, which is not installed."""
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks import papers

    return papers


def test_a_command_writes_note_and_picture_and_keeps_what_was_written_by_hand(tmp_path: Path) -> None:
    path = tmp_path / "convac.md"
    path.write_text("# Old figures\n\n## Reading\n\nBy hand.\n")
    command = [sys.executable, "-m", "benchmarks.papers.convac", "--circuits", "3", "--output", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    note = path.read_text()
    assert note.startswith("# The information scaling law")
    assert "python -m benchmarks.papers.convac --circuits 3`" in note
    rows = [line for line in note.splitlines() if line.startswith(("| HT", "| CP"))]
    assert len(rows) == 6
    assert all(row.count("| 0 of 3 |") >= 2 for row in rows), "no theorem fails"
    assert note.endswith("](convac.svg)\n\n## Reading\n\nBy hand.\n")
    assert (tmp_path / "convac.svg").read_text().startswith("<?xml")


def test_a_frame_of_haar_filters_conserves_energy(papers: Any) -> None:
    from benchmarks.papers import energy

    images = torch.rand(4, 1, 8, 8, dtype=torch.float64)
    found = energy.energies(energy.measured(energy.parseval(2), [(images, torch.zeros(4).long())]))
    assert list(found.values()) == pytest.approx([1, 1])
    assert next(row[1:] for row in energy.depths()) == ["2 (2)", "3 (3)", "4 (4)", "6 (6)", "8 (8)", "11 (11)"]


def test_the_frog_lies_over_ones_or_over_all_digits(papers: Any) -> None:
    from benchmarks.papers import srop

    digits, labels = torch.full((3, 1, 2, 2), 255, dtype=torch.uint8), torch.tensor([0, 1, 1])
    animal = torch.zeros(1, 2, 2)
    pixels = {case: srop.mixed(digits, labels, case, 0.25, animal) * 0.3081 + 0.1307 for case in srop.CASES}
    assert pixels["I"][:, 0, 0, 0].tolist() == pytest.approx([1, 0.75, 0.75])
    assert pixels["II"][:, 0, 0, 0].tolist() == pytest.approx([0.75, 0.75, 0.75])

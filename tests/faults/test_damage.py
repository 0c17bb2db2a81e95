"""Every file of a run directory, damaged in every way: made again as it was, or refused by its name."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.faults import damage
from benchmarks.faults.damage import ACCEPTED, AGAIN, BAD, EDITED, MANIFEST, REFUSED, SCENARIOS, Table
from benchmarks.faults.project import Project
from infoprune.pipeline.run_directory import RunDirectory

# What has to be among the files, so that the table cannot come to be empty.
FILES = {"findings/l2.json", "findings/own_scores.Means.json", "sensitivity.json", "plan.json", "plane-finetuned.json"}
FILES |= {f"{stage}.safetensors" for stage in ("base", "pruned", "repaired", "finetuned", "finetuned-best")}
FILES |= {"history.csv", "metrics.json", "report.html", "report.json", MANIFEST}
FILES |= {f"export/{name}" for name in ("model.safetensors", "model.py", "MODEL_CARD.md", "export.json")}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return Project(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def table_of(project: Project, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Table]:
    """The table of a scenario, each made once."""
    made: dict[str, Table] = {}

    def get(name: str) -> Table:
        if name not in made:
            made[name] = Table(project, name, tmp_path_factory.mktemp("runs"), short=True)
        return made[name]

    return get


@pytest.mark.parametrize("name", [name for name in SCENARIOS if name != "all formats"])  # which takes minutes
def test_no_damage_is_accepted(table_of: Callable[[str], Table], name: str) -> None:
    table = table_of(name)
    cases = list(table.cases())
    assert {file for file, _ in cases} >= (FILES if name == "run" else set(SCENARIOS[name].only))
    assert len(cases) >= 11
    found = {case: table.outcome(*case) for case in cases}
    bad = {case: (outcome, ending) for case, (outcome, ending) in found.items() if outcome in BAD}
    assert not bad
    outcomes = {case: outcome for case, (outcome, _) in found.items()}
    # A state is in a folder that only infoprune uses, so that a link there is replaced.
    places = {case: outcome for case, outcome in outcomes.items() if case[1] in ("a folder", "a link")}
    assert all(outcome == REFUSED for (file, _), outcome in places.items() if file != damage.STATE)
    if name == "run":
        assert outcomes["plan.json", "macs_before = 987654321"] == EDITED
        assert outcomes["plan.json", "macs_after = -5"] == EDITED
        assert outcomes["plan.json", "one filter less"] == EDITED
        assert outcomes["plan.json", "a group twice"] == REFUSED
        assert outcomes["findings/l2.json", "one digit"] == AGAIN


def test_the_state_of_a_stopped_training(table_of: Callable[[str], Table], tmp_path: Path) -> None:
    """Undamaged it is gone on from: the others have to notice damage, and not only to start over."""
    table = table_of("stopped training")
    ending = table.project.call("finetune", shutil.copytree(table.start, tmp_path / "run"))
    assert ending.code == 0, ending
    assert "starts from the beginning" not in ending.said
    _, ending = table.outcome(damage.STATE, "one bit late")
    assert "training starts from the beginning" in ending.said


def test_the_table_sees_what_is_accepted(table_of: Callable[[str], Table], monkeypatch: pytest.MonkeyPatch) -> None:
    """Where only origins counted, as they once did, and no contents."""
    table = table_of("run")
    monkeypatch.setattr(RunDirectory, "is_current", lambda self, name, origin: self._parts(name)[name].origin == origin)
    for case in (("findings/l2.json", "one digit"), ("report.html", "emptied"), ("export/model.py", "removed")):
        assert table.outcome(*case)[0] == ACCEPTED

"""Files of the user's in the folder given as --out: whatever the command, none is touched."""

from pathlib import Path

import pytest

from benchmarks.faults import foreign
from benchmarks.faults.foreign import COMMANDS, INPUTS, UNTOUCHED, Case, Table, cases, refuses_input, trace
from benchmarks.faults.project import Project
from infoprune.pipeline.run_directory import RunDirectory


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return Project(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def table(project: Project, tmp_path_factory: pytest.TempPathFactory) -> Table:
    return Table(project, tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def done(project: Project, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that went all the way."""
    out = tmp_path_factory.mktemp("done") / "run"
    assert project.call("report", out).code == 0
    return out


def chosen(command: str) -> list[Case]:
    """The cases that say most: of the names that clash, which the benchmark tries with each, a few per command."""
    place, found = COMMANDS.index(command), list(cases((command,)))
    names = list(dict.fromkeys(case.clash for case in found))
    clashing = [case for case in found if case.clash and (names.index(case.clash) + place) % 5 == 0]
    return [case for case in found if not case.clash and not (case.force and case.later)] + clashing


@pytest.mark.parametrize("command", COMMANDS)
def test_no_foreign_file_is_touched(table: Table, command: str) -> None:
    tried = chosen(command)
    assert sum(case.refused for case in tried) >= 5
    found = {str(case): table.outcome(case) for case in tried}
    assert not {case: each for case, each in found.items() if each[0] != UNTOUCHED}


def test_all_names_that_clash_are_tried() -> None:
    tried = {case.clash for command in COMMANDS for case in chosen(command)}
    assert tried == {"", *foreign.CLASHES, *foreign.LINKED}


def test_the_table_sees_what_is_touched(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a file of the user's under a name that a run needs counted as the run's own."""
    state = RunDirectory.state
    monkeypatch.setattr(
        RunDirectory, "state", lambda self, name: "absent" if (found := state(self, name)) == "foreign" else found
    )
    assert table.outcome(Case("plan", "plan.json", force=True, later=True))[0] == foreign.TOUCHED
    assert table.outcome(Case("report", "report.html", force=True, later=True))[0] == foreign.TOUCHED


@pytest.mark.parametrize("command", ["report", "train"])
@pytest.mark.parametrize("name", INPUTS)
def test_inputs_in_the_run_directory_are_refused(
    project: Project, done: Path, tmp_path: Path, name: str, command: str
) -> None:
    found, ending = refuses_input(project, done, tmp_path, name, command)
    assert found == UNTOUCHED, ending


@pytest.mark.parametrize("command", COMMANDS)
def test_an_empty_name(project: Project, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ending = project.call(command, "")
    assert (ending.code, ending.traceback) == (2, "")
    assert "the run directory is '' (an unset variable?); name a folder with --out" in ending.said
    assert not list(tmp_path.iterdir())


def test_training_replaces_no_other_weights(project: Project, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert project.call("train", out).ran("train")
    before = trace(out)
    assert "train (up to date)" in project.call("train", out).said
    other = ("train.learning_rate=0.003",)
    refused = project.call("train", out, sets=other)
    assert (refused.code, refused.traceback) == (2, "")
    assert "would be replaced (changed: options.learning_rate); add --replace" in refused.said
    assert trace(out) == before
    assert project.call("train", out, "--replace", sets=other).ran("train")
    replaced = trace(out)
    assert replaced.keys() == before.keys()
    assert all(replaced[path] != before[path] for path in before)


def test_weights_by_train_are_read_where_they_lie(project: Project, tmp_path: Path) -> None:
    """What train left is no result of the other steps."""
    out = tmp_path / "run"
    assert project.call("train", out).code == 0
    trained = (out / "trained.safetensors").read_bytes()
    ending = project.call("repair", out, sets=(f"model.weights={out}/trained.safetensors",))
    assert ending.code == 0, ending
    assert (out / "trained.safetensors").read_bytes() == trained

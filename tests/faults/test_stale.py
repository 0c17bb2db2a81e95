"""What a run depends on changes under the same name: the same command notices, says what, and makes it again."""

from pathlib import Path

import pytest

from benchmarks.faults import stale
from benchmarks.faults.stale import ACCEPTED, CHANGES, NOTICED
from infoprune.pipeline.context import Context


@pytest.mark.parametrize("name", CHANGES)
def test_changes_are_noticed(tmp_path: Path, name: str) -> None:
    found, ending = stale.outcome(name, tmp_path, "finetune")
    assert found == NOTICED, ending


def test_the_table_sees_what_is_accepted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where source files did not count."""
    monkeypatch.setattr(Context, "sources_of", lambda self, references: {})
    assert stale.outcome("a module that an own model imports", tmp_path, "finetune")[0] == ACCEPTED
    assert stale.outcome("an own loss", tmp_path, "finetune")[0] == ACCEPTED

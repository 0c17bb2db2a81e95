"""Messages stay short and name what went wrong."""

from infoprune.errors import MOST_NAMES, did_you_mean


def test_long_lists_of_names_are_cut() -> None:
    names = [f"name{index:04}" for index in range(1000)]
    told = did_you_mean("zzz", names)
    assert told == f"; known: {', '.join(names[:MOST_NAMES])}, … and {1000 - MOST_NAMES} more"
    assert did_you_mean("zzz", names[:MOST_NAMES]) == f"; known: {', '.join(names[:MOST_NAMES])}"
    assert did_you_mean("name0999x", names) == "; did you mean 'name0999'?"

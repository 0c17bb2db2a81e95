"""Every option of every table with wrong types and values, recipes that are no recipes, and random ones."""

import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from infoprune.config import recipe
from infoprune.errors import UserError
from infoprune.pipeline.settings import bind_recipe, describe, tables

HUGE = "1000000000000"
WRONG = {
    "int": ["-1", "0", HUGE, "9" * 30, "2.5", "true", "'x'", "[]"],
    "float": ["-1.0", "0.0", "nan", "inf", "-inf", "1e300", "'x'", "[1.0]"],
    "bool": ["1", "'yes'", "[]"],
    "str": ["''", "3", "'nothing'", "'../../nothing'", "'a:b'", "':'", "'nothing.py:x'", "'\\u0000'"],
    "list of str": ["'nothing'", "[1]", "['nothing']", "['']", "[[]]", "{}"],
    "list of float": ["[]", "[nan]", "[-1.0]", "['x']", "3", "[0.0]", "[inf]", "[2.0]"],
    "list of int": ["[-1]", "[0]", f"[{HUGE}]", "3", "['x']", "[nan]", "[1.5]"],
    "table of list of int": ["[-1]", "{x = [-1]}", f"{{x = [{HUGE}]}}", "{x = 3}", "{x = ['x']}", "{x = [nan]}"],
}
# What follows the type of a number in a description.
RANGE = re.compile(r", (?:each )?(?:above )?[\d.,]+ (?:to|and) (?:up to |below )?[\d.,]+")
CHOICE = ["''", "'nothing'", "3", "[]", "true"]
# The first step that reads a table; "plan" reads the others.
READ_BY = {"run": "finetune", "plane": "finetune", "repair": "repair", "finetune": "finetune", "train": "train"}
READ_BY |= {"evaluate": "evaluate", "export": "export", "calibration": "repair", "analyses": "analyze"}
# What makes a step read them.
ALSO = {
    "model.torchvision": ["model.architecture=resnet18"],
    "timings": ["plan.latency=0.9"],
    "sensitivity": ["plan.allocation=sensitivity"],
    "search": ["search.max_loss=90.0"],
    "repair": ["repair.method=reconstruct", "repair.steps=2"],
}
# Values of the wrong type, and numbers that are none.
NEVER = {
    "int": {"9" * 30, "2.5", "true", "'x'", "[]"},
    "float": {"nan", "inf", "-inf", "'x'", "[1.0]"},
    "bool": {"1", "'yes'", "[]"},
    "list of float": {"[nan]", "['x']", "3", "[inf]"},
    "list of int": {"3", "['x']", "[nan]", "[1.5]"},
    "list of str": {"'nothing'", "[1]", "[[]]", "{}"},
}
OPTIONS = [
    (table, name, kind) for table in tables() if table != "train" for name, kind, _, _ in describe(table)
]  # [train] takes what [finetune] takes


def values(table: str, name: str, kind: str) -> list[tuple[str, bool]]:
    """Values to try, and whether each has to be refused whatever the option means."""
    kinds = RANGE.sub("", kind).removesuffix(" or nothing").split(" or ")
    known = [each for each in kinds if each in WRONG]
    wrong = dict.fromkeys([value for each in known for value in WRONG[each]] or CHOICE)
    never = NEVER.get(known[0], set()) if len(kinds) == 1 and known else set() if known else set(CHOICE)
    if (table, name) == ("export", "formats"):
        never = never - {"[]"}  # no file is a choice
    return [(value, value in never) for value in wrong]


@pytest.mark.parametrize(("table", "name", "kind"), OPTIONS)
def test_wrong_values_are_refused_or_do_what_they_say(workshop: Any, table: str, name: str, kind: str) -> None:
    head, _, family = table.partition(".")
    also = [f"{head}.name={family}"] if head in ("model", "data") else []
    also += [f"{head}.{other}='nothing'" for other, _, default, _ in describe(table) if default == "required"]
    also += ALSO.get(table, [])
    also = [*also, "data.root='/nowhere'"] if head == "data" and family != "digits" else also
    place = f"{head}.{name}" if head in ("model", "data") else f"{table}.{name}"
    for value, never in values(table, name, kind):
        said = refusal(workshop, READ_BY.get(head, "plan"), [*also, f"{place}={value}"])
        assert said or not never, f"{place} = {value} was taken"
        assert not never or name in said, said


def refusal(workshop: Any, step: str, sets: list[str]) -> str:
    """What a step says that refuses an override; empty where it is done."""
    if sets[-1].startswith("compare."):  # cells of a comparison take seconds, and these options are checked before
        try:
            bind_recipe(recipe.read(workshop.recipe, sets))
        except UserError as error:
            return str(error)
        return ""
    ending = workshop.step(step, *sets)
    return ending.said if ending.code else ""


NAMED = '[model]\nname = "lenet"\n[data]\nname = "digits"\n'
RECIPES = {
    "empty": ("", "[model] needs name"),
    "no TOML": ("[model", "is not valid TOML"),
    "binary": (b"\xff\xfe\x00", "is not valid TOML"),
    "a zero byte": (b"[run]\nseed = 0\x00", "is not valid TOML"),
    "JSON": ('{"model": {}}', "is not valid TOML"),
    "YAML": ("model:\n  name: x\n", "is not valid TOML"),
    "a key twice": ("[run]\nseed = 0\nseed = 1\n", "is not valid TOML"),
    "a table twice": ("[run]\n[run]\n", "is not valid TOML"),
    "outside any table": ("seed = 0\n", "stands outside any table"),
    "a list of tables": ("[[run]]\nseed = 0\n", "stands outside any table"),
    "an unknown table": ("[modle]\n", "did you mean 'model'"),
    "a table for an option": (
        NAMED + "[run.seed]\nx = 1\n",
        "to 4,294,967,295, got dict",
    ),
    "a date": (NAMED + "[run]\nseed = 2026-01-01\n", "to 4,294,967,295, got date"),
    "a value for an analysis": (NAMED + "[analyses]\nl2 = 3\n", "expected a table"),
    "no model name": ("[model]\ndepth = 3\n", "[model] needs name"),
    "no data": ('[model]\nname = "lenet"\n', "[data] needs name"),
    "a number for a name": ("[model]\nname = 3\n", "[model] needs name"),
    "an empty name": ('[model]\nname = ""\n', "no model ''"),
    "deep nesting": ("[run]\nseed = " + "[" * 5000 + "]" * 5000, "is not valid TOML"),
    "a long key": (NAMED + f"[run]\n{'x' * 100_000} = 1\n", "no option"),
    "an endless number": (f"[run]\nseed = {'9' * 5000}\n", "is not valid TOML"),
}


@pytest.mark.parametrize("name", RECIPES)
def test_no_recipe(workshop: Any, tmp_path: Path, name: str) -> None:
    text, expected = RECIPES[name]
    path = tmp_path / "bad.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    assert expected in workshop.refuses("plan", recipe=path)


@pytest.mark.parametrize(
    "override", ["", "=", "run.seed", "=3", "run.=3", ".seed=3", "seed=3", "run.seed.x=3", "..=", "a.b=1"]
)
def test_no_override(workshop: Any, override: str) -> None:
    assert len(workshop.refuses("plan", override)) > 30


def test_a_recipe_that_is_a_folder(workshop: Any, tmp_path: Path) -> None:
    assert "no recipe file" in workshop.refuses("plan", recipe=tmp_path)


KEYS = sorted({name for _, name, _ in OPTIONS})
LEAVES = st.one_of(st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.dates())
ANYTHING = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner))
TABLES = st.dictionaries(
    st.sampled_from(["run", "calibration", "plan", "repair", "finetune", "analyses", "model", "data", "search", "x"]),
    st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=5), ANYTHING, max_size=3),
    max_size=4,
)


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)  # Unicode's tables are read at first use
@given(tables=TABLES)
def test_random_tables_bind_or_are_refused(tables: dict[str, Any]) -> None:
    whole = {"model": {"name": "lenet"}, "data": {"name": "digits"}, **tables}
    with suppress(UserError):  # anything else is a fault
        bind_recipe(recipe.Recipe("random", whole, "", Path()))


@settings(deadline=None)
@given(text=st.text(max_size=200))
def test_random_text_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.getbasetemp() / "random.toml"
    path.write_text(text, encoding="utf-8", errors="replace")
    with suppress(UserError):
        recipe.read(path)

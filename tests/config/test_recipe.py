"""Recipes bound to signatures."""

from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infoprune.config import recipe
from infoprune.errors import UserError
from infoprune.pipeline import settings
from infoprune.planning.ranking import BEST


def verb(model: object, *, epochs: int = 3, rate: float = 0.1, kind: Literal["a", "b"] = "a", name: str | None = None):
    """Does it.

    Args:
        model: not an option.
        epochs: passes over
            the data.
        rate: how fast.
    """


def test_defaults_and_values_meet() -> None:
    assert recipe.bind(verb, {"rate": 1}, "verb") == {"epochs": 3, "rate": 1.0, "kind": "a", "name": None}


def test_help_comes_from_the_docstring() -> None:
    assert recipe.options(verb)["epochs"].help == "passes over the data."
    assert "model" not in recipe.options(verb)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"epoch": 3}, r"no option 'epoch' in \[verb\]; did you mean 'epochs'\?"),
        ({"zzz": 3}, r"no option 'zzz' in \[verb\]; known: epochs, kind, name, rate"),
        ({"epochs": "3"}, r"\[verb\] epochs = '3': expected int, got str"),
        ({"epochs": 3.5}, r"\[verb\] epochs = 3.5: expected int, got float"),
        ({"epochs": True}, r"\[verb\] epochs = True: expected int, got bool"),
        ({"kind": "c"}, r"\[verb\] kind = 'c': expected 'a' or 'b'"),
        ({"model": 1}, r"no option 'model'"),
        ({"epochs": 10**13}, r"\[verb\] epochs = 10000000000000: expected a finite number, of size 1e\+12 at most"),
        ({"rate": float("nan")}, r"\[verb\] rate = nan: expected a finite number"),
    ],
)
def test_wrong_options_are_named(table: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        recipe.bind(verb, table, "verb")


def test_required_option() -> None:
    def needs(*, root: str) -> None: ...

    with pytest.raises(UserError, match=r"\[data\] needs 'root' \(str\)"):
        recipe.bind(needs, {}, "data")


def test_overrides(tmp_path: Path) -> None:
    path = tmp_path / "own.toml"
    path.write_text("[finetune]\nepochs = 5\n")
    found = recipe.read(path, ["finetune.epochs=0", "data.root=/some/where", 'plan.only=["a"]', "analyses.l2.x=1e3"])
    assert found.table("finetune") == {"epochs": 0}
    assert found.table("data") == {"root": "/some/where"}
    assert found.table("plan") == {"only": ["a"]}
    assert found.table("analyses") == {"l2": {"x": 1000.0}}
    assert found.name == "own"
    assert "# --set finetune.epochs=0" in found.text


@pytest.mark.parametrize(
    ("override", "name", "value"),
    [
        ('analyses."ana:A"={}', "ana:A", {}),
        ("analyses.'my/own.py:A' = {}", "my/own.py:A", {}),
        ('analyses."a=b"="c=d"', "a=b", "c=d"),
        ('analyses."\\u0061"=a=b', "a", "a=b"),
        ("analyses.ana:A={}", "ana:A", {}),
    ],
)
def test_quoted_keys_are_read_as_toml(override: str, name: str, value: object) -> None:
    tables: dict[str, Any] = {}
    recipe.apply_overrides(tables, [override])
    assert tables == {"analyses": {name: value}}


@pytest.mark.parametrize(
    "override", ['a.""=3', '"a.b"=3', "epochs=3", "finetune.epochs", "=3", "a.=3", ".a=3", "finetune.epochs.x=3"]
)
def test_malformed_overrides(tmp_path: Path, override: str) -> None:
    path = tmp_path / "own.toml"
    path.write_text("[finetune]\nepochs = 5\n")
    with pytest.raises(UserError, match="--set"):
        recipe.read(path, [override])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[run\n", "not valid TOML"),
        (b"\xff\xfe", "not valid TOML"),
        (b"seed = 1\n", "'seed' stands outside any table"),
    ],
)
def test_unreadable_recipes(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "bad.toml"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        recipe.read(path)


def test_missing_recipe_suggests_a_shipped_one() -> None:
    with pytest.raises(UserError, match="did you mean 'digits'"):
        recipe.read("digit.toml")


@given(st.dictionaries(st.text(min_size=1), st.one_of(st.integers(), st.text(), st.booleans(), st.lists(st.floats()))))
def test_any_table_binds_or_is_refused(table: dict[str, object]) -> None:
    try:
        bound = recipe.bind(verb, table, "verb")
    except UserError:
        return
    assert set(bound) == {"epochs", "rate", "kind", "name"}


@pytest.mark.parametrize("name", recipe.shipped())
def test_every_shipped_recipe_binds(name: str) -> None:
    bound = settings.bind_recipe(recipe.read(name))
    ranking = bound.tables["plan"]["rank_by"]
    rankings = bound.tables["choose"]["among"] if ranking == BEST else [ranking]
    assert {part for name in rankings for part in name.split("+")} <= bound.analyses.keys()
    assert recipe.read(name).text.startswith("# "), "the first line says what the recipe is for"


def test_rankings_to_choose_from_are_known_analyses() -> None:
    with pytest.raises(UserError, match="no analysis 'taylr'; did you mean 'taylor'"):
        settings.bind_recipe(recipe.read("digits", ["plan.rank_by=best", "choose.among=['l2+taylr']"]))
    with pytest.raises(UserError, match="among is empty; name the rankings to try"):
        settings.bind_recipe(recipe.read("digits", ["plan.rank_by=best", "choose.among=[]"]))
    for among in ("['l2+']", "['best']", "['']"):
        with pytest.raises(UserError, match="no analysis '"):
            settings.bind_recipe(recipe.read("digits", ["plan.rank_by=best", f"choose.among={among}"]))
    untouched = settings.bind_recipe(recipe.read("digits", ["choose.among=['l2+taylor']"]))
    assert "taylor" not in untouched.analyses, "nothing is chosen there"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("finetun.epochs=3", r"no table \[finetun\] in recipes; did you mean 'finetune'"),
        ("analyses.information_botleneck.beta=1", "did you mean 'information_bottleneck'"),
        ("plan.rank_by=taylr", "no analysis 'taylr'; did you mean 'taylor'"),
        ("model.name=resnet", "no model 'resnet'"),
        ("model.name=5", r"\[model\] needs name"),
        ("model.depht=5", "did you mean 'depth'"),
        ("data.name=digit", "did you mean 'digits'"),
        ("calibration.split=test", "the test split is for the final figure"),
        ("calibration.batches=0", "expected a whole number from 1 to 1,000,000"),
        ("run.batch_size=0", "expected a whole number from 1 to 1,048,576"),
        ("run.seed=-1", "expected a whole number from 0 to 4,294,967,295"),
        ("analyses.l2=3", "expected a table"),
        ("model.weights=3", "expected a file name"),
    ],
)
def test_recipes_are_checked_before_anything_runs(override: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        settings.bind_recipe(recipe.read("digits", [override]))


@pytest.mark.parametrize("table", settings.tables())
def test_every_table_is_described(table: str) -> None:
    for name, kind, _, help in settings.describe(table):
        assert kind, f"{table}.{name} has no type"
        assert help, f"{table}.{name} is not described"

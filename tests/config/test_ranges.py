"""Every number of every recipe table has a range: declared once, checked as the recipe is read, shown to the user."""

import json
import math
import subprocess
import sys
import typing
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import pytest
from msgspec import Meta

from infoprune.config.ranges import Epochs, Seed, Share, Width, check, in_range, limits_of
from infoprune.config.recipe import Option, bind, options
from infoprune.errors import UserError
from infoprune.pipeline import settings
from tests.cli.test_cli import call

SKIPPED = {"finetune": ("seed",), "train": ("seed",)}  # [run] seed stands for them


class Number(NamedTuple):
    """One place of an option where a number stands: in the option itself, or in a list or table that it takes."""

    table: str
    option: str
    kind: type
    limits: Meta | None
    placed: Callable[[Any], Any]

    @property
    def ends(self) -> list[tuple[Any, Any, Any]]:
        """For either bound: the bound, the last value inside and the first outside."""
        assert self.limits is not None
        found = []
        for closed, opened, direction in (
            (self.limits.ge, self.limits.gt, -math.inf),
            (self.limits.le, self.limits.lt, math.inf),
        ):
            bound = opened if closed is None else closed
            step = int(math.copysign(1, direction))
            beyond = bound + step if self.kind is int else math.nextafter(bound, direction)
            before = bound - step if self.kind is int else math.nextafter(bound, -direction)
            found.append((bound, before, self.kind(bound)) if closed is None else (bound, self.kind(bound), beyond))
        return found


def places(hint: Any, placed: Callable[[Any], Any] = lambda value: value) -> Iterator[tuple[type, Any, Any]]:
    """Kind, range and place of every number in a type hint."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint in (int, float) or (origin is Annotated and arguments[0] in (int, float)):
        yield arguments[0] if arguments else hint, limits_of(hint), placed
    elif origin in (list, Sequence):
        yield from places(arguments[0], lambda value: placed([value]))
    elif origin is dict:
        yield from places(arguments[1], lambda value: placed({"conv1": value}))
    elif origin is not typing.Literal:
        for argument in arguments:
            yield from places(argument, placed)


def known(table: str) -> dict[str, Option]:
    return options(settings.declaring(table), skip=SKIPPED.get(table, ()))


NUMBERS = [
    Number(table, option.name, *place)
    for table in settings.tables()
    for option in known(table).values()
    for place in places(option.type)
]
IDS = [f"{number.table}.{number.option}" for number in NUMBERS]


def bound(table: str, **values: Any) -> dict[str, Any]:
    """A table with these values, and any text where an option is required."""
    needed = {name: "x" for name, option in known(table).items() if option.default is Option.REQUIRED}
    return bind(settings.declaring(table), {**needed, **values}, table, skip=SKIPPED.get(table, ()))


def test_numbers_are_found_in_every_kind_of_table() -> None:
    some = {"finetune.epochs", "run.seed", "model.vgg.widths", "data.digits.shift", "analyses.redundancy.share"}
    assert some | {"plan.masks", "compare.shares"} <= set(IDS)
    assert len(NUMBERS) > 150


@pytest.mark.parametrize("number", NUMBERS, ids=IDS)
def test_every_number_has_both_bounds(number: Number) -> None:
    limits = number.limits
    assert limits is not None
    assert (limits.ge is None) != (limits.gt is None)
    assert (limits.le is None) != (limits.lt is None)
    assert limits.multiple_of is None


@pytest.mark.parametrize("number", NUMBERS, ids=IDS)
def test_values_just_outside_are_refused_and_those_just_inside_taken(number: Number) -> None:
    ends = number.ends
    for _, inside, outside in ends:
        taken = number.placed(inside)
        assert bound(number.table, **{number.option: taken})[number.option] == taken
        refused = number.placed(outside)
        with pytest.raises(UserError) as caught:
            bound(number.table, **{number.option: refused})
        said = str(caught.value)
        assert said.startswith(f"[{number.table}] {number.option} = {refused!r}: expected "), said
        assert f"{ends[0][0]:,}" in said, said
        assert f"{ends[1][0]:,}" in said, said
        with pytest.raises(UserError, match=rf"{number.option} = .*: expected "):
            settings.declaring(number.table)(**{number.option: refused})  # in Python too, before anything else


@pytest.mark.parametrize("number", NUMBERS, ids=IDS)
def test_what_is_no_number_is_refused(number: Number) -> None:
    for value in (math.nan, math.inf, True, "3"):
        if number.option == "masks" and value == "3":
            continue  # names a file
        with pytest.raises(UserError, match=rf"\[{number.table}\] {number.option} = "):
            bound(number.table, **{number.option: number.placed(value)})


@pytest.mark.parametrize("table", settings.tables())
def test_defaults_lie_within_their_ranges(table: str) -> None:
    given = {
        name: list(option.default) if isinstance(option.default, tuple) else option.default
        for name, option in known(table).items()
        if option.default not in (None, Option.REQUIRED)
    }
    taken = bound(table, **given)
    assert {name: taken[name] for name in given} == given


def test_a_number_that_would_never_end_is_refused_at_once(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "infoprune", "run", "digits", "--out", str(tmp_path / "run")]
    done = subprocess.run(
        [*command, "--set", "finetune.epochs=1000000000000"], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 2
    said = " ".join(done.stderr.split())
    assert "[finetune] epochs = 1000000000000: expected a whole number from 0 to 100,000" in said
    assert not (tmp_path / "run").exists()


def test_ranges_are_shown() -> None:
    shown = " ".join(call("options", "finetune").stdout.split())
    assert "leaves the model as it is. (int, 0 to 100,000)" in shown
    rows = {row["option"]: row["type"] for row in json.loads(call("options", "finetune", "--json").stdout)}
    assert rows["epochs"] == "int, 0 to 100,000"
    assert rows["learning_rate"] == "float, 0 to 100 or nothing"
    rows = {row["option"]: row["type"] for row in json.loads(call("options", "sensitivity", "--json").stdout)}
    assert rows["shares"] == "list of float, each above 0 and below 1"


def test_an_entry_of_a_list_is_named() -> None:
    with pytest.raises(UserError, match=r"widths = \[8, 0\]: expected a list of whole .* \(at entry \[1\]\)"):
        bound("model.lenet", widths=[8, 0])


def test_calls_are_checked_wherever_the_number_stands() -> None:
    @in_range("[made]")
    def made(epochs: Epochs, *, share: Share | None = None, masks: dict[str, list[Width]] | str = "") -> str:
        return f"{epochs} {share} {masks}"

    assert made(3, share=0.5, masks={"a": [1]}) == "3 0.5 {'a': [1]}"
    assert made(3, share=None, masks="file.json") == "3 None file.json"
    with pytest.raises(UserError, match=r"\[made\] epochs = -1: expected a whole number from 0 to 100,000"):
        made(-1)
    with pytest.raises(UserError, match=r"share = nan: expected a number from 0 to 1"):
        made(1, share=math.nan)
    with pytest.raises(UserError, match=r"masks = \{'a': \[1, 0\]\}"):
        made(1, masks={"a": [1, 0]})
    assert made.__name__ == "made"
    check(made, "[made]", {"unknown": -1, "epochs": 10})  # what is not declared passes


def test_seeds_are_what_numpy_takes() -> None:
    import numpy as np

    limits = limits_of(Seed)
    assert limits is not None
    np.random.RandomState(limits.le)
    with pytest.raises(ValueError, match="Seed must be between"):
        np.random.RandomState(limits.le + 1)


def test_long_values_are_cut_in_messages() -> None:
    with pytest.raises(UserError) as caught:
        bound("model.lenet", hidden=[0] * 100_000)
    said = str(caught.value)
    assert said.startswith("[model.lenet] hidden = [0, 0, ")
    assert "…: expected a list of whole numbers, each from 1 to 65,536" in said
    assert len(said) < 400

"""Recipes: TOML tables bound to the keyword-only arguments of the functions they configure.

The signature is the schema: name, type, range, default and description of an option exist once, where it is used.
"""

import inspect
import re
import tomllib
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from infoprune.config.ranges import expected, shown, type_name
from infoprune.errors import UserError, did_you_mean

Table = dict[str, Any]
# The largest number that an option without a range of its own takes, as in functions of a user's own: seeds are
# multiplied by numbers up to 10⁶ in 64 bits.
MOST = 10**12


@dataclass(frozen=True)
class Option:
    """One option of a function as its signature states it; `default` is `REQUIRED` where it has none."""

    REQUIRED: typing.ClassVar[Any] = inspect.Parameter.empty

    name: str
    type: Any
    default: Any
    help: str


@dataclass(frozen=True)
class Recipe:
    """A recipe as read, before its tables are bound.

    Attributes:
        name: the file's stem.
        tables: the parsed TOML.
        text: what the tables say, as TOML, for the report.
        folder: where the file lies; relative paths in it are also looked for here.
    """

    name: str
    tables: Mapping[str, Any]
    text: str
    folder: Path

    def table(self, name: str) -> Table:
        """A copy of one table; empty where the recipe has none."""
        return dict(self.tables.get(name, {}))


def shipped() -> dict[str, Path]:
    """The recipes that come with the package, by name."""
    package = Path(__file__).parent.parent
    for folder in (package / "recipes", package.parent / "recipes"):
        if folder.is_dir():
            return {path.stem: path for path in sorted(folder.glob("*.toml"))}
    return {}


def read(source: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Reads a recipe by path or by the name of a shipped one, then applies `table.key=value` overrides.

    Raises:
        UserError: where the file is missing or no TOML, or an override is malformed.
    """
    path = Path(source)
    if not path.is_file():
        known = shipped()
        if str(source) not in known:
            raise UserError(
                f"no recipe file '{source}' and no shipped recipe of that name{did_you_mean(path.stem, known)}"
            )
        path = known[str(source)]
    try:
        text = path.read_text(encoding="utf-8")
        tables = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # of the syntax, the encoding, or endless numbers and nesting
        raise UserError(f"'{path}' is not valid TOML: {error}") from error
    except OSError as error:
        raise UserError(f"cannot read '{path}': {error.strerror}; check the file's permissions") from error
    for name, table in tables.items():
        if not isinstance(table, dict):
            raise UserError(f"'{path}': '{name}' stands outside any table; put it under one, such as [run]")
    apply_overrides(tables, overrides)
    changes = "".join(f"# --set {override}\n" for override in overrides)
    return Recipe(name=path.stem, tables=tables, text=text + changes, folder=path.resolve().parent)


def apply_overrides(tables: Table, overrides: Sequence[str]) -> None:
    """Sets `table.key=value` in tables, in place.

    Raises:
        UserError: for an override that is malformed.
    """
    for override in overrides:
        _override(tables, override)


def _override(tables: Table, override: str) -> None:
    (*path, key), value = _keys_and_value(override)
    if "=" not in override or not path or not all([*path, key]):
        raise UserError(f"cannot read --set {override}; write it as table.key=value, such as --set finetune.epochs=3")
    here = tables
    for name in path:
        here = here.setdefault(name, {})
        if not isinstance(here, dict):
            raise UserError(f"--set {override}: '{name}' is a value in the recipe, not a table")
    here[key] = _value(value.strip())


def _keys_and_value(override: str) -> tuple[list[str], str]:
    """The keys before the "=", quoted ones as TOML reads them, and the text after it.

    >>> _keys_and_value('analyses."own.py:A".x=3')
    (['analyses', 'own.py:A', 'x'], '3')
    """
    for place in (index for index, character in enumerate(override) if character == "="):  # quoted keys may hold one
        try:
            inner: Any = tomllib.loads(f"{override[:place].strip()} = 0")
        except (ValueError, RecursionError):
            continue
        keys: list[str] = []
        while isinstance(inner, dict) and len(inner) == 1:
            ((key, inner),) = inner.items()
            keys.append(key)
        if keys and inner == 0:
            return keys, override[place + 1 :]
    dotted, _, value = override.partition("=")  # names such as own:A need no quotes here
    return dotted.strip().split("."), value


def _value(text: str) -> Any:
    """A TOML value where the text is one, the bare text otherwise, so that strings need no quotes on a command line."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        return text


def options(function: Callable[..., Any], *, skip: Sequence[str] = ()) -> dict[str, Option]:
    """The options of a function: its keyword-only arguments, those in `skip` left out.

    >>> def step(model, *, epochs: int = 3) -> None:
    ...     '''Does it.
    ...
    ...     Args:
    ...         epochs: passes over the data.
    ...     '''
    >>> options(step)
    {'epochs': Option(name='epochs', type=<class 'int'>, default=3, help='passes over the data.')}
    """
    target = function.__init__ if inspect.isclass(function) else function
    hints = typing.get_type_hints(target, include_extras=True)
    helps = _argument_docs(function)
    return {
        parameter.name: Option(
            parameter.name, hints.get(parameter.name, Any), parameter.default, helps.get(parameter.name, "")
        )
        for parameter in inspect.signature(function).parameters.values()
        if parameter.kind is parameter.KEYWORD_ONLY and parameter.name not in skip
    }


def _argument_docs(function: Callable[..., Any]) -> dict[str, str]:
    """The entries of a Google-style docstring's Args section, each joined to one line."""
    section = re.search(r"^Args:\n((?:[ ]+.*\n?|\n)*)", inspect.getdoc(function) or "", flags=re.MULTILINE)
    helps: dict[str, str] = {}
    name = ""
    for line in section.group(1).splitlines() if section else ():
        entry = re.match(r"    (\w+(?:, \w+)*):\s*(.*)", line)
        if entry:
            name = entry.group(1)
            for each in name.split(", "):
                helps[each] = entry.group(2).strip()
        elif line.strip() and name:
            for each in name.split(", "):
                helps[each] += " " + line.strip()
    return helps


def bind(function: Callable[..., Any], table: Mapping[str, Any], where: str, *, skip: Sequence[str] = ()) -> Table:
    """All keyword arguments for `function`, from a recipe table and the defaults.

    Args:
        function: the function, or the class, whose keyword-only arguments are the options.
        table: what the recipe says.
        where: the table's name, for messages.
        skip: keyword-only arguments that are not for recipes.

    Raises:
        UserError: for an unknown option, a value of the wrong type or out of range, or a required option that is
            missing.
    """
    known = options(function, skip=skip)
    for key in table:
        if key not in known:
            raise UserError(f"no option '{key}' in [{where}]{did_you_mean(key, known)}")
    bound: Table = {}
    for name, option in known.items():
        if name not in table:
            if option.default is Option.REQUIRED:
                raise UserError(
                    f"[{where}] needs '{name}' ({type_name(option.type)}): {option.help or 'it is required'}"
                )
            bound[name] = option.default
            continue
        bound[name] = _converted(table[name], option, f"[{where}] {name} = {shown(table[name])}")
    return bound


def _converted(value: Any, option: Option, where: str) -> Any:
    """A value of the type that an option has."""
    try:
        converted = msgspec.convert(value, option.type, strict=True)
    except msgspec.ValidationError as error:
        problem, _, place = str(error).partition(" - at ")
        if place:
            detail = f" (at entry {place.strip('`$')})"
        else:
            detail = f", got {type(value).__name__}" if ", got " in problem else ""  # else it is a number out of range
        raise UserError(f"{where}: expected {expected(option.type)}{detail}") from error
    if not _countable(value):
        raise UserError(f"{where}: expected a finite number, of size {MOST:g} at most")
    return converted


def _countable(value: Any) -> bool:
    """Whether all numbers in a value are finite and small enough for float32, and for 64 bits even when multiplied."""
    if isinstance(value, list):
        return all(map(_countable, value))
    if isinstance(value, dict):
        return all(map(_countable, value.values()))
    return not isinstance(value, int | float) or abs(value) <= MOST  # False for NaN

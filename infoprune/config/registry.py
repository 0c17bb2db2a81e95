"""Finds what a recipe names: our own folders by file name, the user's own code by dotted path or file path.

The folder is the registry. A file `models/NAME.py` with a function `build`, or `datasets/NAME.py` with a function
`load`, is found under NAME; every class in `analyses/*.py` that has `observe` and `conclude` is found under its own
name in snake case.
"""

import importlib
import importlib.util
import inspect
import pkgutil
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, get_args

from infoprune.errors import UserError, did_you_mean, told

Kind = Literal["analyses", "models", "datasets"]
# What a plan can go by in an analysis's finding; an analysis says in `gives` what of it its own hold.
Given = Literal["importance", "widths", "removable"]
ENTRY = {"models": "build", "datasets": "load"}
# Where a user's own code is looked for besides the working directory: folders of recipes.
_FOLDERS: list[Path] = []


def look_in(folder: Path) -> None:
    """Has code that a recipe names looked for beside the recipe too."""
    _FOLDERS[:] = [folder, *(each for each in _FOLDERS if each != folder)]  # the recipe at hand comes first


def folders() -> list[Path]:
    """Where a user's own code is looked for, in this order: the working directory, then the folders of recipes."""
    return [Path.cwd(), *_FOLDERS]


def names(kind: Kind) -> list[str]:
    """All names of one kind that ship with the package.

    >>> "cifar_resnet" in names("models")
    True
    """
    return sorted(_analyses() if kind == "analyses" else _modules(kind))


def find(kind: Kind, name: str) -> Callable[..., Any]:
    """The class or function behind a name of ours, `package.module:function` or `path/to/file.py:function`.

    Raises:
        UserError: where there is no such name, module or function.
    """
    if ":" in name:
        return users_own(name)
    if kind == "analyses" and name in (known := _analyses()):
        return known[name]
    if kind != "analyses" and name in _modules(kind):
        found: Callable[..., Any] = getattr(importlib.import_module(f"infoprune.{kind}.{name}"), ENTRY[kind])
        return found
    what = {"analyses": "analysis", "models": "model", "datasets": "data set"}[kind]
    raise UserError(f"no {what} '{name}'{did_you_mean(name, names(kind))} (your own: package.module:function)")


def giving(what: Given) -> list[str]:
    """Our analyses whose findings hold importance, widths or removable blocks.

    >>> giving("removable")
    ['data_processing']
    """
    return [name for name in names("analyses") if _gives(name, what)]


def check_given(name: str, what: Given, option: str) -> None:
    """Refuses an analysis that cannot do what an option names it for; a user's own is taken to give everything.

    Raises:
        UserError: where it gives nothing of the kind, or there is no such analysis.
    """
    if not _gives(name, what):
        verb = {"importance": "gives no importance to rank by", "widths": "recommends no widths"}
        raise UserError(
            f"{option}: '{name}' {verb.get(what, 'names no blocks to remove')}; analyses that do: "
            f"{', '.join(giving(what))}"
        )


def _gives(name: str, what: Given) -> bool:
    gives = getattr(find("analyses", name), "gives", (what,))
    if not isinstance(gives, tuple | list) or not all(each in get_args(Given) for each in gives):
        raise UserError(f"analysis '{name}': gives is {gives!r}; expected a tuple of {', '.join(get_args(Given))}")
    return what in gives


def _modules(kind: Kind) -> list[str]:
    package = importlib.import_module(f"infoprune.{kind}")
    return [module.name for module in pkgutil.iter_modules(package.__path__) if not module.name.startswith("_")]


def _analyses() -> dict[str, Callable[..., Any]]:
    found: dict[str, Callable[..., Any]] = {}
    for module_name in _modules("analyses"):
        module = importlib.import_module(f"infoprune.analyses.{module_name}")
        for name, member in inspect.getmembers(module, inspect.isclass):
            own = member.__module__ == module.__name__ and not name.startswith("_")
            if (
                own
                and hasattr(member, "observe")
                and hasattr(member, "conclude")
                and not getattr(member, "_is_protocol", False)
            ):
                found[snake_case(name)] = member
    return found


def snake_case(name: str) -> str:
    """A class's name as a recipe writes it.

    >>> snake_case("InformationBottleneck"), snake_case("L2")
    ('information_bottleneck', 'l2')
    """
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()


def users_own(reference: str) -> Callable[..., Any]:
    """The user's function or class at `package.module:function` or `path/to/file.py:function`.

    Raises:
        UserError: where it cannot be found.
    """
    source, _, name = reference.rpartition(":")
    if not source or not name:
        raise UserError(f"'{reference}' names no function; write package.module:function or path/to/file.py:function")
    module = _from_file(Path(source)) if source.endswith(".py") else _from_package(source)
    found = getattr(module, name, None)
    if not callable(found):
        public = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise UserError(f"'{source}' has no function or class '{name}'{did_you_mean(name, public)}")
    result: Callable[..., Any] = found
    return result


def _from_package(source: str) -> ModuleType:
    try:
        # A user's module commonly lies here or beside the recipe, where an installed command does not look by itself.
        for folder in (Path.cwd(), *_FOLDERS):
            if str(folder) not in sys.path and ("" not in sys.path or folder != Path.cwd()):
                sys.path.append(str(folder))
        return importlib.import_module(source)
    except ModuleNotFoundError as missing:
        raise UserError(
            f"cannot import '{source}': no module named '{missing.name}'; give a dotted path that Python can import "
            "from here, or a file as path/to/file.py:function"
        ) from missing
    except (Exception, SystemExit) as error:  # it is the user's code that runs
        raise UserError(f"importing '{source}' fails: {told(error)}; fix it") from error


def _from_file(path: Path) -> ModuleType:
    places = [folder.joinpath(path.expanduser()) for folder in (Path(), *_FOLDERS)]
    path = next((place for place in places if place.is_file()), path)
    if not path.is_file():
        raise UserError(f"no file '{path}'; a model or data set of your own is named path/to/file.py:function")
    spec = importlib.util.spec_from_file_location(path.stem, path.resolve())
    if spec is None or spec.loader is None:
        raise UserError(f"'{path}' cannot be imported as Python; give a .py file")
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(path.stem, module)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # it is the user's code that runs
        raise UserError(f"importing '{path}' fails: {told(error)}; fix it") from error
    return module

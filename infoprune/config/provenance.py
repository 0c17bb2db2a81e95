"""The source files behind a user's own code: which they are, and a hash of each."""

import ast
import importlib
import pkgutil
import sys
import sysconfig
import warnings
from collections.abc import Collection, Iterator, Sequence
from hashlib import sha256
from importlib.machinery import SOURCE_SUFFIXES, ModuleSpec, PathFinder
from importlib.util import resolve_name
from pathlib import Path

from infoprune.config import registry
from infoprune.errors import UserError

PACKAGE = Path(__file__).resolve().parents[1]
LIBRARIES = {"site-packages", "dist-packages"}


def sources(reference: str) -> dict[str, str]:
    """SHA-256 of every source file that a user's own reference leads to, found without importing any of it.

    These are the file of the module itself and all that it imports, directly or through others, inside functions too,
    as far as they lie in its folder, beside its top-level package, in the working directory or in the folder of a
    recipe. Where two of these folders have a module of one name, both count: which one Python takes depends on how
    the command was started. Installed packages, Python's own modules and infoprune are left out; of a reference into
    an installed package the module's own file is all.

    What no reading of the code can tell is not followed: imports whose name is computed (`import_module(name)`),
    modules in other folders that the code adds to `sys.path`, and data files that it opens.

    Args:
        reference: `package.module:function` or `path/to/file.py:function`, looked for as `registry.users_own` does;
            a name of ours, without a colon, has no sources.

    Returns:
        File name -> hexadecimal hash. Names are relative to the folder of the module or, for a package, to the folder
        that holds the top-level package, with `/` between folders, so that moving everything changes nothing.

    Raises:
        UserError: where a file cannot be found or read.
    """
    source, colon, _ = reference.rpartition(":")
    if not colon:
        return {}
    importlib.invalidate_caches()  # files may have come since Python listed a folder
    files, base = _of_file(Path(source)) if source.endswith(".py") else _of_module(source)
    if not files:
        return {}  # built into Python
    if _is_library(files[-1]):
        return {files[-1].relative_to(base).as_posix(): _hash(_read(files[-1]))}
    elsewhere = [folder.absolute() for folder in registry.folders()]
    hashes: dict[str, set[str]] = {}
    for path, digest in _reached(files, list(dict.fromkeys([files[-1].parent, base, *elsewhere]))):
        hashes.setdefault(_name(path, base, elsewhere), set()).add(digest)
    # Files of one name in two folders share an entry.
    return {
        name: found.pop() if len(found) == 1 else _hash(" ".join(sorted(found)).encode())
        for name, found in sorted(hashes.items())
    }


def _of_file(path: Path) -> tuple[list[Path], Path]:
    """The file, and the folder that names are relative to."""
    places = [folder / path.expanduser() for folder in registry.folders()]
    file = next((place.resolve() for place in places if place.is_file()), None)
    if file is None:
        raise UserError(f"no file '{path}'; a model or data set of your own is named path/to/file.py:function")
    base = file.parent
    while (base / "__init__.py").is_file() and base != base.parent:
        base = base.parent
    return [file], base


def _of_module(name: str) -> tuple[list[Path], Path]:
    """The module's file after those of the packages that hold it, and the folder of the outermost one."""
    top, _, rest = name.partition(".")
    spec = PathFinder.find_spec(top, [*sys.path, *map(str, registry.folders())]) or _by_other_finders(top)
    if spec is None or not (spec.has_location or spec.submodule_search_locations):
        return [], Path()
    packages = [str(Path(place).absolute()) for place in spec.submodule_search_locations or ()]
    base = Path(packages[0] if packages else str(spec.origin)).absolute().parent
    return _origin(spec) + (_files(rest, packages) if rest else []), base


def _by_other_finders(name: str) -> ModuleSpec | None:
    """Of packages that are installed in editable mode, or built into Python."""
    found = (finder.find_spec(name, None) for finder in sys.meta_path if hasattr(finder, "find_spec"))
    return next((spec for spec in found if spec is not None), None)


def _reached(files: Sequence[Path], folders: Sequence[Path]) -> Iterator[tuple[Path, str]]:
    """These files and all that they import, each once, with its hash."""
    waiting, seen = list(files), set()
    while waiting:
        path = waiting.pop()
        if path in seen or _is_library(path):
            continue
        seen.add(path)
        content = _read(path)
        yield path, _hash(content)
        if path.suffix in SOURCE_SUFFIXES:
            for name, level in _imports(content):
                waiting += _imported(name, level, path, folders)


def _imports(content: bytes) -> Iterator[tuple[str, int]]:
    """Dotted names that a module imports, and for relative imports the number of dots; none of a broken module."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the user's code: it is not ours to judge
            tree = ast.parse(content)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return
    callers = _import_functions(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, 0) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            # What is imported may be a module itself, or a name in the one before it.
            yield from (((f"{node.module}." if node.module else "") + alias.name, node.level) for alias in node.names)
        elif isinstance(node, ast.Call) and (name := _literal_import(node, callers)):
            yield name.lstrip("."), len(name) - len(name.lstrip("."))


def _import_functions(tree: ast.AST) -> set[str]:
    """The names that a module has for `import_module` and `__import__`: their own, and those it gives them."""
    names = {"import_module", "__import__"}
    nodes = list(ast.walk(tree))
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and node.module in ("importlib", "builtins"):
            names |= {alias.asname for alias in node.names if alias.asname and alias.name in names}
    for node in nodes:
        if isinstance(node, ast.Assign) and _called(node.value) in names:
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return names


def _called(function: ast.expr) -> str:
    """The last part of a function's name; empty where it has none."""
    return function.attr if isinstance(function, ast.Attribute) else str(getattr(function, "id", ""))


def _literal_import(call: ast.Call, callers: Collection[str]) -> str:
    """The name in `importlib.import_module("name")`, `import_module(".name", "package")` or `__import__("name")`.

    A relative name is made absolute where the call says the package; it stays relative to the file where the package
    is an expression, which in practice is `__package__`. Empty for any other call.
    """
    if _called(call.func) not in callers:
        return ""
    given: dict[str | None, ast.expr] = dict(zip(("name", "package"), call.args, strict=False))
    given |= {keyword.arg: keyword.value for keyword in call.keywords}
    name, package = _text(given.get("name")), _text(given.get("package"))
    if not (name.startswith(".") and package):
        return name
    try:
        return resolve_name(name, package)
    except ImportError:  # it goes beyond the top-level package
        return ""


def _text(value: ast.expr | None) -> str:
    """What a literal string says; empty for anything else."""
    return value.value if isinstance(value, ast.Constant) and isinstance(value.value, str) else ""


def _imported(name: str, level: int, path: Path, folders: Sequence[Path]) -> list[Path]:
    """The files that an import in `path` runs, in all folders that hold them."""
    if not level:
        return [file for folder in folders for file in _files(name, [str(folder)])]
    package = path.parents[min(level, len(path.parents)) - 1]
    inside = any(package.is_relative_to(folder) for folder in folders)
    return _files(name, [str(package)]) if inside else []


def _files(name: str, places: Sequence[str]) -> list[Path]:
    """The files that importing a dotted name runs, of packages on the way too, as far as it leads."""
    files: list[Path] = []
    for part in name.split("."):
        if part == "*":  # what a package names in __all__ is imported from it, too
            return files + [file for each in pkgutil.iter_modules(places) for file in _files(each.name, places)]
        spec = PathFinder.find_spec(part, places)
        if spec is None:
            break
        files += _origin(spec)
        places = list(spec.submodule_search_locations or ())
        if not places:
            break
    return files


def _origin(spec: ModuleSpec) -> list[Path]:
    """A module's file; none for a folder without `__init__.py`, or in an archive."""
    path = Path(spec.origin).absolute() if spec.has_location and spec.origin else None
    return [path] if path is not None and path.is_file() else []


def _is_library(path: Path) -> bool:
    """Whether a file is Python's, an installed package's or ours."""
    own = [PACKAGE, *(Path(sysconfig.get_path(kind)) for kind in ("stdlib", "platstdlib"))]
    return bool(LIBRARIES.intersection(path.parts)) or any(path.is_relative_to(folder) for folder in own)


def _name(path: Path, base: Path, elsewhere: Sequence[Path]) -> str:
    """The file's name relative to the module's base, or else to the innermost folder that holds it."""
    folders = [base, *sorted(elsewhere, key=lambda folder: -len(folder.parts))]
    return path.relative_to(next(folder for folder in folders if path.is_relative_to(folder))).as_posix()


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read '{path}': {error.strerror or error}; check the file's permissions") from error


def _hash(content: bytes) -> str:
    return sha256(content).hexdigest()

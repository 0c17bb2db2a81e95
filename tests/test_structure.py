"""Rules that no linter knows: packages import downwards only, one package per tool, no chains of base classes."""

import ast
import graphlib
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "infoprune"
# A package imports those below it; packages on one level do not import each other.
LEVELS = {
    "errors": 0,
    "utils": 1,
    "information": 1,
    "config": 2,
    "graph": 2,
    "data": 2,
    "evaluation": 3,
    "models": 3,
    "datasets": 3,
    "analyses": 4,
    "repairing": 4,
    "planning": 5,
    "pruning": 6,
    "io": 7,
    "training": 8,
    "exporting": 8,
    "reporting": 8,
    "pipeline": 9,
    "cli": 10,
    "__main__": 11,
}
TOOLS = {
    "torch_pruning": {"graph", "pruning"},
    "matplotlib": {"reporting"},
    "jinja2": {"reporting"},
    "onnx": {"exporting"},
    "onnxruntime": {"exporting"},
    "onnxscript": {"exporting"},
    "safetensors": {"io", "exporting"},
    "timm": {"models"},
    "filelock": {"pipeline"},
    "click": {"cli"},
    "rich": {"cli", "utils"},
    "IPython": {"utils"},
}
FILES = sorted(PACKAGE.rglob("*.py"))
MODULES = {".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__") for path in FILES}


def name_of(path: Path) -> str:
    """A file's place in the package."""
    return path.relative_to(PACKAGE).as_posix()


def package_of(path: Path) -> str:
    """The package, or the module at the root, that a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path, inside_functions: bool = True) -> Iterator[str]:
    """Dotted names of what a file imports; those of modules where a module is imported."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree) if inside_functions else tree.body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide the package that they come from"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole.removeprefix("infoprune.") in MODULES else str(node.module)


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_packages_import_downwards(path: Path) -> None:
    own = package_of(path)
    if own == "__init__":
        return
    assert own in LEVELS, f"give '{own}' a level"
    for name in imports(path):
        other = name.split(".")[1] if name.startswith("infoprune.") else own
        assert other == own or LEVELS[other] < LEVELS[own], f"{own} imports {name}"


def test_modules_import_in_no_circle() -> None:
    graph = {}
    for path in FILES:
        module = ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")
        found = (name.removeprefix("infoprune.") for name in imports(path, inside_functions=False))
        graph[module] = {name for name in found if name in MODULES and name != module}
    graphlib.TopologicalSorter(graph).prepare()  # raises with the circle where there is one


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_each_tool_belongs_to_its_packages(path: Path) -> None:
    for name in imports(path):
        tool = name.split(".")[0]
        assert package_of(path) in TOOLS.get(tool, {package_of(path)}), f"{package_of(path)} imports {tool}"


def test_the_root_holds_little() -> None:
    assert {path.name for path in PACKAGE.glob("*.py")} == {"__init__.py", "__main__.py", "errors.py"}


def test_no_class_inherits_to_chain_steps() -> None:
    """The steps of a run are functions of a context; no class there has a base class of the package."""
    for path in (PACKAGE / "pipeline").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                assert {ast.unparse(base) for base in node.bases} <= {"Protocol"}, f"{name_of(path)}: {node.name}"


def test_every_package_has_tests_of_its_own() -> None:
    tests = {path.name for path in Path(__file__).parent.iterdir() if path.is_dir()}
    packages = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()}
    assert packages <= tests

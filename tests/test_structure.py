"""The house rules that no linter knows: who may import whom, and one door per tool."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "infoprune"
# Higher rooms import lower ones; rooms on one floor do not import each other.
FLOORS = {
    "errors": 0,
    "allocator": 0,
    "modes": 1,
    "displaying": 0,
    "notebook": 0,
    "shortening": 2,
    "distributed": 1,
    "information": 1,
    "artifacts": 1,
    "ranges": 1,
    "recipe": 2,
    "registry": 1,
    "samples": 1,
    "encoding": 2,
    "fingerprints": 2,
    "splits": 2,
    "observing": 3,
    "planning": 3,
    "pruning": 3,
    "verifying": 2,
    "vetting": 2,
    "repairing": 3,
    "training": 3,
    "profiling": 3,
    "exporting": 3,
    "loaders": 3,
    "store": 3,
    "analyses": 3,
    "models": 3,
    "datasets": 3,
    "checkpoint": 4,
    "reporting": 4,
    "histories": 4,
    "planes": 4,
    "run_directory": 4,
    "resuming": 4,
    "settings": 4,
    "provenance": 4,
    "gathering": 5,
    "workspace": 5,
    "choosing": 6,
    "advising": 7,
    "comparing": 7,
    "pipeline": 7,
    "cli": 8,
    "__main__": 9,
}
# A room of several files: its other files belong to it alone.
ANNEXES = {
    "cutting": "pruning",
    "grouping": "pruning",
    "repeatability": "pruning",
    "timing": "profiling",
    "narrowing": "checkpoint",
    "bounds": "checkpoint",
    "peers": "pruning",
    "starting": "settings",
    "option_tables": "settings",
    "surveying": "choosing",
    "diagnosing": "settings",
}
DOORS = {
    "torch_pruning": {"pruning"},
    "matplotlib": {"reporting"},
    "jinja2": {"reporting"},
    "onnx": {"exporting"},
    "onnxruntime": {"exporting"},
    "onnxscript": {"exporting"},
    "safetensors": {"store", "exporting"},
    "timm": {"models"},
    "filelock": {"run_directory"},
    "click": {"cli"},
    "rich": {"cli", "displaying"},
    "IPython": {"notebook"},
}
FILES = sorted(PACKAGE.rglob("*.py"))


def room_of(path: Path) -> str:
    """The room a file of the package belongs to."""
    name = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    return ANNEXES.get(name, name)


def imports(path: Path) -> list[str]:
    """Dotted names of all that a file imports, inside functions too."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module == "infoprune":
            found += [f"infoprune.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide the room they come from"
            found.append(node.module or "")
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_imports_go_downward(path: Path) -> None:
    room = room_of(path)
    if room == "__init__":
        return
    assert room in FLOORS, f"give '{room}' a floor"
    for name in imports(path):
        if name.startswith("infoprune.") and name != "infoprune.__version__":
            other = room_of(PACKAGE / f"{name.split('.')[1]}.py")
            assert other == room or FLOORS[other] < FLOORS[room], f"{room} imports {other}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_each_tool_has_one_door(path: Path) -> None:
    for name in imports(path):
        tool = name.split(".")[0]
        assert room_of(path) in DOORS.get(tool, {room_of(path)}), f"{room_of(path)} imports {tool}"

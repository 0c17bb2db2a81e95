"""Which source files a user's own code consists of, told without running any of it."""

import shutil
import sys
from hashlib import sha256
from pathlib import Path

import pytest

from infoprune.config import registry
from infoprune.config.provenance import sources
from infoprune.errors import UserError


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, the only place where code is looked for."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setattr(registry, "_FOLDERS", [])
    # Other tests' folders, which importing the user's code has put there.
    monkeypatch.setattr(sys, "path", [place for place in sys.path if "pytest-" not in place])
    return work


def write(folder: Path, **files: str) -> None:
    """Python files by their names, with `__` for `/`."""
    for name, text in files.items():
        path = folder / f"{name.replace('__', '/')}.py".replace("INIT", "__init__")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_names_of_ours_have_no_sources() -> None:
    assert sources("lenet") == {}
    assert sources("builtins:dict") == {}


def test_hashes_are_those_of_the_files(folder: Path) -> None:
    write(folder, nets="import helper", helper="x = 1")
    expected = {path.name: sha256(path.read_bytes()).hexdigest() for path in folder.glob("*.py")}
    assert sources("nets.py:Net") == expected == sources("nets:Net")
    assert len(expected) == 2


@pytest.mark.parametrize(
    "text",
    [
        "import helper",
        "import helper as other, os",
        "from helper import x",
        "from helper import *",
        "def build():\n    if True:\n        import helper",
        "try:\n    import helper\nexcept ImportError:\n    helper = None",
        "import importlib\nimportlib.import_module('helper')",
        "from importlib import import_module\nimport_module(name='helper')",
        "from importlib import import_module as im\nim('helper')",
        "import importlib as il\nil.import_module('helper')",
        "import importlib\nload = importlib.import_module\nload('helper')",
        "__import__('helper')",
        "'\\d'\nimport helper",  # an invalid escape: Python warns about it
    ],
)
def test_every_way_to_import_a_module_is_followed(folder: Path, text: str) -> None:
    write(folder, nets=text, helper="import further", further="", unrelated="")
    assert list(sources("nets.py:Net")) == ["further.py", "helper.py", "nets.py"]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("import pack.inner.deep", {"pack/__init__.py", "pack/inner/__init__.py", "pack/inner/deep.py"}),
        ("from pack import inner", {"pack/__init__.py", "pack/inner/__init__.py"}),
        ("from pack.inner import deep", {"pack/__init__.py", "pack/inner/__init__.py", "pack/inner/deep.py"}),
        ("from pack import anything", {"pack/__init__.py"}),
        ("from pack.other import f", {"pack/__init__.py", "pack/other.py", "pack/beside.py", "pack/inner/__init__.py"}),
        ("from pack import *", {"pack/__init__.py", "pack/other.py", "pack/beside.py", "pack/inner/__init__.py"}),
        ("from plain import part", {"plain/part.py"}),
        ("import pack.missing.x", {"pack/__init__.py"}),
        ("import torch, numpy.linalg, json", set()),
    ],
)
def test_packages_are_followed(folder: Path, text: str, found: set[str]) -> None:
    write(
        folder,
        nets=text,
        pack__INIT="",
        pack__other="from . import beside\nfrom .inner import x",
        pack__beside="from . import other",  # a cycle
        pack__inner__INIT="",
        pack__inner__deep="",
        plain__part="",
    )
    assert set(sources("nets.py:Net")) == {"nets.py", *found}


def test_relative_imports_go_up(folder: Path) -> None:
    write(folder, pack__INIT="", pack__a__INIT="", pack__a__nets="from ..b.c import x\nfrom ....outside import y")
    write(folder, pack__b__INIT="", pack__b__c="import importlib\nimportlib.import_module('..a.d', __package__)")
    write(folder, pack__a__d="", outside="", pack__unrelated="")
    files = {"__init__", "a/__init__", "a/nets", "a/d", "b/__init__", "b/c"}
    assert set(sources("pack.a.nets:Net")) == {f"pack/{name}.py" for name in files}


@pytest.mark.parametrize(
    ("call", "found"),
    [
        ("import_module('.helper', 'pkg')", "pkg/helper.py"),
        ("import_module('.helper2', package='pkg.other')", "pkg/other/helper2.py"),
        ("import_module(name='..helper', package='pkg.other')", "pkg/helper.py"),
        ("import_module('...helper', 'pkg.other')", ""),  # Python refuses it, too
    ],
)
def test_relative_names_start_at_the_package_that_the_call_names(folder: Path, call: str, found: str) -> None:
    write(folder, nets=f"from importlib import import_module\n{call}", helper="", helper2="")
    write(folder, pkg__INIT="", pkg__helper="", pkg__other__INIT="", pkg__other__helper2="")
    files = set(sources("nets:f"))
    assert {name for name in files if not name.endswith("__init__.py")} == {"nets.py"} | {found} - {""}


def test_a_module_by_its_file_is_named_from_its_top_level_package(folder: Path) -> None:
    write(folder, pack__INIT="", pack__nets="from pack.tools import x\nimport near", pack__tools="", pack__near="")
    assert set(sources("pack/nets.py:Net")) == {f"pack/{name}.py" for name in ("__init__", "nets", "tools", "near")}


def test_nothing_is_imported_or_run(folder: Path) -> None:
    write(folder, pack__INIT="raise SystemExit", pack__nets="import unheard_of\nraise SystemExit", unheard_of="1 / 0")
    before = set(sys.modules)
    assert len(sources("pack.nets:Net")) == 3
    assert not {name for name in set(sys.modules) - before if name.startswith(("pack", "unheard"))}


def test_what_is_imported_already_changes_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(folder, nets="import helper", helper="")
    before = sources("nets:Net")
    monkeypatch.setitem(sys.modules, "nets", sys)
    monkeypatch.setitem(sys.modules, "helper", sys)
    assert sources("nets:Net") == before


@pytest.mark.parametrize("text", ["def (", "x = '\0'", "\xff\xfe"])
def test_broken_files_are_hashed_and_not_followed(folder: Path, text: str) -> None:
    write(folder, nets="import broken\nimport helper", helper="", unrelated="")
    (folder / "broken.py").write_bytes(b"import unrelated\n" + text.encode("latin-1"))
    before = sources("nets.py:Net")
    assert set(before) == {"nets.py", "broken.py", "helper.py"}
    (folder / "broken.py").write_bytes(b"other" + text.encode("latin-1"))
    assert [name for name, value in sources("nets.py:Net").items() if value != before[name]] == ["broken.py"]


def test_moving_the_folder_changes_nothing(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(folder, nets="import helper\nfrom pack import x", helper="", pack__INIT="from .x import y", pack__x="")
    before = sources("nets.py:Net")
    assert len(before) == 4
    moved = Path(shutil.copytree(folder, tmp_path / "elsewhere" / "moved"))
    monkeypatch.chdir(tmp_path)
    assert sources(f"{moved}/nets.py:Net") == before
    registry.look_in(moved)
    assert sources("nets.py:Net") == before  # beside a recipe
    assert sources("nets:Net") == before


def test_code_is_looked_for_where_the_registry_looks(folder: Path, tmp_path: Path) -> None:
    recipes = tmp_path / "recipes"
    write(recipes, nets="beside_the_recipe = 1", only="import nets")
    registry.look_in(recipes)
    write(folder, nets="in_the_working_directory = 1")
    assert sources("nets.py:Net") == {"nets.py": sha256(b"in_the_working_directory = 1").hexdigest()}
    assert set(sources("only.py:build")) == {"only.py", "nets.py"}


def test_of_two_modules_of_one_name_both_count(folder: Path, tmp_path: Path) -> None:
    """Which one Python takes depends on how the command was started."""
    recipes = tmp_path / "recipes"
    write(recipes, only="import helper", helper="a")
    write(folder, helper="b")
    registry.look_in(recipes)
    seen = [sources("only.py:build")]
    for place in (recipes, folder):
        write(place, helper=f"changed in {place.name}")
        seen.append(sources("only.py:build"))
    assert [set(each) for each in seen] == [{"only.py", "helper.py"}] * 3
    assert len({each["helper.py"] for each in seen}) == 3
    assert len({each["only.py"] for each in seen}) == 1


def test_of_installed_code_the_module_is_all(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed = folder / "lib" / "site-packages"
    write(installed, theirs__INIT="", theirs__nets="from . import other", theirs__other="")
    monkeypatch.syspath_prepend(str(installed))
    assert set(sources("theirs.nets:Net")) == {"theirs/nets.py"}
    write(folder, nets="from theirs.nets import Net\nfrom infoprune.data.dataset import Data")
    monkeypatch.chdir(Path(registry.__file__).parent.parent)  # where infoprune itself can be found
    assert set(sources(f"{folder}/nets.py:Net")) == {"nets.py"}


def test_a_missing_file_is_named(folder: Path) -> None:
    with pytest.raises(UserError, match=r"no file 'nets\.py'"):
        sources("nets.py:Net")

"""What is handed out: the wheel and the source distribution hold all that the package reads at run time."""

import tarfile
import tomllib
from email.parser import Parser
from pathlib import Path
from zipfile import ZipFile

import pytest
from hatchling.builders.sdist import SdistBuilder
from hatchling.builders.wheel import WheelBuilder

import infoprune

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    (built,) = WheelBuilder(str(ROOT)).build(directory=str(tmp_path_factory.mktemp("wheel")), versions=["standard"])
    return Path(built)


def test_the_wheel_holds_all_that_is_read(wheel: Path) -> None:
    held = {Path(name) for name in ZipFile(wheel).namelist()}
    package = [path for path in (ROOT / "infoprune").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    missing = {path.relative_to(ROOT) for path in package} - held
    assert not missing, f"the wheel lacks {sorted(map(str, missing))}"
    recipes = {Path("infoprune/recipes") / path.name for path in (ROOT / "recipes").glob("*.toml")}
    assert len(recipes) >= 8
    kinds = {path.suffix for path in held if path.parts[0] == "infoprune"}
    assert {Path("infoprune/py.typed"), *recipes} <= held
    assert {".jinja", ".safetensors"} <= kinds
    strangers = {path.parts[0] for path in held} - {"infoprune", f"infoprune-{infoprune.__version__}.dist-info"}
    assert not strangers


def test_the_wheel_says_what_it_is(wheel: Path) -> None:
    archive = ZipFile(wheel)
    inside = f"infoprune-{infoprune.__version__}.dist-info"
    metadata = Parser().parsestr(archive.read(f"{inside}/METADATA").decode())
    assert metadata["Version"] == infoprune.__version__
    assert metadata["License-Expression"] == "Apache-2.0"
    wanted = [line for line in metadata.get_all("Requires-Dist") or () if "extra ==" not in line]
    assert len(wanted) == len(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"])
    assert "infoprune = infoprune.cli:main" in archive.read(f"{inside}/entry_points.txt").decode()


def test_the_source_distribution_builds_the_same_wheel(wheel: Path, tmp_path: Path) -> None:
    (built,) = SdistBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"])
    with tarfile.open(built) as archive:
        archive.extractall(tmp_path, filter="data")
    unpacked = tmp_path / f"infoprune-{infoprune.__version__}"
    for name in ("LICENSE", "README.md", "CITATION.cff", "SECURITY.md", "docs/index.md", "tests/conftest.py"):
        assert (unpacked / name).is_file(), f"the source distribution lacks {name}"
    (again,) = WheelBuilder(str(unpacked)).build(directory=str(tmp_path), versions=["standard"])
    assert set(ZipFile(again).namelist()) == set(ZipFile(wheel).namelist())


def test_the_citation_names_this_version() -> None:
    citation = (ROOT / "CITATION.cff").read_text()
    assert f"\nversion: {infoprune.__version__}\n" in citation
    assert f"\nlicense: {metadata_license()}\n" in citation


def metadata_license() -> str:
    found: str = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["license"]
    return found

"""What becomes of a command whose output cannot be written, and of files that are in its way."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from infoprune import cli
from infoprune.errors import RunError, UserError, out_of_memory, shortages
from infoprune.planning.plan import Plan
from infoprune.reporting import report
from infoprune.reporting.contents import ReportContents

FULL = Path("/dev/full")
QUICK = ["finetune.epochs=0", "evaluate.latency_repeats=1", "calibration.batches=2", "plan.allocation=uniform"]
QUICK = [part for each in (*QUICK, 'export.formats=["state_dict"]') for part in ("--set", each)]
COMMANDS = [["recipes"], ["recipes", "--json"], ["options", "plan"], ["--help"], ["run", "--help"], ["--version"]]
COMMANDS += [["completion", "bash"], ["doctor", "--json"]]


def call(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli.main, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory in which all steps are done."""
    out = tmp_path_factory.mktemp("done") / "run"
    result = call("run", "digits", "--out", out, *QUICK)
    assert result.exit_code == 0, result.output
    return out


def started(arguments: list[str], out: int, *, unbuffered: bool = False) -> tuple[int, str]:
    """A command with standard output at a file descriptor: its exit code, and what it said beside."""
    environment = {**os.environ, "PYTHONUNBUFFERED": "1" if unbuffered else ""}
    command = [sys.executable, "-m", "infoprune", *arguments]
    ended = subprocess.run(command, stdout=out, stderr=subprocess.PIPE, env=environment, timeout=120, check=False)
    return ended.returncode, ended.stderr.decode()


@pytest.mark.skipif(not FULL.exists(), reason="this system has no device that is full")
@pytest.mark.parametrize("unbuffered", [False, True])
@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_a_full_device(arguments: list[str], unbuffered: bool) -> None:
    with FULL.open("w") as full:
        code, said = started(arguments, full.fileno(), unbuffered=unbuffered)
    assert code == 1
    lines = [line for line in said.splitlines() if "…" not in line]
    assert lines == [
        "error: cannot write to standard output: No space left on device; make room there, or send it elsewhere"
    ]


@pytest.mark.skipif(not FULL.exists(), reason="this system has no device that is full")
@pytest.mark.parametrize("more", [[], ["--json"]])
def test_a_full_device_after_a_run(done: Path, more: list[str]) -> None:
    before = {path: path.read_bytes() for path in done.rglob("*") if path.is_file()}
    with FULL.open("w") as full:
        code, said = started(["run", "digits", "--out", str(done), *QUICK, *more], full.fileno())
    assert code == 1
    assert said.count("error:") == 1
    assert "No space left on device" in said
    assert "Traceback" not in said
    assert "Exception ignored" not in said
    assert {path: path.read_bytes() for path in done.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("unbuffered", [False, True])
@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_a_closed_pipe(arguments: list[str], unbuffered: bool) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        code, said = started(arguments, writer, unbuffered=unbuffered)
    finally:
        os.close(writer)
    assert code == 1
    assert [line for line in said.splitlines() if "…" not in line] == []


def test_a_new_recipe_replaces_nothing(tmp_path: Path) -> None:
    taken, link, nowhere = tmp_path / "taken.toml", tmp_path / "link.toml", tmp_path / "nowhere.toml"
    taken.write_text("mine")
    link.symlink_to(tmp_path / "target.toml")
    for path in (taken, link, tmp_path):
        result = call("new", path, "--model", "lenet", "--data", "digits")
        assert result.exit_code == 2
        assert "is there already; choose another name" in result.output
    assert taken.read_text() == "mine"
    assert not (tmp_path / "target.toml").exists()
    result = call("new", nowhere / "deep.toml", "--model", "lenet", "--data", "digits")
    assert result.exit_code == 2
    assert "cannot write" in result.output
    assert {path.name for path in tmp_path.iterdir()} == {"taken.toml", "link.toml"}


@pytest.fixture
def runs() -> list[ReportContents]:
    return [ReportContents(title=title, plan=Plan((), {}, 1, 1, (1, 8, 8))) for title in ("one", "two")]


def test_a_page_replaces_pages_only(tmp_path: Path, runs: list[ReportContents]) -> None:
    page = tmp_path / "page.html"
    before = report.report_side_by_side(page, runs).read_text(encoding="utf-8")
    assert '<meta name="generator" content="infoprune ' in before
    changed = [*runs, ReportContents(title="three", plan=runs[0].plan)]
    assert report.report_side_by_side(page, changed).read_text(encoding="utf-8") != before
    mine = "<html><!-- my own --></html>"
    for path in (page, tmp_path / "empty.html"):
        path.write_text(mine if path == page else "")
        with pytest.raises(UserError, match=r"no page of this command, or was changed since; name another"):
            report.report_side_by_side(path, runs)
    assert page.read_text() == mine
    (tmp_path / "link.html").symlink_to(page)
    (tmp_path / "dangling.html").symlink_to(tmp_path / "target.html")
    (tmp_path / "folder.html").mkdir()
    for name in ("link.html", "dangling.html", "folder.html"):
        with pytest.raises(UserError, match="name another file"):
            report.report_side_by_side(tmp_path / name, runs)
    assert page.read_text() == mine
    assert not (tmp_path / "target.html").exists()


def test_comparing_runs_replaces_pages_only(tmp_path: Path, done: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text("mine")
    result = call("report", "--compare", done, done, "--out", page)
    assert result.exit_code == 2
    assert page.read_text() == "mine"
    page.unlink()
    for _ in range(2):  # its own page is replaced
        assert call("report", "--compare", done, done, "--out", page).exit_code == 0
    assert "Runs side by side" in page.read_text(encoding="utf-8")


def test_what_to_compare_and_where_to_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for pair in (("x", ""), ("", "x"), ("x", " ")):
        result = call("report", "--compare", *pair)
        assert result.exit_code == 2
        assert "--compare has an empty RUN" in result.output
    (tmp_path / "plan.json").write_text("{}")
    result = call("report", "--compare", "x", "y", "--out", "plan.json")
    assert result.exit_code == 2
    assert "--out 'plan.json' is a file; name a page that ends in .html, or a folder" in result.output
    assert (tmp_path / "plan.json").read_text() == "{}"


class Failed(Exception):
    """As ONNX Runtime has exceptions of its own."""


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("could not create a primitive"),
        RuntimeError("could not create a memory object"),
        RuntimeError("could not execute a primitive"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:115] DefaultCPUAllocator: can't allocate memory: you tried"),
        RuntimeError("std::bad_alloc"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)"),
        Failed("[ONNXRuntimeError] : 6 : Failed to allocate memory for requested buffer of size 1000000000"),
        Failed("[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Exception during initialization: bad allocation"),
        OSError(12, "Cannot allocate memory"),
        MemoryError(),
    ],
    ids=str,
)
def test_little_memory_is_told(error: Exception) -> None:
    assert out_of_memory(error) or isinstance(error, OSError)
    with pytest.raises(UserError, match=r"repair: out of memory.*lower \[run\] batch_size"), shortages("repair"):
        raise error


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("could not create a primitive descriptor for a convolution forward propagation primitive"),
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        Failed("[ONNXRuntimeError] : 2 : INVALID_ARGUMENT"),
        KeyError("memory"),
        RunError("verification failed"),
    ],
    ids=str,
)
def test_other_failures_pass(error: Exception) -> None:
    with pytest.raises(type(error)) as caught, shortages("repair"):
        raise error
    assert caught.value is error

"""Freed memory: kept by the command line's process, so that the next pass asks for no pages."""

import subprocess
import sys

import pytest
from click.testing import CliRunner

from infoprune import cli
from infoprune.utils.allocator import GIVEN, keep_freed_memory

PROGRAM = """
import resource, sys
from infoprune.utils.allocator import keep_freed_memory
import torch
kept = keep_freed_memory() if sys.argv[1] == "kept" else False
maps = lambda: torch.ones(2**18 * 40)  # 40 MiB: more than glibc ever keeps by itself
for _ in range(10):  # the heap settles
    maps()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    maps()
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def pages_asked_for(how: str) -> tuple[str, int]:
    """Whether memory was kept, and page faults of ten passes after the first, in a process of its own."""
    done = subprocess.run([sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, check=True)
    kept, faults = done.stdout.split()
    return kept, int(faults)


def test_maps_of_the_same_size_are_not_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in GIVEN:
        monkeypatch.delenv(name, raising=False)
    kept, few = pages_asked_for("kept")
    if kept == "False":
        pytest.skip("this C library has no mallopt")
    _, many = pages_asked_for("as it is")
    assert many >= 200  # ten times 40 MiB: 102,400 pages of 4 KiB, 200 where the system hands out ones of 2 MiB
    assert few < many / 20


def test_settings_in_the_environment_are_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "131072")
    assert not keep_freed_memory()


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in GIVEN:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("ctypes.CDLL", lambda _: object())
    assert not keep_freed_memory()


def test_every_command_keeps_it(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []
    monkeypatch.setattr(cli, "keep_freed_memory", lambda: asked.append(True))
    assert CliRunner().invoke(cli.main, ["recipes"]).exit_code == 0
    assert asked == [True]

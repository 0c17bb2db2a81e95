"""Work spread over cores: in order, as many at once as there are cores, one thread of torch in each."""

import os
import threading

import pytest
import torch
from threadpoolctl import threadpool_info

from infoprune.information import threads
from infoprune.information.threads import core_count, one_thread_each, over_cores


def test_processes_of_one_machine_share_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(7)), raising=False)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert core_count() == 7
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    assert core_count() == 2
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert core_count() == 1
    monkeypatch.delenv("LOCAL_WORLD_SIZE")
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert core_count() == 1


def test_one_thread_inside_and_as_many_as_before_after_an_error() -> None:
    def fail() -> None:
        with one_thread_each():
            assert torch.get_num_threads() == 1
            assert {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"} == {1}
            raise KeyError

    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with pytest.raises(KeyError):
            fail()
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(("cores", "parts", "at_once"), [(3, 9, 3), (2, 2, 2), (4, 2, 2), (1, 3, 1), (5, 1, 1)])
def test_as_many_at_once_as_cores_and_in_order(
    monkeypatch: pytest.MonkeyPatch, cores: int, parts: int, at_once: int
) -> None:
    monkeypatch.setattr(threads, "core_count", lambda: cores)
    meet = threading.Barrier(at_once, timeout=20)  # broken, an error, where fewer come
    seen: set[int] = set()

    def work(part: int) -> int:
        if part < at_once:
            meet.wait()
        seen.add(threading.get_ident())
        assert torch.get_num_threads() == 1
        return part * part

    assert over_cores(work, range(parts)) == [part * part for part in range(parts)]
    assert len(seen) == at_once
    assert (threading.get_ident() in seen) == (at_once == 1)

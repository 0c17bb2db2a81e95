"""Work on many small matrices spread over the CPU's cores.

LAPACK releases the interpreter lock, and a matrix of a hundred rows is too small for two threads to share one:
so every core takes its own matrices, and the linear-algebra library runs single-threaded meanwhile.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from typing import TypeVar

import torch
from threadpoolctl import ThreadpoolController

Part = TypeVar("Part")
Result = TypeVar("Result")


def core_count() -> int:
    """CPU cores this process may use; several that torchrun started on one machine share its cores."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


@cache
def _controller() -> ThreadpoolController:
    return ThreadpoolController()  # looks through all loaded libraries: milliseconds, so once


@contextmanager
def one_thread_each() -> Iterator[None]:
    """Keeps BLAS, LAPACK and torch single-threaded inside, so that a pool of threads does not oversubscribe the cores.

    Where others share the machine this is worth far more than a factor of two: torch's threads wait for the slowest
    at every operation.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # threads that start from here on inherit it
    try:
        with _controller().limit(limits=1, user_api="blas"):
            yield
    finally:
        torch.set_num_threads(before)


def over_cores(work: Callable[[Part], Result], parts: Sequence[Part]) -> list[Result]:
    """``[work(part) for part in parts]`` with one thread per core, results in order.

    The threads live only for this call, so that a fork (a data loader's worker, say) never meets idle ones.
    """
    if len(parts) < 2 or core_count() < 2:
        with one_thread_each():
            return [work(part) for part in parts]
    with one_thread_each(), ThreadPoolExecutor(min(core_count(), len(parts))) as pool:
        return list(pool.map(work, parts))

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

from threadpoolctl import ThreadpoolController

Part = TypeVar("Part")
Result = TypeVar("Result")


def core_count() -> int:
    """CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@cache
def _controller() -> ThreadpoolController:
    return ThreadpoolController()  # looks through all loaded libraries: milliseconds, so once


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Keeps BLAS and LAPACK single-threaded inside, so that a pool of threads does not oversubscribe the cores."""
    with _controller().limit(limits=1, user_api="blas"):
        yield


def over_cores(work: Callable[[Part], Result], parts: Sequence[Part]) -> list[Result]:
    """``[work(part) for part in parts]`` with one thread per core, results in order.

    The threads live only for this call, so that a fork (a data loader's worker, say) never meets idle ones.
    """
    if len(parts) < 2 or core_count() < 2:
        with one_blas_thread():
            return [work(part) for part in parts]
    with one_blas_thread(), ThreadPoolExecutor(min(core_count(), len(parts))) as pool:
        return list(pool.map(work, parts))

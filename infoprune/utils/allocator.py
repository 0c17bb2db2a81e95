"""The C library's allocator, told to keep what a network's maps will ask for again a moment later."""

import ctypes
import os

# mallopt's parameters and its limit of a signed int (glibc's malloc.h).
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
KEPT, MAPPED = 2**31 - 1, 2**30
GIVEN = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")


def keep_freed_memory() -> bool:
    """Keeps freed memory in the process instead of handing it back, and says whether that could be arranged.

    Unless told so, glibc returns the maps of a layer to the system when they are freed, and gets pages for the next
    layer's one by one: up to half of the processor time of a network on a CPU (`benchmarks/results/freed-memory.md`).
    Blocks of 1 GiB and more still go back. For a process of one's own, as the command line is; a library leaves that to
    its user. Another C library, and settings in the environment, stay as they are.
    """
    if any(name in os.environ for name in GIVEN):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # musl, macOS, Windows
        return False
    return bool(mallopt(MMAP_THRESHOLD, MAPPED) and mallopt(TRIM_THRESHOLD, KEPT))

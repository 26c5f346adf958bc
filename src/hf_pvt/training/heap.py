"""Memory that training frees is kept for the next step, where the C library is glibc.

glibc maps a large activation anew each time it is asked for one, and gives it back when it is freed: the page faults of
a training step on a CPU take up to half of its time (`python -m benchmarks.training` measures both). The library leaves
this to its user; the scripts and demos do it at their start.
"""

import ctypes
import os
import platform
from functools import cache

# The help of `--default_heap`, with which a script leaves all this alone.
DEFAULT_HEAP = "On a CPU, leave memory to glibc, which gives it back after each use; slower."
# Names and numbers of <malloc.h>.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4
# As far as glibc goes by itself: blocks up to here stay on the heap, and twice as much may lie free at its end.
GLIBC_LARGEST_BLOCK = 32 * 2**20
GLIBC_MMAP_MAX = 65536


@cache
def keep_large_blocks() -> bool:
    """Tell glibc to take every block from the heap, and to keep what is freed. Whether there is a glibc to tell.

    `M_MMAP_THRESHOLD` alone would not do: glibc allows at most 32 MiB.

    Processes that are forked, as a DataLoader's workers are, neither inherit the free memory, whose every page this
    process would copy at its next write, nor the rule: a worker's largest image would stay with it for good.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    glibc = ctypes.CDLL(None)
    glibc.mallopt(M_MMAP_MAX, 0)
    glibc.mallopt(M_TRIM_THRESHOLD, -1)  # never
    os.register_at_fork(before=lambda: glibc.malloc_trim(0), after_in_child=lambda: _as_glibc_does(glibc))
    return True


def _as_glibc_does(glibc: ctypes.CDLL) -> None:
    """What its own rule, which a call of `mallopt` ends, arrives at with blocks of many sizes."""
    glibc.mallopt(M_MMAP_MAX, GLIBC_MMAP_MAX)
    glibc.mallopt(M_MMAP_THRESHOLD, GLIBC_LARGEST_BLOCK)
    glibc.mallopt(M_TRIM_THRESHOLD, 2 * GLIBC_LARGEST_BLOCK)

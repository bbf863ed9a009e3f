"""How this process's allocator keeps what it was given (glibc's mallopt(3))."""

from __future__ import annotations

import ctypes

from contentapp.core.settings import MIB

M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3
M_ARENA_MAX = -8
KEPT_SIZE = 32 * MIB
ARENAS = 4


def keep_freed_memory() -> None:
    """Reuse freed buffers of transfers instead of giving them back to the kernel, which has to clear them each time.

    At most KEPT_SIZE stays unused at the top of the heap. Another libc has no mallopt: then nothing changes.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return
    mallopt(M_ARENA_MAX, ARENAS)
    mallopt(M_MMAP_THRESHOLD, KEPT_SIZE)
    mallopt(M_TRIM_THRESHOLD, KEPT_SIZE)

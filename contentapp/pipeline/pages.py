"""Read a piece of a file without holding the loop: at once if it is in the page cache, else in a thread."""

from __future__ import annotations

import asyncio
import errno
import os

from contentapp.storage.base import ArtifactReader

NOT_NOW = frozenset({errno.EAGAIN, errno.EOPNOTSUPP, errno.EINVAL})


async def read_piece(reader: ArtifactReader, offset: int, size: int) -> bytes | memoryview:
    """At most `size` bytes from `offset`, fewer where the cache or the file ends; b"" at its end. ArtifactDamaged.

    `size` is small enough to be copied in the loop (preadv2(2), RWF_NOWAIT).
    """
    buffer = bytearray(size)
    try:
        count = os.preadv(reader.fileno(), [buffer], offset, os.RWF_NOWAIT)
    except OSError as error:
        if error.errno not in NOT_NOW:
            return await asyncio.get_running_loop().run_in_executor(None, reader.read, offset, size)
        count = 0
    if count == 0:
        return await asyncio.get_running_loop().run_in_executor(None, reader.read, offset, size)
    return memoryview(buffer)[:count]

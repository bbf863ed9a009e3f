"""Opening files so that other processes see them in use.

Whoever reads an artifact or writes a partial holds a shared flock on it, whoever removes one takes the exclusive one
first. Locks belong to open files: duplicates, also those passed to other processes, keep them until the last is closed.

Who writes a partial has a lock of another kind on it as well (F_OFD_SETLK, fcntl(2); neither kind minds the other):
one that followers, who share the flock, don't have. So a partial that is followed but written by nobody can be told.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct

from contentapp.core.digest import Digest
from contentapp.core.errors import ArtifactDamaged, ArtifactNotFound
from contentapp.storage.failure import read_failure

READ_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK  # O_NONBLOCK: a FIFO by that name must not hold us
NOT_A_FILE = frozenset({errno.ELOOP, errno.ENXIO})  # a symlink, a socket
FLOCK = struct.Struct("hhqqi0q")  # struct flock of fcntl(2): type, whence, start, length (0: all), pid


def open_artifact(path: str, digest: Digest) -> tuple[int, int]:
    """The descriptor and size of an artifact, now in use. ArtifactNotFound, ArtifactDamaged, StorageUnavailable."""
    try:
        descriptor = os.open(path, READ_FLAGS)
    except FileNotFoundError:
        raise ArtifactNotFound(f"{digest} is not stored") from None
    except OSError as error:
        if error.errno in NOT_A_FILE:
            raise ArtifactDamaged(f"{digest} is not a regular file") from error
        raise read_failure(error, "open") from error
    try:
        return descriptor, claim(descriptor, digest)
    except BaseException:
        os.close(descriptor)
        raise


def open_shared(path: str | os.PathLike[str], flags: int = READ_FLAGS) -> int:
    """A read-only descriptor of a file that is in use from now on. OSError."""
    descriptor = os.open(path, flags)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def open_unused(path: str | os.PathLike[str], flags: int = READ_FLAGS) -> int | None:
    """A descriptor of a file that nobody uses, nor can claim until it is closed; None if it is in use. OSError."""
    descriptor = os.open(path, flags)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def claim(descriptor: int, digest: Digest) -> int:
    """Take the shared lock on what has just been opened; the size. Errors as `open_artifact`.

    A delete holds the exclusive lock from before its unlink until after it: while it does we are refused, afterwards
    the file we have opened has no name any more. Either way the artifact is gone.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        found = os.fstat(descriptor)
    except BlockingIOError:
        raise ArtifactNotFound(f"{digest} is being deleted") from None
    except OSError as error:
        raise read_failure(error, "open") from error
    if not stat.S_ISREG(found.st_mode):
        raise ArtifactDamaged(f"{digest} is not a regular file")
    if not found.st_nlink:
        raise ArtifactNotFound(f"{digest} has been deleted")
    return found.st_size


def claim_writing(descriptor: int) -> bool:
    """Become the one who writes a file, open for writing; False if there is one already. OSError."""
    try:
        fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, _flock(fcntl.F_WRLCK))
    except BlockingIOError:
        return False
    return True


def release_writing(descriptor: int) -> None:
    """End being the one who writes, for all duplicates of the descriptor too. OSError."""
    fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, _flock(fcntl.F_UNLCK))


def is_written(descriptor: int) -> bool:
    """Whether somebody, by another descriptor than this one, is the one who writes the file. OSError."""
    answer: bytes = fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, _flock(fcntl.F_WRLCK))
    kind: int = FLOCK.unpack(answer)[0]
    return kind != fcntl.F_UNLCK


def _flock(kind: int) -> bytes:
    return FLOCK.pack(kind, os.SEEK_SET, 0, 0, 0)

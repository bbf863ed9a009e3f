"""The one place where the operating system's errors become storage errors."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

from contentapp.core.errors import ArtifactDamaged, NoSpace, StorageError, StorageUnavailable

# EFBIG: the process's or the filesystem's largest file; for a cache that is a body which does not fit.
FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
# EBADMSG and EUCLEAN: ext4 and XFS say so when a checksum or a structure of their own is wrong.
UNREADABLE = frozenset({errno.EIO, errno.EBADMSG, errno.EUCLEAN})


def write_failure(error: OSError, doing: str) -> StorageError:
    """NoSpace or StorageUnavailable for an error met while `doing` something that changes the storage."""
    return (NoSpace if error.errno in FULL else StorageUnavailable)(_text(error, doing))


def read_failure(error: OSError, doing: str) -> StorageError:
    """ArtifactDamaged or StorageUnavailable for an error met while reading one artifact."""
    return (ArtifactDamaged if error.errno in UNREADABLE else StorageUnavailable)(_text(error, doing))


@contextmanager
def storage_errors(doing: str) -> Iterator[None]:
    """Turn any OSError of the block into what `write_failure` says."""
    try:
        yield
    except OSError as error:
        raise write_failure(error, doing) from error


def _text(error: OSError, doing: str) -> str:
    # Without the path: these texts reach devices.
    return f"{doing}: {os.strerror(error.errno) if error.errno else type(error).__name__}"

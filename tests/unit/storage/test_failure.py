from __future__ import annotations

import errno

import pytest

from contentapp.core.errors import ArtifactDamaged, NoSpace, StorageError, StorageUnavailable
from contentapp.storage.failure import read_failure, storage_errors, write_failure


@pytest.mark.parametrize(
    ("code", "writing", "reading"),
    [
        (errno.ENOSPC, NoSpace, StorageUnavailable),
        (errno.EDQUOT, NoSpace, StorageUnavailable),
        (errno.EFBIG, NoSpace, StorageUnavailable),
        (errno.EIO, StorageUnavailable, ArtifactDamaged),
        (errno.EBADMSG, StorageUnavailable, ArtifactDamaged),
        (errno.EUCLEAN, StorageUnavailable, ArtifactDamaged),
        (errno.EROFS, StorageUnavailable, StorageUnavailable),
        (errno.EACCES, StorageUnavailable, StorageUnavailable),
        (errno.EMFILE, StorageUnavailable, StorageUnavailable),
        (errno.ENOENT, StorageUnavailable, StorageUnavailable),
    ],
)
def test_classes(code: int, writing: type[StorageError], reading: type[StorageError]) -> None:
    error = OSError(code, "text", "/secret/path")
    assert type(write_failure(error, "doing")) is writing
    assert type(read_failure(error, "doing")) is reading
    assert "/secret" not in str(write_failure(error, "doing"))
    assert "doing: " in str(read_failure(error, "doing"))


def test_other_errors_pass() -> None:
    with pytest.raises(ValueError, match="other"), storage_errors("doing"):
        raise ValueError("other")
    with pytest.raises(NoSpace), storage_errors("doing"):
        raise NoSpace("as it is")
    with pytest.raises(StorageUnavailable, match="doing: OSError"), storage_errors("doing"):
        raise OSError

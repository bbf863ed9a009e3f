"""The quota of an installation that sets none: 80 % of what is free at its first start."""

from __future__ import annotations

import os
from pathlib import Path

from contentapp.core.errors import StorageError
from contentapp.storage.layout import sync_folder
from contentapp.storage.quota import disk_space

NAME = "cache-size"
SHARE_PERCENT = 80
LONGEST = 64


class LimitNotKept(StorageError):
    """The limit can't be read or written. `limit` is one to go on with: 80 % of what is free now."""

    def __init__(self, message: str, limit: int) -> None:
        super().__init__(message)
        self.limit = limit


def first_limit(root: Path) -> int:
    """The limit in bytes, as `<root>/cache-size` has it; if there is no such file, it is made, and the root too.

    LimitNotKept when the file is damaged, unreadable or can't be written; a damaged one is left as it is.
    """
    path = root / NAME
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        with path.open("rb") as file:
            return _parse(file.read(LONGEST + 1))
    except FileNotFoundError:
        return _make(path)
    except (OSError, ValueError) as error:
        raise LimitNotKept(f"{path} can't be used: {_reason(error)}", _share(root)) from error


def _make(path: Path) -> int:
    limit = _share(path.parent)
    try:
        _write(path, b"%d\n" % limit)
    except OSError as error:
        raise LimitNotKept(f"{path} can't be written: {_reason(error)}", limit) from error
    return limit


def _share(root: Path) -> int:
    """Of the root, or of the nearest folder above it that exists."""
    while True:
        try:
            return disk_space(root).free * SHARE_PERCENT // 100
        except OSError:
            if root == root.parent:
                return 0
            root = root.parent


def _parse(raw: bytes) -> int:
    text = raw.removesuffix(b"\n")
    if len(raw) > LONGEST or not text.isdigit() or int(text) == 0:
        raise ValueError("not a number of bytes")
    return int(text)


def _write(path: Path, content: bytes) -> None:
    """Write a file whole or not at all. The name is one per process: several may start at once, on equal terms."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.new")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _reason(error: Exception) -> str:
    return error.strerror or str(error) if isinstance(error, OSError) else str(error)

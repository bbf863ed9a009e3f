"""The admin's password: made at the first start, read by the CLI of the same host."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

PASSWORD_FILE = "admin-password"  # noqa: S105 - a file's name
USER = "admin"
MAX_SIZE = 1024
LENGTH = 32  # random bytes


def ensure_password(data_dir: Path) -> str:
    """The password in `<data_dir>/admin-password`, which is made (mode 0600, durably) if it is not there or empty.

    OSError when it can't be read or written. Blocking.
    """
    path = data_dir / PASSWORD_FILE
    try:
        if password := read_password(path):
            return password
    except FileNotFoundError:
        pass
    password = secrets.token_urlsafe(LENGTH)
    _write(path, f"{password}\n".encode())
    return password


def read_password(path: Path) -> str:
    """What the file holds, without the line's end. OSError."""
    with path.open("rb") as file:
        return file.read(MAX_SIZE).decode("utf-8", "surrogateescape").strip()


def _write(path: Path, content: bytes) -> None:
    """Whole or not at all, and never readable by others in between."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.new")
    temporary.unlink(missing_ok=True)
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

"""A small SQLite file that the processes of one host share, and that may be lost."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

logger = logging.getLogger("contentapp.coordination")

T = TypeVar("T")
CORRUPT = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}
COMPANIONS = ("", "-wal", "-shm")


class Database:
    """Run operations on it from one thread.

    A damaged file is moved aside and begun anew. When no file can be used (disk full, unwritable, locked by a stopped
    process) memory takes its place, for this process alone, until one can again; what was learned meanwhile is lost.

    schema: statements that create what is missing; version: of that schema, another one is dropped. is_durable: whether
    a power loss may damage it (it is consistent after a process's death in any case).
    """

    def __init__(
        self,
        path: Path,
        schema: tuple[str, ...],
        *,
        version: int,
        is_durable: bool,
        busy_seconds: float = 5.0,
        retry_seconds: float = 60.0,
    ) -> None:
        self._path = path
        self._schema = schema
        self._version = version
        self._synchronous = "NORMAL" if is_durable else "OFF"
        self._busy_seconds = busy_seconds
        self._retry_seconds = retry_seconds
        self._connection: sqlite3.Connection | None = None
        self._inode: int | None = None  # None: in memory
        self._retry_at = 0.0

    @property
    def is_shared(self) -> bool:
        """Whether other processes see it."""
        return self._inode is not None

    def run(self, operation: Callable[[sqlite3.Connection], T]) -> T:
        """The operation's result; it may be run again, so it does all it does in one transaction of its own."""
        try:
            return operation(self._usable())
        except sqlite3.DatabaseError as error:
            if not _is_about_the_file(error):
                raise
            self._recover(error)
        try:
            return operation(self._usable())
        except sqlite3.DatabaseError as error:
            if not _is_about_the_file(error):
                raise
            return operation(self._use_memory(error))

    def close(self) -> None:
        """Idempotent."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _usable(self) -> sqlite3.Connection:
        if self._connection is None or self._is_outdated():
            return self._reopen()
        return self._connection

    def _is_outdated(self) -> bool:
        """Whether another process has moved our file aside since, or it is time to try a file again."""
        if self._inode is None:
            return time.monotonic() >= self._retry_at
        try:
            return self._path.stat().st_ino != self._inode
        except OSError:
            return True

    def _reopen(self) -> sqlite3.Connection:
        try:
            with _locked(self._lock_path):
                self._keep_sound()
                connection = self._open(str(self._path))
                inode = self._path.stat().st_ino
        except (OSError, sqlite3.Error) as error:
            return self._use_memory(error)
        if self._connection is not None and self._inode is None:
            logger.warning("%s can be used again", self._path)
        self.close()
        self._connection, self._inode = connection, inode
        return connection

    @property
    def _lock_path(self) -> Path:
        return self._path.with_name(f"{self._path.name}.lock")

    def _recover(self, error: sqlite3.DatabaseError) -> None:
        if self._inode is None or not _is_corrupt(error):
            self._use_memory(error)
            return
        self.close()
        try:
            with _locked(self._lock_path):
                self._keep_sound(is_suspect=True)
        except OSError as again:
            self._use_memory(again)

    def _keep_sound(self, *, is_suspect: bool = False) -> None:
        """Move a damaged file aside. Under the lock, so that nobody moves aside what another has just begun anew."""
        error = self._damage(is_suspect=is_suspect)
        if error is None:
            return
        for suffix in COMPANIONS:
            path = self._path.with_name(self._path.name + suffix)
            with contextlib.suppress(FileNotFoundError):
                path.replace(path.with_name(f"{path.name}.damaged"))
        logger.warning("%s is damaged (%s): moved aside, and begun anew", self._path, error)

    def _damage(self, *, is_suspect: bool) -> str | None:
        """What is wrong with the file; all of it is read only on suspicion."""
        try:
            connection = self._connect(str(self._path))
        except sqlite3.Error as error:
            return str(error) if _is_corrupt(error) else None
        try:
            found = connection.execute("PRAGMA quick_check(1)" if is_suspect else "PRAGMA user_version").fetchone()
            return str(found[0]) if is_suspect and found[0] != "ok" else None
        except sqlite3.Error as error:
            return str(error) if _is_corrupt(error) else None
        finally:
            connection.close()

    def _use_memory(self, error: Exception) -> sqlite3.Connection:
        self._retry_at = time.monotonic() + self._retry_seconds
        if self._connection is not None and self._inode is None:
            return self._connection
        logger.warning("%s can't be used (%s): this process goes on by itself", self._path, error)
        self.close()
        self._inode = None
        self._connection = self._open(":memory:")
        return self._connection

    def _connect(self, name: str) -> sqlite3.Connection:
        return sqlite3.connect(name, timeout=self._busy_seconds, isolation_level=None, check_same_thread=False)

    def _open(self, name: str) -> sqlite3.Connection:
        connection = self._connect(name)
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute(f"PRAGMA synchronous = {self._synchronous}")
            self._create(connection)
            if name == str(self._path):
                self._path.chmod(0o600)
        except BaseException:
            connection.close()
            raise
        return connection

    def _create(self, connection: sqlite3.Connection) -> None:
        with transaction(connection):
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            if version not in {0, self._version}:
                _drop_tables(connection)
            for statement in self._schema:
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {self._version}")


@contextlib.contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """BEGIN IMMEDIATE … COMMIT: one writer at a time over all processes."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        with contextlib.suppress(sqlite3.Error):
            connection.execute("ROLLBACK")
        raise


def _drop_tables(connection: sqlite3.Connection) -> None:
    names = connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'").fetchall()
    for (name,) in names:
        connection.execute(f'DROP TABLE "{name}"')


def _is_corrupt(error: sqlite3.Error) -> bool:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in CORRUPT


def _is_about_the_file(error: sqlite3.DatabaseError) -> bool:
    return isinstance(error, sqlite3.OperationalError) or _is_corrupt(error)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    fileno = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fileno, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fileno)

"""SQLite as the catalog uses it: WAL, every commit synced, errors mapped once, nobody else may read the file."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from stat import S_ISREG
from urllib.parse import quote

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.exc import DBAPIError, DisconnectionError, IntegrityError
from sqlalchemy.pool import ConnectionPoolEntry, PoolProxiedConnection, QueuePool

from contentapp.core.errors import CatalogUnavailable

PAGE_CACHE_KIB = 8 * 1024
WAL_LIMIT_BYTES = 64 * 1024 * 1024
PRAGMAS = (
    "PRAGMA journal_mode = WAL",
    "PRAGMA synchronous = FULL",
    "PRAGMA foreign_keys = ON",
    f"PRAGMA cache_size = -{PAGE_CACHE_KIB}",
    f"PRAGMA journal_size_limit = {WAL_LIMIT_BYTES}",
)


def create_file(path: Path) -> None:
    """Make sure that the file is there and its owner's alone; SQLite gives its WAL the same mode.

    CatalogUnavailable when it can't be made.
    """
    try:
        # An existing file is never opened here: closing it would drop the locks that SQLite has on it in this process.
        with suppress(FileExistsError):
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        found = path.stat()
        if not S_ISREG(found.st_mode):
            raise CatalogUnavailable(f"catalog {path} is not a file")
        if found.st_uid == os.geteuid():
            path.chmod(0o600)
    except OSError as error:
        raise CatalogUnavailable(f"catalog {path}: {error.strerror}") from error


def connect(path: Path, *, busy_timeout_seconds: float) -> sqlite3.Connection:
    """A connection to an existing file, usable from any one thread at a time, that begins no transaction by itself."""
    connection = sqlite3.connect(
        f"file:{quote(str(path.absolute()))}?mode=rw",
        uri=True,
        timeout=busy_timeout_seconds,
        isolation_level=None,
        check_same_thread=False,
    )
    try:
        for pragma in PRAGMAS:
            connection.execute(pragma)
    except sqlite3.Error:
        connection.close()
        raise
    return connection


def sqlite_engine(path: Path, *, begin: str, connections: int, busy_timeout_seconds: float) -> Engine:
    """An engine that opens each transaction with the statement `begin`."""
    engine = create_engine(
        "sqlite://",
        creator=lambda: connect(path, busy_timeout_seconds=busy_timeout_seconds),
        poolclass=QueuePool,
        pool_size=connections,
        max_overflow=0,
        hide_parameters=True,  # they may be secrets
    )

    @event.listens_for(engine, "begin")
    def begin_transaction(connection: Connection) -> None:
        connection.exec_driver_sql(begin)

    follow_file(engine, path)
    return engine


def follow_file(engine: Engine, path: Path) -> None:
    """Drop connections to a file that is no longer the one at `path`: what they'd commit would be lost with it."""

    @event.listens_for(engine, "connect")
    def remember(_connection: sqlite3.Connection, entry: ConnectionPoolEntry) -> None:
        entry.info["file"] = file_identity(path)

    @event.listens_for(engine, "checkout")
    def compare(_connection: sqlite3.Connection, entry: ConnectionPoolEntry, _proxy: PoolProxiedConnection) -> None:
        if entry.info["file"] != file_identity(path):
            raise DisconnectionError("the file was replaced")


def file_identity(path: Path) -> tuple[int, int] | None:
    """Device and inode; None if there is no such file."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


@contextmanager
def transaction(engine: Engine, path: Path) -> Iterator[Connection]:
    """Commit what the body did, or take it back if it raises. CatalogUnavailable for what the database can't do."""
    try:
        with engine.connect() as connection, discarded_when_broken(connection), connection.begin():
            yield connection
    except IntegrityError:
        raise
    except DBAPIError as error:
        raise CatalogUnavailable(f"catalog {path}: {error.orig}") from error


@contextmanager
def discarded_when_broken(connection: Connection) -> Iterator[None]:
    """Give a connection up after an error other than a lock that was not free: it may never recover by itself."""
    try:
        yield
    except DBAPIError as error:
        code = getattr(error.orig, "sqlite_errorcode", 0) & 0xFF
        if code not in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_CONSTRAINT}:
            connection.invalidate()
        raise

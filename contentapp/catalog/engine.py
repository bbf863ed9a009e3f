"""The database and the threads that talk to it.

A transaction is one plain function of a connection, run whole on a thread of this engine: the loop pays one hop for it,
and a cancelled task can't leave one open. Writes of a process queue on one thread, so that they never wait for each
other inside SQLite; processes take turns by BEGIN IMMEDIATE, each waiting at most `busy_timeout_seconds`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import Connection, Row, Select, Table, UpdateBase
from sqlalchemy.dialects import sqlite

from contentapp.catalog.migration import migrate
from contentapp.catalog.sqlite import create_file, sqlite_engine, transaction
from contentapp.core.errors import CatalogUnavailable

T = TypeVar("T")

BUSY_TIMEOUT_SECONDS = 5.0
READERS = 2
SQLITE_URL = "sqlite:///"
BATCH = 5000  # rows that fit in a transaction of 50 ms


async def open_catalog(
    location: str | Path, *, busy_timeout_seconds: float = BUSY_TIMEOUT_SECONDS, readers: int = READERS
) -> CatalogEngine:
    """Open the catalog at a path or ``sqlite:///path``, made and migrated if need be.

    CatalogUnavailable when it can't be opened, CatalogTooNew when a newer version of this program made it.
    """
    path = sqlite_path(location)
    await asyncio.to_thread(prepare, path, busy_timeout_seconds)
    return CatalogEngine(path, busy_timeout_seconds=busy_timeout_seconds, readers=readers)


def sqlite_path(location: str | Path) -> Path:
    """The file a location names. Other URLs are not repeated in the error: they may hold a password."""
    if isinstance(location, Path):
        return location
    if location.startswith(SQLITE_URL):
        return Path(location.removeprefix(SQLITE_URL))
    if "://" in location or location in {"", ":memory:"}:
        scheme = location.partition("://")[0]
        raise CatalogUnavailable(f"database {scheme!r} is not available in this version; a path or sqlite:///path is")
    return Path(location)


def prepare(path: Path, busy_timeout_seconds: float) -> None:
    """Create the file and bring its tables up to date."""
    create_file(path)
    migrate(path, busy_timeout_seconds=busy_timeout_seconds)


class CatalogEngine:
    """The catalog's file as this process has it open. Open it after any fork, with `open_catalog`, and `close` it."""

    def __init__(self, path: Path, *, busy_timeout_seconds: float, readers: int) -> None:
        self.path = path
        self._writer = Lane(path, begin="BEGIN IMMEDIATE", threads=1, busy_timeout_seconds=busy_timeout_seconds)
        self._readers = Lane(path, begin="BEGIN", threads=readers, busy_timeout_seconds=busy_timeout_seconds)

    async def read(self, work: Callable[[Connection], T]) -> T:
        """What `work` returns, which sees one state of the database; it must not write."""
        return await self._readers.run(work)

    async def write(self, work: Callable[[Connection], T]) -> T:
        """What `work` returns, once it is committed and synced; whatever `work` raises takes all of it back.

        Cancelling the caller does not stop a transaction that has begun.
        """
        return await self._writer.run(work)

    async def close(self) -> None:
        """Let running transactions end, then close all connections; a second call is a no-op."""
        await asyncio.to_thread(self._readers.close)
        await asyncio.to_thread(self._writer.close)


class Lane:
    """Threads, with a connection for each, that begin their transactions in the same way."""

    def __init__(self, path: Path, *, begin: str, threads: int, busy_timeout_seconds: float) -> None:
        self._path = path
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="catalog")
        self._engine = sqlite_engine(path, begin=begin, connections=threads, busy_timeout_seconds=busy_timeout_seconds)

    async def run(self, work: Callable[[Connection], T]) -> T:
        """`work` in a transaction of its own."""
        try:
            future = self._threads.submit(self._transact, work)
        except RuntimeError:
            raise CatalogUnavailable("the catalog is closed") from None
        return await asyncio.wrap_future(future)

    def _transact(self, work: Callable[[Connection], T]) -> T:
        with transaction(self._engine, self._path) as connection:
            return work(connection)

    def close(self) -> None:
        """Blocks until the last transaction has ended."""
        self._threads.shutdown()
        self._engine.dispose()


def upsert(table: Table) -> sqlite.Insert:
    """An INSERT that knows ON CONFLICT: the one construct here that databases write differently."""
    return sqlite.insert(table)


def batches(rows: Iterable[T]) -> Iterator[list[T]]:
    """The rows in groups that fit in one short transaction."""
    iterator = iter(rows)
    while batch := list(islice(iterator, BATCH)):
        yield batch


class Queries:
    """Statements on one engine, each in a transaction of its own."""

    def __init__(self, engine: CatalogEngine) -> None:
        self._engine = engine

    async def _find(self, statement: Select[Any], values: Mapping[str, Any]) -> Row[Any] | None:
        """The one row, if there is one."""
        return await self._engine.read(lambda connection: connection.execute(statement, values).one_or_none())

    async def _all(self, statement: Select[Any], values: Mapping[str, Any]) -> Sequence[Row[Any]]:
        return await self._engine.read(lambda connection: connection.execute(statement, values).all())

    async def _change(self, statement: UpdateBase, values: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> int:
        """The number of rows that changed."""
        return await self._engine.write(lambda connection: connection.execute(statement, values).rowcount)

"""Bringing a database's tables up to date, before anything else looks at it.

Alembic is imported only when there is something to do: reading the recorded revision takes a millisecond, importing
Alembic takes hundreds.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from contentapp.catalog.base import CatalogTooNew
from contentapp.catalog.sqlite import connect, sqlite_engine, transaction
from contentapp.core.errors import CatalogUnavailable

SCRIPTS = Path(__file__).parent / "migrations"
REVISIONS = ("0001", "0002")  # oldest first; a test holds this to the scripts
HEAD = REVISIONS[-1]


def migrate(path: Path, *, busy_timeout_seconds: float) -> None:
    """Run the migrations that an existing file lacks; several processes may do so at once.

    CatalogTooNew when its revision is unknown here; CatalogUnavailable when it can't be used, or is no catalog.
    """
    if is_current(path, busy_timeout_seconds):
        return
    with migration_lock(path):
        # Another process may have migrated it while this one waited for the lock.
        if not is_current(path, busy_timeout_seconds):
            upgrade(path, busy_timeout_seconds)


def is_current(path: Path, busy_timeout_seconds: float) -> bool:
    """Whether nothing is to be done; CatalogTooNew when nothing can be done."""
    revision = recorded_revision(path, busy_timeout_seconds)
    if revision is not None and revision not in REVISIONS:
        raise CatalogTooNew(
            f"catalog {path} was made by a newer version of this program "
            f"(its revision is {revision!r}, the newest known here is {HEAD!r})"
        )
    return revision == HEAD


def recorded_revision(path: Path, busy_timeout_seconds: float) -> str | None:
    """The revision that a database records; None when it is empty."""
    try:
        with closing(connect(path, busy_timeout_seconds=busy_timeout_seconds)) as connection:
            tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            if not tables:
                return None
            if "alembic_version" not in tables:
                raise CatalogUnavailable(f"{path} is a database, but not a catalog")
            row = connection.execute("SELECT version_num FROM alembic_version").fetchone()
    except sqlite3.Error as error:
        raise CatalogUnavailable(f"catalog {path}: {error}") from error
    return None if row is None else str(row[0])


@contextmanager
def migration_lock(path: Path) -> Iterator[None]:
    """One process at a time; the kernel frees the lock of one that dies. The file stays, or two could hold it."""
    try:
        descriptor = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise CatalogUnavailable(f"catalog {path}: {error.strerror}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def upgrade(path: Path, busy_timeout_seconds: float) -> None:
    """All missing migrations in one transaction: killed in the middle, it leaves the tables as they were."""
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(SCRIPTS).replace("%", "%%"))
    engine = sqlite_engine(path, begin="BEGIN IMMEDIATE", connections=1, busy_timeout_seconds=busy_timeout_seconds)
    try:
        with transaction(engine, path) as connection:
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
    finally:
        engine.dispose()

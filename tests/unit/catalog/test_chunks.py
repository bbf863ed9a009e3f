"""The migration that brings chunk lists, there and back."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from alembic import command
from alembic.config import Config

from contentapp.catalog.engine import open_catalog
from contentapp.catalog.migration import HEAD, SCRIPTS, migrate, recorded_revision
from contentapp.catalog.sqlite import create_file, sqlite_engine, transaction

BEFORE, AFTER = "0001", "0002"
TABLES = "SELECT name, sql FROM sqlite_master WHERE name NOT LIKE 'sqlite_%' ORDER BY name"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A catalog as the version before left it, with an artifact in it."""
    path = tmp_path / "catalog"
    create_file(path)
    bring_to(path, BEFORE)
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(
            "INSERT INTO artifacts (digest, is_stored, pinned, size, flight, modified_at)"
            " VALUES ('sha256:00', 1, 0, 5, 'f', '2024-01-01 00:00:00.000000')"
        )
    return path


def bring_to(path: Path, revision: str, *, down: bool = False) -> None:
    config = Config()
    config.set_main_option("script_location", str(SCRIPTS))
    engine = sqlite_engine(path, begin="BEGIN IMMEDIATE", connections=1, busy_timeout_seconds=5)
    try:
        with transaction(engine, path) as connection:
            config.attributes["connection"] = connection
            (command.downgrade if down else command.upgrade)(config, revision)
    finally:
        engine.dispose()


def tables(path: Path) -> dict[str, str]:
    with closing(sqlite3.connect(path)) as connection:
        return dict(connection.execute(TABLES).fetchall())


def artifacts(path: Path) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute("SELECT digest, size, flight FROM artifacts").fetchall()


def test_up_adds_one_table_and_keeps_what_is_there(path: Path) -> None:
    before = tables(path)
    bring_to(path, AFTER)
    after = tables(path)
    assert after.keys() - before.keys() == {"chunk_lists"}
    assert {name: sql for name, sql in after.items() if name != "chunk_lists"} == before
    assert artifacts(path) == [("sha256:00", 5, "f")]


def test_down_removes_it_and_nothing_else(path: Path) -> None:
    before = tables(path)
    bring_to(path, AFTER)
    bring_to(path, BEFORE, down=True)
    assert tables(path) == before
    assert artifacts(path) == [("sha256:00", 5, "f")]
    assert recorded_revision(path, 5) == BEFORE


async def test_an_older_catalog_is_brought_up_when_it_is_opened(path: Path) -> None:
    await (await open_catalog(path)).close()
    assert recorded_revision(path, 5) == HEAD
    assert "chunk_lists" in tables(path)
    before = path.read_bytes()
    migrate(path, busy_timeout_seconds=5)
    assert path.read_bytes() == before

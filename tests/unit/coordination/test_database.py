"""A shared file that may be damaged, replaced, locked or impossible, and is never an error."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from contentapp.coordination.database import Database, transaction

SCHEMA = ("CREATE TABLE IF NOT EXISTS t (k TEXT PRIMARY KEY, v INTEGER)",)
opened: list[Database] = []


@pytest.fixture(autouse=True)
def close_all() -> Iterator[None]:
    yield
    while opened:
        opened.pop().close()


def database(path: Path, *, version: int = 1, busy_seconds: float = 0.05, retry_seconds: float = 60.0) -> Database:
    opened.append(
        Database(
            path,
            SCHEMA,
            version=version,
            is_durable=True,
            busy_seconds=busy_seconds,
            retry_seconds=retry_seconds,
        )
    )
    return opened[-1]


def put(database: Database, key: str) -> None:
    def write(connection: sqlite3.Connection) -> None:
        with transaction(connection):
            connection.execute("REPLACE INTO t VALUES (?, 1)", (key,))

    database.run(write)


def keys(database: Database) -> list[str]:
    rows = database.run(lambda connection: connection.execute("SELECT k FROM t ORDER BY k").fetchall())
    return [key for (key,) in rows]


def is_alone(database: Database) -> bool:
    return not database.is_shared


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if record.levelno >= logging.WARNING]


def test_two_share_it_and_it_survives(tmp_path: Path) -> None:
    one, two = database(tmp_path / "db"), database(tmp_path / "db")
    put(one, "a")
    put(two, "b")
    assert keys(one) == keys(two) == ["a", "b"]
    one.close()
    two.close()
    assert keys(database(tmp_path / "db")) == ["a", "b"]
    assert (tmp_path / "db").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("content", [b"not a database" * 1000, b"SQLite format 3\0" + b"\xff" * 9000])
def test_a_damaged_file_is_moved_aside(tmp_path: Path, caplog: pytest.LogCaptureFixture, content: bytes) -> None:
    (tmp_path / "db").write_bytes(content)
    one = database(tmp_path / "db")
    put(one, "a")
    assert one.is_shared
    assert keys(database(tmp_path / "db")) == ["a"]
    assert (tmp_path / "db.damaged").read_bytes() == content
    assert len(warnings(caplog)) == 1


def test_damage_while_in_use_moves_it_aside_for_all(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    one, two = database(tmp_path / "db"), database(tmp_path / "db")
    for number in range(2000):
        put(one, f"{number:05}")
    one.run(lambda connection: connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall())
    two.close()
    with (tmp_path / "db").open("r+b") as file:
        size = file.seek(0, 2)
        file.seek(4096)
        file.write(b"\xa5" * (size - 4096))
    assert keys(two) == []
    put(two, "new")
    assert keys(one) == ["new"]
    assert one.is_shared
    assert two.is_shared
    assert len([text for text in warnings(caplog) if "moved aside" in text]) == 1


def test_a_file_that_is_removed_is_begun_anew(tmp_path: Path) -> None:
    one, two = database(tmp_path / "db"), database(tmp_path / "db")
    put(one, "a")
    for path in tmp_path.glob("db*"):
        path.unlink()
    put(two, "b")
    assert keys(one) == ["b"]


def test_another_versions_tables_are_dropped(tmp_path: Path) -> None:
    put(database(tmp_path / "db", version=1), "a")
    assert keys(database(tmp_path / "db", version=2)) == []


def test_where_no_file_can_be_memory_does_and_it_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").touch()
    one = database(tmp_path / "file" / "db", retry_seconds=0)
    put(one, "a")
    put(one, "b")
    assert not one.is_shared
    assert len(warnings(caplog)) == 1


def test_memory_keeps_what_it_learns_between_tries(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    one = database(tmp_path / "file" / "db")
    put(one, "a")
    assert keys(one) == ["a"]


def test_a_lock_that_is_not_given_back_stops_nobody(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    one = database(tmp_path / "db", retry_seconds=0)
    put(one, "a")
    stopped = sqlite3.connect(tmp_path / "db", isolation_level=None)
    stopped.execute("BEGIN IMMEDIATE")
    put(one, "b")
    assert is_alone(one)
    stopped.execute("ROLLBACK")
    stopped.close()
    put(one, "c")
    assert one.is_shared
    assert keys(one) == ["a", "c"]
    assert ["can't be used" in text for text in warnings(caplog)] == [True, False]


def test_a_mistake_in_a_statement_is_not_hidden(tmp_path: Path) -> None:
    one = database(tmp_path / "db")
    with pytest.raises(sqlite3.IntegrityError):
        one.run(lambda connection: connection.execute("INSERT INTO t SELECT 'x', 1 UNION ALL SELECT 'x', 2"))
    assert one.is_shared


def test_a_transaction_that_fails_leaves_nothing(tmp_path: Path) -> None:
    one = database(tmp_path / "db")

    def fail(connection: sqlite3.Connection) -> None:
        with transaction(connection):
            connection.execute("INSERT INTO t VALUES ('x', 1)")
            raise LookupError

    with pytest.raises(LookupError):
        one.run(fail)
    assert keys(one) == []
    put(one, "y")
    assert keys(one) == ["y"]


def test_what_one_transaction_has_read_no_other_changes_before_it_ends(tmp_path: Path) -> None:
    put(database(tmp_path / "db"), "a")
    one, two = (sqlite3.connect(tmp_path / "db", isolation_level=None, timeout=0.01) for _ in range(2))
    with transaction(one):
        one.execute("SELECT * FROM t").fetchall()
        with pytest.raises(sqlite3.OperationalError, match="locked"), transaction(two):
            two.execute("DELETE FROM t")
    one.close()
    two.close()

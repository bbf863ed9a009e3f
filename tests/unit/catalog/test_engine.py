"""Opening, losing and closing the database."""

from __future__ import annotations

import asyncio
import re
import sqlite3
import traceback
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, event

from contentapp.catalog.admin import SqlAdminCatalog
from contentapp.catalog.base import Resources
from contentapp.catalog.content import SqlContentCatalog
from contentapp.catalog.engine import BATCH, CatalogEngine, batches, open_catalog
from contentapp.catalog.sqlite import create_file
from contentapp.catalog.upkeep import SqlUpkeepCatalog
from contentapp.core.errors import CatalogUnavailable
from contentapp.core.settings import DistributionSettings, RemoteSettings
from tests.conformance.catalog.samples import artifact, at, digest, distribution, entry, listed, remote, state, tag


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "with space, 100% & ?#" / "catalog.sqlite"


@pytest.fixture
async def engine(path: Path) -> AsyncIterator[CatalogEngine]:
    path.parent.mkdir()
    engine = await open_catalog(path, busy_timeout_seconds=0.05)
    yield engine
    await engine.close()


def content(engine: CatalogEngine) -> SqlContentCatalog:
    return SqlContentCatalog(engine, RemoteSettings(), DistributionSettings())


def scalar(connection: Connection, statement: str) -> Any:
    return connection.exec_driver_sql(statement).scalar()


@pytest.mark.parametrize(
    ("pragma", "value"), [("journal_mode", "wal"), ("synchronous", 2), ("foreign_keys", 1), ("busy_timeout", 50)]
)
async def test_pragmas(engine: CatalogEngine, pragma: str, value: object) -> None:
    for run in (engine.read, engine.write):
        assert await run(lambda connection: scalar(connection, f"PRAGMA {pragma}")) == value


async def test_only_the_owner_can_read_it(engine: CatalogEngine, path: Path) -> None:
    await content(engine).record_artifact(artifact(1))
    modes = {file.name: file.stat().st_mode & 0o777 for file in path.parent.iterdir()}
    assert modes == dict.fromkeys(
        ["catalog.sqlite", "catalog.sqlite-wal", "catalog.sqlite-shm", "catalog.sqlite.lock"], 0o600
    )


async def test_a_file_that_others_could_read_is_closed_to_them(tmp_path: Path) -> None:
    path = tmp_path / "c"
    path.touch(0o644)
    path.chmod(0o644)
    await (await open_catalog(path)).close()
    assert path.stat().st_mode & 0o777 == 0o600


async def test_what_was_written_is_there_after_a_restart(tmp_path: Path) -> None:
    for location in (f"sqlite:///{tmp_path}/c", str(tmp_path / "c"), tmp_path / "c"):
        engine = await open_catalog(location)
        await content(engine).record_artifact(artifact(1))
        assert await SqlUpkeepCatalog(engine).artifact_count() == 1
        await engine.close()


async def test_opening_it_again_leaves_the_locks_alone(engine: CatalogEngine, path: Path) -> None:
    """Closing any descriptor of a file drops the process's POSIX locks on it (fcntl(2))."""
    await content(engine).find_artifact(digest(1))
    inode = path.stat().st_ino
    before = locks_on(inode)
    create_file(path)
    assert locks_on(inode) == before != []


def locks_on(inode: int) -> list[list[str]]:
    lines = [line.split()[1:] for line in Path("/proc/locks").read_text().splitlines()]
    return [line for line in lines if any(field.endswith(f":{inode}") for field in line)]


@pytest.mark.parametrize("url", ["postgresql://me:hunter2@db/x", "sqlite://", ":memory:", ""])
async def test_other_databases_are_refused_without_showing_the_url(url: str) -> None:
    with pytest.raises(CatalogUnavailable, match="not available in this version") as caught:
        await open_catalog(url)
    assert "hunter2" not in str(caught.value)


def in_no_folder(path: Path) -> None:
    assert not path.parent.exists()


def a_folder(path: Path) -> None:
    path.mkdir(parents=True)


def not_a_database(path: Path) -> None:
    path.parent.mkdir()
    path.write_text("this is no database, but long enough to be taken for one " * 10)


def of_somebody_else(path: Path) -> None:
    path.parent.mkdir()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE theirs (a)")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (in_no_folder, "No such file or directory"),
        (a_folder, "is not a file"),
        (not_a_database, "file is not a database"),
        (of_somebody_else, "not a catalog"),
    ],
)
async def test_what_can_not_be_opened(path: Path, make: Callable[[Path], None], message: str) -> None:
    make(path)
    with pytest.raises(CatalogUnavailable, match=message):
        await open_catalog(path)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Another process is in the middle of a write."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield


async def test_a_lock_that_does_not_come_free(engine: CatalogEngine, path: Path) -> None:
    with locked(path):
        with pytest.raises(CatalogUnavailable, match="database is locked"):
            await content(engine).record_artifact(artifact(1))
        assert await content(engine).find_artifact(digest(1)) is None, "reads go on"
    await content(engine).record_artifact(artifact(1))
    assert await content(engine).find_artifact(digest(1)) == artifact(1)


async def test_a_full_disk(engine: CatalogEngine) -> None:
    full = await engine.write(lambda connection: scalar(connection, "PRAGMA max_page_count = 1"))
    secretive = [remote(password="hunter2" * 100_000)]
    with pytest.raises(CatalogUnavailable, match="full") as caught:
        await SqlAdminCatalog(engine).apply(Resources(remotes=secretive))
    assert "hunter2" not in "".join(traceback.format_exception(caught.value))
    await content(engine).record_artifact(artifact(1))
    assert await content(engine).find_artifact(digest(1)) == artifact(1)
    limit = await engine.write(lambda connection: scalar(connection, "PRAGMA max_page_count"))
    assert limit > full, "a connection that failed is not used again"


async def test_a_missing_file_is_not_made_anew(engine: CatalogEngine, path: Path) -> None:
    await content(engine).record_artifact(artifact(1))
    await engine.write(lambda connection: scalar(connection, "SELECT 1"))
    aside = path.with_name("aside")
    aside.mkdir()
    for name in ("catalog.sqlite", "catalog.sqlite-wal", "catalog.sqlite-shm"):
        path.with_name(name).rename(aside / name)
    for _ in range(2):
        with pytest.raises(CatalogUnavailable, match="unable to open database file"):
            await content(engine).find_artifact(digest(1))
        with pytest.raises(CatalogUnavailable):
            await content(engine).record_artifact(artifact(2))
    assert not path.exists()
    for file in aside.iterdir():
        file.rename(path.with_name(file.name))
    assert await content(engine).find_artifact(digest(1)) == artifact(1)
    await content(engine).record_artifact(artifact(2))
    assert await content(engine).find_artifact(digest(2)) == artifact(2)


async def test_a_replaced_file_is_noticed(engine: CatalogEngine, path: Path, tmp_path: Path) -> None:
    await content(engine).record_artifact(artifact(1))
    other = await open_catalog(tmp_path / "other")
    await content(other).record_artifact(artifact(2))
    await other.close()
    for suffix in ("-wal", "-shm"):
        path.with_name(path.name + suffix).unlink()
    (tmp_path / "other").rename(path)
    assert await content(engine).find_artifact(digest(1)) is None
    assert await content(engine).find_artifact(digest(2)) == artifact(2)
    await content(engine).record_artifact(artifact(3))
    assert await SqlUpkeepCatalog(engine).artifact_count() == 2


async def test_what_raises_writes_nothing(engine: CatalogEngine) -> None:
    def half(connection: Connection) -> None:
        connection.exec_driver_sql("DELETE FROM artifacts")
        raise RuntimeError("half way")

    await content(engine).record_artifact(artifact(1))
    with pytest.raises(RuntimeError, match="half way"):
        await engine.write(half)
    assert await content(engine).find_artifact(digest(1)) == artifact(1)


async def test_a_reader_sees_one_state(engine: CatalogEngine) -> None:
    loop = asyncio.get_running_loop()

    def twice(connection: Connection) -> list[Any]:
        before = scalar(connection, "SELECT count(*) FROM artifacts")
        asyncio.run_coroutine_threadsafe(content(engine).record_artifact(artifact(1)), loop).result()
        return [before, scalar(connection, "SELECT count(*) FROM artifacts")]

    assert await engine.read(twice) == [0, 0]
    assert await SqlUpkeepCatalog(engine).artifact_count() == 1


async def test_a_cancelled_caller_leaves_nothing_open(tmp_path: Path) -> None:
    path = tmp_path / "c"
    engine = await open_catalog(path, busy_timeout_seconds=10)
    with locked(path):
        tasks = [asyncio.create_task(content(engine).record_artifact(artifact(number))) for number in range(3)]
        await content(engine).find_artifact(digest(1))
        for task in tasks:
            task.cancel()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [asyncio.CancelledError] * 3
    await content(engine).record_artifact(artifact(9))
    assert await content(engine).find_artifact(digest(9)) == artifact(9)
    assert await content(engine).find_artifact(digest(2)) is None, "what had not begun was dropped"
    await engine.close()


async def test_a_closed_catalog(engine: CatalogEngine, path: Path) -> None:
    await content(engine).record_artifact(artifact(1))
    for _ in range(2):
        await engine.close()
    for question in (content(engine).find_artifact(digest(1)), content(engine).record_artifact(artifact(1))):
        with pytest.raises(CatalogUnavailable, match="closed"):
            await question
    assert not path.with_name("catalog.sqlite-wal").exists()


async def test_close_waits_for_a_running_write(engine: CatalogEngine, path: Path) -> None:
    write = asyncio.create_task(content(engine).record_artifact(artifact(1)))
    await asyncio.sleep(0)
    await engine.close()
    await write
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT count(*) FROM artifacts").fetchone() == (1,)


@pytest.mark.parametrize("number", [0, 1, BATCH, BATCH + 1])
def test_batches(number: int) -> None:
    parts = list(batches(iter(range(number))))
    assert [row for part in parts for row in part] == list(range(number))
    assert all(0 < len(part) <= BATCH for part in parts)


async def ask_everything(engine: CatalogEngine) -> None:
    """All that the data path asks for each request."""
    catalog = content(engine)
    await catalog.find_tag(1, "n", "t")
    await catalog.record_tag(1, "n", tag())
    await catalog.tag_names(1, "n")
    await catalog.forget_tag(1, "n", "t")
    await catalog.find_member(1, "n", digest(1))
    await catalog.find_file(1, "p")
    await catalog.record_file(1, entry(), replaces=1)
    await catalog.touch_file(1, "p", at(1))
    await catalog.forget_file(1, "p")
    await catalog.files_below(1, "a/", 10)
    await catalog.files_below(1, "", 10)
    await catalog.find_listing(1)
    await catalog.find_listed(1, "p")
    await catalog.listed_below(1, "a/", 10)
    await catalog.listed_below(1, "", 10)
    await catalog.find_artifact(digest(1))
    await catalog.touch_artifacts({digest(1): at(1)})
    await catalog.forget_artifact(digest(1))
    await catalog.forget_source(digest(1), 1)
    await catalog.last_modified(digest(1), at(1))
    await catalog.touch_listing(state(1))
    await catalog.add_listed(1, await catalog.begin_listing(1), [listed("a")])
    await SqlUpkeepCatalog(engine).evictable(10)
    await SqlUpkeepCatalog(engine).artifacts("", 10)


async def test_every_question_has_an_index(engine: CatalogEngine, path: Path) -> None:
    await SqlAdminCatalog(engine).apply(Resources(remotes=[remote()], distributions=[distribution("x", "quay")]))
    asked: dict[str, Any] = {}

    def remember(_c: object, _cursor: object, statement: str, values: Any, _context: object, many: bool) -> None:
        asked[statement] = values[0] if many else values

    event.listen(Engine, "before_cursor_execute", remember)
    try:
        await ask_everything(engine)
    finally:
        event.remove(Engine, "before_cursor_execute", remember)
    with closing(sqlite3.connect(path)) as connection:
        for statement, values in asked.items():
            if re.match("SELECT|UPDATE|DELETE", statement):
                steps = [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {statement}", values)]
                assert not [step for step in steps if is_slow(step)], f"{statement}: {steps}"


def is_slow(step: str) -> bool:
    """Whether SQLite would read a whole table of content, or sort."""
    return "B-TREE" in step or bool(re.match(r"SCAN (tags|members|files|listed|artifacts|artifact_sources)\b", step))

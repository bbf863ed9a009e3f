"""Bringing the tables up to date."""

from __future__ import annotations

import asyncio
import importlib.util
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, create_engine

from contentapp.catalog import migration
from contentapp.catalog.base import CatalogTooNew
from contentapp.catalog.engine import open_catalog
from contentapp.catalog.migration import HEAD, REVISIONS, SCRIPTS, migrate, migration_lock, recorded_revision
from contentapp.catalog.sqlite import create_file
from contentapp.catalog.tables import metadata
from contentapp.core.errors import CatalogUnavailable


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "100% catalog.sqlite"
    create_file(path)
    return path


def bring_up_to_date(path: Path) -> None:
    migrate(path, busy_timeout_seconds=5)


def revision(path: Path) -> str | None:
    return recorded_revision(path, 5)


def execute(path: Path, statement: str) -> None:
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(statement)


def scripts() -> ScriptDirectory:
    config = Config()
    config.set_main_option("script_location", str(SCRIPTS).replace("%", "%%"))
    return ScriptDirectory.from_config(config)


def test_the_revisions_are_those_of_the_scripts() -> None:
    assert tuple(script.revision for script in scripts().walk_revisions())[::-1] == REVISIONS
    assert scripts().get_heads() == [HEAD]


async def test_tables_and_migrations_agree(path: Path) -> None:
    def differences(connection: Connection) -> object:
        options = {"compare_type": True, "compare_server_default": True}
        return compare_metadata(MigrationContext.configure(connection, opts=options), metadata)

    engine = await open_catalog(path)
    assert await engine.read(differences) == []
    await engine.close()


def columns_and_options(path: Path) -> dict[str, tuple[str, ...]]:
    """What `compare_metadata` does not see: keys, the kind of table, the parts of indexes."""
    with closing(sqlite3.connect(path)) as connection:
        rows = connection.execute("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL").fetchall()
    ours = [(name, sql) for name, sql in rows if name not in {"alembic_version", "sqlite_sequence"}]
    return {name: tuple(sorted(part.strip(" ,\t") for part in sql.splitlines() if part.strip())) for name, sql in ours}


def test_tables_and_migrations_make_the_same_database(path: Path, tmp_path: Path) -> None:
    bring_up_to_date(path)
    direct = create_engine(f"sqlite:///{tmp_path}/direct")
    metadata.create_all(direct)
    direct.dispose()
    assert columns_and_options(path) == columns_and_options(tmp_path / "direct")


def test_from_empty_and_again(path: Path) -> None:
    assert revision(path) is None
    bring_up_to_date(path)
    assert revision(path) == HEAD
    before = path.read_bytes()
    bring_up_to_date(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("newer", ["0003", "9999", "", "abc"])
async def test_a_newer_database_is_refused_and_left_alone(path: Path, newer: str) -> None:
    bring_up_to_date(path)
    execute(path, f"UPDATE alembic_version SET version_num = '{newer}'")
    before = path.read_bytes()
    with pytest.raises(CatalogTooNew, match="made by a newer version") as caught:
        await open_catalog(path)
    assert isinstance(caught.value, CatalogUnavailable)
    assert path.read_bytes() == before


def test_the_look_up_is_repeated_under_the_lock(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bring_up_to_date(path)
    looks: list[bool] = []

    def at_first_not(_path: Path, _timeout: float) -> bool:
        looks.append(bool(looks))
        return looks[-1]

    monkeypatch.setattr(migration, "is_current", at_first_not)
    bring_up_to_date(path)
    assert looks == [False, True]


OPENER = """
import asyncio, sys
from contentapp.catalog.engine import open_catalog

async def main():
    await (await open_catalog(sys.argv[1])).close()
    print("alembic" in sys.modules)

asyncio.run(main())
"""

DIES = """
import os, signal
from sqlalchemy import Engine, event

@event.listens_for(Engine, "after_cursor_execute")
def die(connection, cursor, statement, *rest):
    if "CREATE TABLE artifacts" in statement:
        os.kill(os.getpid(), signal.SIGKILL)
"""


def start(script: str, path: Path) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE, text=True)


def test_several_processes_start_at_once(path: Path) -> None:
    path.unlink()
    processes = [start(OPENER, path) for _ in range(4)]
    outcomes = [(process.communicate()[0].strip(), process.returncode) for process in processes]
    assert {code for _, code in outcomes} == {0}
    assert revision(path) == HEAD


def test_alembic_is_imported_only_when_there_is_something_to_do(path: Path) -> None:
    for expected in ("True", "False"):
        with start(OPENER, path) as process:
            assert process.communicate()[0].strip() == expected


def test_a_kill_in_the_middle_leaves_the_tables_as_they_were(path: Path) -> None:
    with start(DIES + OPENER, path) as process:
        process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert revision(path) is None
    asyncio.run(open_and_close(path))
    assert revision(path) == HEAD


async def open_and_close(path: Path) -> None:
    await (await open_catalog(path)).close()


def test_the_scripts_are_modules_of_the_package() -> None:
    """So that a wheel holds them."""
    assert importlib.util.find_spec("contentapp.catalog.migrations.versions") is not None
    assert {file.suffix for file in (SCRIPTS / "versions").iterdir() if file.is_file()} == {".py"}


def test_only_one_process_at_a_time(path: Path) -> None:
    waiting = threading.Thread(target=bring_up_to_date, args=(path,))
    with migration_lock(path):
        waiting.start()
        waiting.join(0.5)
        assert revision(path) is None
    waiting.join()
    assert revision(path) == HEAD


def test_installed_under_an_odd_path(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    odd = tmp_path / "100% (x)s"
    shutil.copytree(SCRIPTS, odd)
    monkeypatch.setattr(migration, "SCRIPTS", odd)
    bring_up_to_date(path)
    assert revision(path) == HEAD


def test_a_lock_file_that_can_not_be_made(tmp_path: Path, path: Path) -> None:
    Path(f"{path}.lock").mkdir()
    with pytest.raises(CatalogUnavailable, match="Is a directory"):
        bring_up_to_date(path)

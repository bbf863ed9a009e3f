"""What the paths of file distributions were last seen to be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any

from sqlalchemy import Row, and_, bindparam, delete, select, update

from contentapp.catalog.engine import Queries, upsert
from contentapp.catalog.tables import below, files
from contentapp.core.digest import Digest
from contentapp.core.records import FileEntry

THIS_FILE = and_(files.c.distribution_id == bindparam("distribution"), files.c.path == bindparam("this_path"))
SELECT_FILE = select(files).where(THIS_FILE)
DELETE_FILE = delete(files).where(THIS_FILE)
REPLACE_FILE = update(files).where(THIS_FILE, files.c.revision == bindparam("replaces"))
TOUCH_FILE = (
    update(files)
    .where(THIS_FILE, files.c.checked_at < bindparam("new_checked_at"))
    .values(checked_at=bindparam("new_checked_at"))
)
INSERT_FILE = upsert(files).on_conflict_do_nothing()


class FileQueries(Queries):
    """What the data path knows of files."""

    async def find_file(self, distribution: int, path: str) -> FileEntry | None:
        row = await self._find(SELECT_FILE, {"distribution": distribution, "this_path": path})
        return None if row is None else file_record(row)

    async def record_file(self, distribution: int, entry: FileEntry, *, replaces: int) -> bool:
        """Compare-and-set by revision; the entry's own `revision` is not looked at. False: somebody was faster."""
        row = file_row(distribution, entry) | {"revision": replaces + 1}
        if replaces == 0:
            return await self._change(INSERT_FILE, row) == 1
        key = {"distribution": distribution, "this_path": entry.path, "replaces": replaces}
        return await self._change(REPLACE_FILE, row | key) == 1

    async def touch_file(self, distribution: int, path: str, checked_at: datetime) -> None:
        """It was revalidated; an older time than the one recorded is ignored."""
        key = {"distribution": distribution, "this_path": path}
        await self._change(TOUCH_FILE, key | {"new_checked_at": checked_at})

    async def forget_file(self, distribution: int, path: str) -> None:
        await self._change(DELETE_FILE, {"distribution": distribution, "this_path": path})

    async def files_below(self, distribution: int, prefix: str, limit: int) -> Sequence[FileEntry]:
        statement = select(files).where(files.c.distribution_id == distribution, below(files.c.path, prefix))
        rows = await self._all(statement.order_by(files.c.path).limit(limit), {})
        return [file_record(row) for row in rows]


def file_row(distribution: int, entry: FileEntry) -> dict[str, Any]:
    return asdict(entry) | {"distribution_id": distribution, "digest": str(entry.digest)}


def file_record(row: Row[Any]) -> FileEntry:
    values = row._asdict()
    del values["distribution_id"]
    return FileEntry(**values | {"digest": Digest.parse(row.digest)})

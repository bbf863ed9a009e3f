"""Removing in short transactions."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import Connection, insert

from contentapp.catalog.engine import BATCH, open_catalog
from contentapp.catalog.sweep import orphaned, remove_some, sweep
from contentapp.catalog.tables import files, listed, listings


def fill(connection: Connection) -> None:
    rows = [{"listing_id": 7, "path": f"{number:06}", "digest": "d", "size": 1} for number in range(2 * BATCH + 1)]
    connection.execute(insert(listings), {"id": 3, "remote_id": 1, "is_current": False})
    connection.execute(insert(listed), [*rows, rows[0] | {"listing_id": 3}, rows[0] | {"listing_id": 1}])


async def test_no_transaction_removes_more_than_a_batch(tmp_path: Path) -> None:
    engine = await open_catalog(tmp_path / "c")
    await engine.write(fill)
    assert await engine.read(lambda connection: orphaned(connection, listed.c.listing_id, listings)) == [1, 7]
    assert await engine.read(lambda connection: orphaned(connection, files.c.distribution_id, listings)) == []
    assert await engine.write(lambda connection: remove_some(connection, listed.c.listing_id, 7)) == BATCH
    # The listing that is kept goes as well, for its remote does not exist.
    assert await sweep(engine) == BATCH + 1 + 1 + 2
    await engine.close()

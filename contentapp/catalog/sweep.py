"""Removing rows whose parent is gone, in short transactions.

Parents' ids are never reused, so an id without a parent stays so; whatever is cut short here is found again.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from sqlalchemy import Column, Connection, Table, delete, func, select, tuple_

from contentapp.catalog.engine import BATCH, CatalogEngine
from contentapp.catalog.tables import (
    artifact_sources,
    distributions,
    files,
    listed,
    listing_states,
    listings,
    members,
    remotes,
    tags,
)

# Each column leads an index. Listings come before what is listed in them.
CHILDREN: tuple[tuple[Column[Any], Table], ...] = (
    (tags.c.distribution_id, distributions),
    (members.c.distribution_id, distributions),
    (files.c.distribution_id, distributions),
    (artifact_sources.c.remote_id, remotes),
    (listing_states.c.remote_id, remotes),
    (listings.c.remote_id, remotes),
)


async def sweep(engine: CatalogEngine) -> int:
    """Remove all rows that nothing can reach any more; their number."""
    swept = 0
    for column, parent in CHILDREN:
        swept += await sweep_children(engine, column, parent)
    return swept + await sweep_listed(engine)


async def sweep_listed(engine: CatalogEngine) -> int:
    """Remove the entries of listings that were superseded, replaced or given up; their number."""
    return await sweep_children(engine, listed.c.listing_id, listings)


async def sweep_children(engine: CatalogEngine, column: Column[Any], parent: Table) -> int:
    """Remove the rows whose `column` is no id of `parent`; their number."""
    swept = 0
    orphans = await engine.read(lambda connection: orphaned(connection, column, parent))
    for orphan in orphans:
        while removed := await engine.write(partial(remove_some, column=column, value=orphan)):
            swept += removed
    return swept


def orphaned(connection: Connection, column: Column[Any], parent: Table) -> list[int]:
    """The values of `column` that are no id of `parent`: one step in the index for each distinct value."""
    parents = set(connection.scalars(select(parent.c.id)))
    values = []
    value = connection.scalar(select(func.min(column)))
    while value is not None:
        values.append(value)
        value = connection.scalar(select(func.min(column)).where(column > value))
    return [value for value in values if value not in parents]


def remove_some(connection: Connection, column: Column[Any], value: int) -> int:
    """Remove at most one batch of the rows with this value; how many there were."""
    key = list(column.table.primary_key)
    some = select(*key).where(column == value).limit(BATCH)
    return connection.execute(delete(column.table).where(tuple_(*key).in_(some))).rowcount

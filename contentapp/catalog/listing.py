"""Remotes' PULP_MANIFESTs.

A listing is added under an id of its own and becomes visible when the remote's state names that id. What loses its row
in `listings` (superseded, replaced, its remote removed) is rubbish; every writer checks, in its transaction, that its
listing still has that row, so rubbish never becomes visible.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from operator import attrgetter
from typing import Any

from sqlalchemy import Connection, Row, and_, bindparam, delete, insert, select, update
from sqlalchemy.exc import IntegrityError

from contentapp.catalog.base import ListingSuperseded
from contentapp.catalog.engine import Queries, upsert
from contentapp.catalog.sweep import sweep_listed
from contentapp.catalog.tables import below, listed, listing_states, listings
from contentapp.core.digest import Digest
from contentapp.core.errors import MetadataInvalid
from contentapp.core.records import ListedFile, ListingState

SHOWN_PATH_LENGTH = 200

SELECT_STATE = select(listing_states).where(listing_states.c.remote_id == bindparam("remote"))
CURRENT_ENTRIES = select(listed).join(
    listing_states,
    and_(listed.c.listing_id == listing_states.c.listing_id, listing_states.c.remote_id == bindparam("remote")),
)
SELECT_LISTED = CURRENT_ENTRIES.where(listed.c.path == bindparam("this_path"))
STATE_FIELDS = ("present", "etag", "last_modified", "checked_at")


class ListingQueries(Queries):
    """What the data path knows of remotes' listings."""

    async def find_listing(self, remote: int) -> ListingState | None:
        row = await self._find(SELECT_STATE, {"remote": remote})
        return None if row is None else state_record(row)

    async def find_listed(self, remote: int, path: str) -> ListedFile | None:
        row = await self._find(SELECT_LISTED, {"remote": remote, "this_path": path})
        return None if row is None else entry_record(row)

    async def listed_below(self, remote: int, prefix: str, limit: int) -> Sequence[ListedFile]:
        statement = CURRENT_ENTRIES.where(below(listed.c.path, prefix)).order_by(listed.c.path).limit(limit)
        return [entry_record(row) for row in await self._all(statement, {"remote": remote})]

    async def begin_listing(self, remote: int) -> int:
        """Supersedes what was begun for this remote and not finished, by a process that died or is too slow."""
        listing = await self._engine.write(lambda connection: begin(connection, remote))
        await sweep_listed(self._engine)
        return listing

    async def add_listed(self, remote: int, listing: int, entries: Sequence[ListedFile]) -> None:
        await self._engine.write(lambda connection: add(connection, remote, listing, entries))

    async def finish_listing(self, listing: int, state: ListingState) -> None:
        await self._engine.write(lambda connection: finish(connection, listing, state))
        await sweep_listed(self._engine)

    async def touch_listing(self, state: ListingState) -> None:
        """Without one (`present` False) the entries vanish; with one they stay, and so does their number.

        A state older than the one recorded is ignored.
        """
        await self._engine.write(lambda connection: touch(connection, state))
        if not state.present:
            await sweep_listed(self._engine)


def begin(connection: Connection, remote: int) -> int:
    connection.execute(delete(listings).where(listings.c.remote_id == remote, ~listings.c.is_current))
    new = insert(listings).values(remote_id=remote, is_current=False).returning(listings.c.id)
    return int(connection.execute(new).scalar_one())


def add(connection: Connection, remote: int, listing: int, entries: Sequence[ListedFile]) -> None:
    check_open(connection, remote, listing)
    rows = [
        {"listing_id": listing, "path": entry.path, "digest": str(entry.digest), "size": entry.size}
        for entry in sorted(entries, key=attrgetter("path"))  # neighbours share pages
    ]
    if not rows:
        return
    try:
        with connection.begin_nested():
            connection.execute(insert(listed), rows)
    except IntegrityError:
        path = repeated_path(connection, listing, entries)
        raise MetadataInvalid(f"listed twice: {path[:SHOWN_PATH_LENGTH]!r}") from None
    except (OverflowError, UnicodeEncodeError):
        raise MetadataInvalid("a path or size that can't be stored") from None


def repeated_path(connection: Connection, listing: int, entries: Sequence[ListedFile]) -> str:
    """The first path that this batch repeats, or that the listing already has."""
    times = Counter(entry.path for entry in entries)
    statement = select(listed.c.path).where(listed.c.listing_id == listing, listed.c.path == bindparam("this_path"))
    for path, count in times.items():
        if count > 1 or connection.execute(statement, {"this_path": path}).one_or_none():
            return path
    return ""


def finish(connection: Connection, listing: int, state: ListingState) -> None:
    check_open(connection, state.remote_id, listing)
    others = and_(listings.c.remote_id == state.remote_id, listings.c.id != listing)
    connection.execute(delete(listings).where(others))
    connection.execute(update(listings).where(listings.c.id == listing).values(is_current=True))
    record_state(connection, state, listing=listing, entries=state.entries)


def touch(connection: Connection, state: ListingState) -> None:
    known = connection.execute(SELECT_STATE.with_for_update(), {"remote": state.remote_id}).one_or_none()
    if known is None:
        record_state(connection, state, listing=None, entries=state.entries)
    elif known.checked_at <= state.checked_at and state.present:
        record_state(connection, state, listing=known.listing_id, entries=known.entries)
    elif known.checked_at <= state.checked_at:
        connection.execute(delete(listings).where(listings.c.id == known.listing_id))
        record_state(connection, state, listing=None, entries=0)


def check_open(connection: Connection, remote: int, listing: int) -> None:
    """ListingSuperseded unless entries may still be added to this listing of this remote."""
    this = and_(listings.c.id == listing, listings.c.remote_id == remote, ~listings.c.is_current)
    if connection.execute(select(listings.c.id).where(this).with_for_update()).one_or_none() is None:
        raise ListingSuperseded(f"listing {listing} of remote {remote}")


def record_state(connection: Connection, state: ListingState, *, listing: int | None, entries: int) -> None:
    values = {name: getattr(state, name) for name in STATE_FIELDS} | {"listing_id": listing, "entries": entries}
    statement = upsert(listing_states).values(remote_id=state.remote_id, **values)
    connection.execute(
        statement.on_conflict_do_update(index_elements=[listing_states.c.remote_id], set_=values),
    )


def state_record(row: Row[Any]) -> ListingState:
    values = row._asdict()
    del values["listing_id"]
    return ListingState(**values)


def entry_record(row: Row[Any]) -> ListedFile:
    return ListedFile(path=row.path, digest=Digest.parse(row.digest), size=row.size)

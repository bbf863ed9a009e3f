"""The face of the catalog that eviction, verify and adoption ask."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import bindparam, exists, false, func, select

from contentapp.catalog.artifact import IS_STORED, artifact_record
from contentapp.catalog.engine import Queries
from contentapp.catalog.sweep import sweep
from contentapp.catalog.tables import artifact_sources, artifacts, remotes
from contentapp.core.records import ArtifactRecord

HAS_LIVE_SOURCE = exists().where(
    artifact_sources.c.digest == artifacts.c.digest, artifact_sources.c.remote_id == remotes.c.id
)
SELECT_EVICTABLE = (
    select(artifacts)
    .where(IS_STORED, artifacts.c.pinned == false(), HAS_LIVE_SOURCE)
    .order_by(artifacts.c.eviction_at, artifacts.c.digest)
    .limit(bindparam("limit"))
)
# IS NOT keeps the planner from the index of eviction, which would have to be sorted for each page.
SELECT_PAGE = (
    select(artifacts)
    .where(artifacts.c.is_stored.is_not(false()), artifacts.c.digest > bindparam("after"))
    .order_by(artifacts.c.digest)
    .limit(bindparam("limit"))
)
SELECT_TOTALS = select(func.count().label("number"), func.coalesce(func.sum(artifacts.c.size), 0).label("size")).where(
    IS_STORED
)


class SqlUpkeepCatalog(Queries):
    """An UpkeepCatalog on an engine from `open_catalog`."""

    async def evictable(self, limit: int) -> Sequence[ArtifactRecord]:
        """An artifact that was never used takes its place by when it was stored."""
        return [artifact_record(row) for row in await self._all(SELECT_EVICTABLE, {"limit": limit})]

    async def artifacts(self, after: str, limit: int) -> Sequence[ArtifactRecord]:
        return [artifact_record(row) for row in await self._all(SELECT_PAGE, {"after": after, "limit": limit})]

    async def stored_size(self) -> int:
        (totals,) = await self._all(SELECT_TOTALS, {})
        return int(totals.size)

    async def artifact_count(self) -> int:
        (totals,) = await self._all(SELECT_TOTALS, {})
        return int(totals.number)

    async def sweep(self) -> int:
        return await sweep(self._engine)

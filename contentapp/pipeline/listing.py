"""Listings: each file remote's PULP_MANIFEST, read in the background, streamed, conditional, replaced atomically."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta

import structlog

from contentapp.coordination.base import Coordination, Following
from contentapp.core.errors import (
    CatalogUnavailable,
    ContentAppError,
    ContentNotFound,
    LeaderLost,
    MetadataInvalid,
    UpstreamProtocolError,
)
from contentapp.core.records import ListedFile, ListingState, Remote
from contentapp.metrics import metrics
from contentapp.pipeline.fetch import Fetched, Fetcher
from contentapp.pipeline.lookup import Lookup, now
from contentapp.plugins import file
from contentapp.plugins.file_listing import ListingParser
from contentapp.upstream.base import UpstreamRequest

log = structlog.get_logger("contentapp.listing")

BATCH_SIZE = 2000
FEED_SIZE = 64 * 1024
HEAD_SECONDS = 60.0


class Listings:
    """Keeps what the remotes say of their files fresh."""

    def __init__(self, fetcher: Fetcher, lookup: Lookup, coordination: Coordination) -> None:
        self._fetcher = fetcher
        self._lookup = lookup
        self._coordination = coordination
        self._tasks: dict[int, asyncio.Task[bool]] = {}
        self._retry_at: dict[int, float] = {}
        self._states: dict[int, ListingState] = {}

    async def ready(self, remote: Remote) -> ListingState | None:
        """The remote's listing as it is known; the first time it is waited for, at most `metadata_wait_seconds`."""
        state = await self._state(remote)
        ttl = timedelta(seconds=remote.settings.metadata_ttl_seconds)
        if state is not None and now() - state.checked_at <= ttl:
            return state
        task = self._refresh(remote)
        if state is None and task is not None:
            await asyncio.wait([task], timeout=remote.settings.metadata_wait_seconds)
            return await self._state(remote)
        return state

    async def revalidate(self, remote: Remote) -> bool:
        """Ask for it now; whether it was replaced."""
        self._retry_at.pop(remote.id, None)
        task = self._refresh(remote)
        return task is not None and await asyncio.shield(task)

    async def _state(self, remote: Remote) -> ListingState | None:
        known = self._states.get(remote.id)
        ttl = timedelta(seconds=remote.settings.metadata_ttl_seconds)
        if known is not None and now() - known.checked_at <= ttl:
            return known
        try:
            state = await self._lookup.catalog.find_listing(remote.id)
        except CatalogUnavailable:
            return known
        if state is not None:
            self._states[remote.id] = state
        return state

    def _refresh(self, remote: Remote) -> asyncio.Task[bool] | None:
        task = self._tasks.get(remote.id)
        if task is None:
            if self._retry_at.get(remote.id, 0.0) > asyncio.get_running_loop().time():
                return None
            task = asyncio.create_task(self._lead(remote), name=f"listing {remote.name}")
            self._tasks[remote.id] = task
            task.add_done_callback(lambda done: self._done(remote, done))
        return task

    def _done(self, remote: Remote, task: asyncio.Task[bool]) -> None:
        del self._tasks[remote.id]
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("listing failed", remote=remote.name, error=repr(error))

    async def _lead(self, remote: Remote) -> bool:
        """One process reads it; the others wait for that one and look at the result."""
        before = await self._lookup.catalog.find_listing(remote.id)
        held = await self._coordination.lease(f"listing:{remote.id}")
        if isinstance(held, Following):
            try:
                async for _ in held.updates():
                    pass
            except LeaderLost:
                return False
            finally:
                await held.close()
            after = await self._lookup.catalog.find_listing(remote.id)
            return after is not None and (before is None or after.etag != before.etag or after != before)
        try:
            return await self._read(remote)
        except (ContentAppError, TimeoutError) as error:
            # What is known stays; nobody asks again before the first cooldown has passed.
            loop = asyncio.get_running_loop()
            self._retry_at[remote.id] = loop.time() + remote.settings.cooldown_initial_seconds
            log.warning("listing not refreshed", remote=remote.name, error=str(error))
            return False
        finally:
            await asyncio.shield(held.release())

    async def _read(self, remote: Remote) -> bool:
        state = await self._lookup.catalog.find_listing(remote.id)
        source = file.listing_source(remote)
        etag = state.etag if state is not None and state.present else ""
        modified = state.last_modified if state is not None and state.present else ""
        request = UpstreamRequest(source=source, if_none_match=etag, if_modified_since="" if etag else modified)
        deadline = asyncio.get_running_loop().time() + HEAD_SECONDS
        try:
            async with self._fetcher.open([source], lambda _: request, deadline=deadline) as fetched:
                if fetched.response.status == 304 and state is not None:
                    return await self._checked(replace(state, checked_at=now()), is_new=False)
                return await self._replace(remote, fetched)
        except ContentNotFound:
            absent = ListingState(remote_id=remote.id, present=False, checked_at=now())
            return await self._checked(absent, is_new=state is None or state.present)

    async def _checked(self, state: ListingState, *, is_new: bool) -> bool:
        await self._lookup.catalog.touch_listing(state)
        self._states[state.remote_id] = state
        if is_new:
            self._lookup.listing_changed(state.remote_id)
        return is_new

    async def _replace(self, remote: Remote, fetched: Fetched) -> bool:
        """Read it all into a new listing, which becomes the remote's in one step at the end."""
        response, catalog = fetched.response, self._lookup.catalog
        if response.headers.get("Content-Type", "").lower().startswith("text/html"):
            raise UpstreamProtocolError("answered an HTML page", host=response.host)
        listing = await catalog.begin_listing(remote.id)
        count = 0
        async for batch in self._batches(remote, fetched):
            count += len(batch)
            await catalog.add_listed(remote.id, listing, batch)
        state = ListingState(
            remote_id=remote.id,
            present=True,
            etag=response.etag,
            last_modified=response.last_modified,
            checked_at=now(),
            entries=count,
        )
        await catalog.finish_listing(listing, state)
        self._states[remote.id] = state
        self._lookup.listing_changed(remote.id)
        log.info("listing read", remote=remote.name, entries=count)
        return True

    async def _batches(self, remote: Remote, fetched: Fetched) -> AsyncIterator[list[ListedFile]]:
        parser, batch, size = ListingParser(), list[ListedFile](), 0
        async for chunk in fetched.response.chunks():
            metrics.upstream_bytes(remote.name, len(chunk))
            size += len(chunk)
            if size > remote.settings.metadata_max_size:
                raise MetadataInvalid(f"the listing is larger than {remote.settings.metadata_max_size} bytes")
            for start in range(0, len(chunk), FEED_SIZE):
                batch += parser.feed(chunk[start : start + FEED_SIZE])
                if len(batch) >= BATCH_SIZE:
                    yield batch
                    batch = []
        batch += parser.finish()
        if batch:
            yield batch

    async def close(self) -> None:
        """End what is under way."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

"""``/pulp/api/v3/transfers/``: what is being fetched now, in all processes (P4), and what waits to go on (P6)."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import structlog
from aiohttp import web

from contentapp.api.resource import (
    API_ROOT,
    InvalidField,
    body_of,
    detail,
    href,
    identity,
    not_found,
    page,
    timestamp,
)
from contentapp.catalog.base import ContentCatalog
from contentapp.coordination.base import Coordination, FlightProgress
from contentapp.core.errors import CatalogUnavailable, StorageError
from contentapp.core.records import Remote
from contentapp.pipeline.flight import CANCEL_TOPIC
from contentapp.pipeline.note import parse_facts
from contentapp.storage.base import Storage, Suspended

log = structlog.get_logger("contentapp.admin")

NOUN = "transfers"
FILTERS = ("remote", "state")
SUSPENDED = "suspended"

CANCEL_SECONDS = 10.0
"""How long the processes have to end a transfer."""

LOOK_SECONDS = 0.05
"""Between two looks at whether they have."""


class NotEnded(web.HTTPGatewayTimeout):
    """Nobody is to believe that a transfer was ended which goes on."""

    def __init__(self, seconds: float) -> None:
        text = f"the transfer was told to end, but has not ended within {seconds:g} s"
        super().__init__(text=json.dumps({"detail": text}), content_type="application/json")


@dataclass(frozen=True, slots=True, kw_only=True)
class Transfer:
    """One row. state: a FlightState, or SUSPENDED. since: when it began, or was written down, in seconds of
    time.time(); 0: unknown. remote: None if it can't be told. The rest is as in FlightProgress.
    """

    key: str
    state: str
    size: int | None
    arrived: int
    remote: str | None
    since: float
    attempt: str = ""
    followers: int = 0
    keep: bool = True
    is_windowed: bool = False


class Transfers:
    """What is under way or suspended can be seen and ended. All transfers of one key share an address."""

    def __init__(
        self,
        coordination: Coordination,
        storage: Storage,
        catalog: ContentCatalog,
        *,
        clock: Callable[[], float] = time.time,
        cancel_seconds: float = CANCEL_SECONDS,
    ) -> None:
        self._coordination = coordination
        self._storage = storage
        self._catalog = catalog
        self._clock = clock
        self._cancel_seconds = cancel_seconds

    def routes(self) -> list[web.RouteDef]:
        """Where they are found."""
        root = f"{API_ROOT}{NOUN}/"
        return [
            web.get(root, self.index),
            web.post(f"{root}cancel/", self.cancel),
            web.get(f"{root}{{id}}/", self.read),
            web.delete(f"{root}{{id}}/", self.delete),
        ]

    async def index(self, request: web.Request) -> web.Response:
        """All, or those from a ``remote`` or in a ``state``; the oldest first."""
        remote, state = request.query.get("remote"), request.query.get("state")
        found = [
            transfer
            for transfer in await self._all()
            if remote in {None, transfer.remote} and state in {None, transfer.state}
        ]
        found.sort(key=lambda transfer: (transfer.since, transfer.key))
        return page(request, found, self.show, FILTERS)

    async def read(self, request: web.Request) -> web.Response:
        """One."""
        found = await self._find(request.match_info["id"])
        return web.json_response(self.show(found[0])) if found else not_found()

    async def delete(self, request: web.Request) -> web.Response:
        """End one."""
        found = await self._find(request.match_info["id"])
        if not found:
            return not_found()
        await self._end(found)
        return web.Response(status=204)

    async def cancel(self, request: web.Request) -> web.Response:
        """End what has this ``key``: devices that follow are reset, nothing of it is kept; how many there were."""
        body = await body_of(request, {"key": str})
        if "key" not in body:
            raise InvalidField("key", "is required")
        found = [transfer for transfer in await self._all() if transfer.key == body["key"]]
        if not found:
            return detail(404, "no transfer has this key")
        await self._end(found)
        return web.json_response({"cancelled": len(found)})

    async def _end(self, found: Sequence[Transfer]) -> None:
        """End the transfers of a key: NotEnded, StorageUnavailable.

        What is suspended goes first: nobody can take it up any more, and who has done so before is told. Whoever asks
        for the content from then on begins anew, and is not waited for.
        """
        key, told_at = found[0].key, self._clock()
        if any(transfer.state == SUSPENDED for transfer in found):
            await self._storage.discard(key)
        self._coordination.publish(CANCEL_TOPIC, key)
        try:
            async with asyncio.timeout(self._cancel_seconds):
                await self._until_over(key, told_at)
        except TimeoutError:
            log.warning("transfer not cancelled", key=key)
            raise NotEnded(self._cancel_seconds) from None
        await self._storage.discard(key)
        log.info("transfer cancelled", key=key, arrived=max(transfer.arrived for transfer in found))

    async def _until_over(self, key: str, told_at: float) -> None:
        """Return when no process shows a transfer of this key that was there when they were told."""
        while True:
            flights = await self._coordination.transfers()
            if not any(flight.key == key and flight.started_at <= told_at for flight in flights):
                return
            await asyncio.sleep(LOOK_SECONDS)

    async def _find(self, wanted: str) -> list[Transfer]:
        return [transfer for transfer in await self._all() if identity(NOUN, transfer.key) == wanted]

    async def _all(self) -> list[Transfer]:
        """What is suspended is asked for first: one that is taken up between the two looks is seen twice, and shown as
        running; in the other order it would not be seen.
        """
        suspended = await self._suspended()
        running = [_running(flight) for flight in await self._coordination.transfers()]
        keys = {transfer.key for transfer in running}
        return running + [transfer for transfer in suspended if transfer.key not in keys]

    async def _suspended(self) -> list[Transfer]:
        """None of them when the storage can't be read: what runs without it is shown all the same (P7)."""
        try:
            found = await self._storage.suspended()
        except StorageError as error:
            log.warning("suspended transfers can't be read", error=str(error))
            return []
        remotes = await self._remotes() if found else []
        return [_suspended(item, remotes) for item in found]

    async def _remotes(self) -> Sequence[Remote]:
        try:
            return await self._catalog.remotes()
        except CatalogUnavailable:
            return []

    def show(self, transfer: Transfer) -> dict[str, Any]:
        """As JSON; sizes in bytes. age: seconds since it began, or since it was written down."""
        is_suspended = transfer.state == SUSPENDED
        return {
            "pulp_href": href(NOUN, identity(NOUN, transfer.key)),
            "key": transfer.key,
            "attempt": transfer.attempt,
            "state": transfer.state,
            "size": transfer.size,
            "arrived": transfer.arrived,
            "remote": transfer.remote,
            "started_at": None if is_suspended else timestamp(transfer.since or None),
            "age": round(max(0.0, self._clock() - transfer.since), 3) if transfer.since else None,
            "followers": transfer.followers,
            "keep": transfer.keep,
            "windowed": transfer.is_windowed,
        }


def _running(flight: FlightProgress) -> Transfer:
    return Transfer(
        key=flight.key,
        state=str(flight.state),
        size=flight.size,
        arrived=flight.arrived,
        remote=flight.remote,
        since=flight.started_at,
        attempt=flight.attempt,
        followers=flight.followers,
        keep=flight.keep,
        is_windowed=flight.is_windowed,
    )


def _suspended(item: Suspended, remotes: Sequence[Remote]) -> Transfer:
    facts = parse_facts(item.note.facts)
    return Transfer(
        key=item.note.key,
        state=SUSPENDED,
        size=item.note.size,
        arrived=item.note.offset,
        remote=None if facts is None else remote_of(facts.url, remotes),
        since=item.noted_at.timestamp(),
    )


def remote_of(url: str, remotes: Sequence[Remote]) -> str | None:
    """The name of the one remote that a URL can belong to.

    That is the one whose folder, on the same host, it lies in, the deepest of several. None when there is none, as for
    Docker Hub under another name than its host's, or when two have the same folder.
    """
    folders = [(_folder(remote.url), remote.name) for remote in remotes]
    fitting = sorted((len(folder), name) for folder, name in folders if url.startswith(folder))
    if not fitting or [size for size, _ in fitting].count(fitting[-1][0]) > 1:
        return None
    return fitting[-1][1]


def _folder(url: str) -> str:
    """With its last slash; of a URL that names a file, that file's folder."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}{parts.path.rpartition('/')[0]}/"

"""What probes and Prometheus ask: ``/livez``, ``/readyz``, ``/metrics``."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable

import structlog
from aiohttp import web

from contentapp.coordination.base import Coordination
from contentapp.core.errors import ContentAppError
from contentapp.metrics import CONTENT_TYPE, Gauges, StorageGauges, render
from contentapp.storage.base import Storage

log = structlog.get_logger("contentapp.admin")

Readiness = Callable[[], Awaitable[str]]
"""Why it is not ready, "" if it is."""


class Health:
    """The state of this installation, for machines."""

    def __init__(self, storage: Storage, coordination: Coordination, readiness: Readiness) -> None:
        self._storage = storage
        self._coordination = coordination
        self._readiness = readiness

    def routes(self) -> list[web.RouteDef]:
        """Where they are found."""
        return [
            web.get("/livez", self.live),
            web.get("/readyz", self.ready),
            web.get("/metrics", self.metrics),
        ]

    async def live(self, _request: web.Request) -> web.Response:
        """This process answers."""
        return web.Response(text="ok\n")

    async def ready(self, _request: web.Request) -> web.Response:
        """Whether devices can be served, or why not."""
        reason = await self._readiness()
        return web.Response(status=503 if reason else 200, text=f"{reason or 'ok'}\n")

    async def metrics(self, _request: web.Request) -> web.Response:
        """Counters of all processes, and the state of now."""
        gauges = await self._gauges()
        body = await asyncio.to_thread(render, gauges)
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE})

    async def _gauges(self) -> Gauges:
        cooldowns = Counter(scope.remote_name for scope, _ in await self._coordination.cooldowns())
        transfers = len(await self._coordination.transfers())
        return Gauges(transfers=transfers, cooldowns=cooldowns, storage=await self._storage_gauges())

    async def _storage_gauges(self) -> StorageGauges | None:
        try:
            use = await self._storage.use()
        except ContentAppError as error:
            log.warning("storage use unknown", error=str(error))
            return None
        return StorageGauges(used=use.used, reserved=use.reserved, limit=use.limit, free=use.free)

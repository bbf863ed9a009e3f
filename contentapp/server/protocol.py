"""A device's connection below HTTP: aiohttp's, with our own answer to what is no request, and nothing left unsent."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any, cast

from aiohttp import web

from contentapp.pipeline.respond import reset

Malformed = Callable[[web.BaseRequest], web.StreamResponse]
"""Makes the answer to bytes that are no HTTP request; the request given is a dummy, good for its peer's address
only.
"""


class DeviceConnection(web.RequestHandler):
    """One connection."""

    __slots__ = ("_malformed",)

    def __init__(self, server: web.Server, malformed: Malformed, **settings: Any) -> None:
        super().__init__(server, **settings)
        self._malformed = malformed

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Writes wait until the kernel has all: what is buffered here would outlive every bound on slow devices."""
        super().connection_made(transport)
        # Not 0, which asyncio's TLS takes for "always full".
        cast(asyncio.Transport, transport).set_write_buffer_limits(high=1)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """aiohttp would repeat what was sent, which may be a secret, to the device and, with a traceback, in the
        log.
        """
        if status == 400:
            return self._malformed(request)
        return super().handle_error(request, status, exc, message)


class DeviceServer(web.Server):
    """Makes the connections."""

    def __init__(self, handler: Any, malformed: Malformed, **settings: Any) -> None:
        super().__init__(handler, **settings)
        self._malformed = malformed

    def __call__(self) -> web.RequestHandler:
        return DeviceConnection(self, self._malformed, loop=self._loop, **self._kwargs)

    async def finish(self, grace_seconds: float) -> None:
        """Idle connections go at once, answers may go on so long; what is open then is cut.

        aiohttp's own shutdown would wait for idle ones, and for everything twice as long.
        """
        self.pre_shutdown()
        with suppress(TimeoutError):
            async with asyncio.timeout(grace_seconds):
                await self.shutdown(grace_seconds)
        for connection in self.connections:
            reset(connection.transport)

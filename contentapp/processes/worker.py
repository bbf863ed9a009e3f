"""A content worker: one process, one loop, one listening socket."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import structlog

from contentapp.config import Config
from contentapp.processes.memory import keep_freed_memory
from contentapp.server.certificate import Certificate
from contentapp.server.content import ContentServer
from contentapp.services import ContentServices, open_content

log = structlog.get_logger("contentapp.worker")

BACKLOG = 4096
RELOAD_SECONDS = 60.0
FLUSH_SECONDS = 60.0


async def serve_content(config: Config, listening: socket.socket) -> None:
    """Serve until SIGTERM or SIGINT; then responses may go on for the grace period."""
    keep_freed_memory()
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, stop.set)
    async with open_content(config) as services, _background(config, services) as certificate:
        content = ContentServer(services.delivery, services.readiness, config.engine).server()
        server = await loop.create_server(
            content,
            sock=listening,
            backlog=BACKLOG,
            ssl=None if certificate is None else certificate.context,
            ssl_handshake_timeout=None if certificate is None else config.engine.request_head_timeout_seconds,
        )
        log.info("ready", listen=str(config.content.listen))
        await stop.wait()
        log.info("stopping", connections=len(content.connections))
        # Other processes hold this socket too: unless it is shut down, devices would connect and wait for nobody.
        listening.shutdown(socket.SHUT_RDWR)
        server.close()
        await content.finish(config.engine.grace_seconds)
        await services.flights.close()


@asynccontextmanager
async def _background(config: Config, services: ContentServices) -> AsyncIterator[Certificate | None]:
    """The worker's own standing tasks, ended with it."""
    tls = config.content.tls
    certificate = None if tls is None else Certificate(tls.certificate, tls.key)
    tasks = [
        _start(services.router.follow_changes(RELOAD_SECONDS), "distributions"),
        _start(_flush_uses(services), "uses"),
        _start(services.leftovers.run(), "leftovers"),
        _start(services.learner.run(), "learner"),
    ]
    if certificate is not None:
        tasks.append(_start(certificate.follow_changes(), "certificate"))
    try:
        yield certificate
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await services.lookup.flush()


def _start(coroutine: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
    return asyncio.create_task(coroutine, name=name)


async def _flush_uses(services: ContentServices) -> None:
    while True:
        await asyncio.sleep(FLUSH_SECONDS)
        await services.lookup.flush()

"""The admin process: the REST API, upkeep and tasks, in one loop that no device shares."""

from __future__ import annotations

import asyncio
import logging
import secrets
import signal
import socket
from pathlib import Path

import structlog
from aiohttp import web

from contentapp.api.application import application
from contentapp.api.login import Login
from contentapp.api.password import PASSWORD_FILE, ensure_password
from contentapp.config import Config
from contentapp.services import AdminServices, open_admin

log = structlog.get_logger("contentapp.admin")

BACKLOG = 128
BAD_REQUEST = 400
SHUTDOWN_SECONDS = 5.0
MAX_HEADER_SIZE = 8190
KEEPALIVE_SECONDS = 75.0


async def serve_admin(config: Config, listening: socket.socket) -> None:
    """Serve until SIGTERM or SIGINT. Nothing here waits for a remote."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, stop.set)
    async with open_admin(config) as services:
        runner = await _listen(config, services, listening)
        log.info("admin ready", listen=str(config.admin.listen))
        try:
            await _work(services, stop)
            log.info("admin stopping")
            # The supervisor holds this socket too: unless it is shut down, one could connect and wait for nobody.
            listening.shutdown(socket.SHUT_RDWR)
        finally:
            await runner.cleanup()


async def _listen(config: Config, services: AdminServices, listening: socket.socket) -> web.AppRunner:
    shared = services.shared
    app = application(
        config=config,
        login=Login(await asyncio.to_thread(_password, config.data_dir)),
        storage=shared.storage,
        coordination=shared.coordination,
        catalog=shared.admin,
        content=shared.catalog,
        upkeep=shared.upkeep,
        tasks=services.tasks,
        readiness=services.readiness,
    )
    runner = web.AppRunner(
        app,
        access_log=None,
        logger=_http_log(),
        shutdown_timeout=SHUTDOWN_SECONDS,
        keepalive_timeout=KEEPALIVE_SECONDS,
        max_line_size=MAX_HEADER_SIZE,
        max_field_size=MAX_HEADER_SIZE,
    )
    await runner.setup()
    await web.SockSite(runner, listening, backlog=BACKLOG).start()
    return runner


async def _work(services: AdminServices, stop: asyncio.Event) -> None:
    """Upkeep and tasks until stopped; should one of them end by itself, its error ends this process."""
    stopped = asyncio.create_task(stop.wait(), name="stop")
    standing = [
        asyncio.create_task(services.upkeep.run(), name="upkeep"),
        asyncio.create_task(services.runner.run(), name="tasks"),
    ]
    try:
        done, _ = await asyncio.wait([stopped, *standing], return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in (stopped, *standing):
            task.cancel()
        await asyncio.gather(stopped, *standing, return_exceptions=True)


def _http_log() -> logging.Logger:
    """Where aiohttp tells of trouble; but not of requests that are no HTTP, which it repeats, passwords and all."""
    logger = logging.getLogger("contentapp.admin.http")
    if not logger.filters:
        logger.addFilter(lambda record: getattr(record.exc_info and record.exc_info[1], "code", None) != BAD_REQUEST)
    return logger


def _password(data_dir: Path) -> str:
    """The admin's; where it can be neither read nor written, one that nobody knows: probes and metrics go on."""
    try:
        return ensure_password(data_dir)
    except OSError as error:
        log.error(
            "nobody can log in: the admin password can't be read or written", file=PASSWORD_FILE, error=str(error)
        )
        return secrets.token_urlsafe(32)

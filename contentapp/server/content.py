"""The content listener: a device's connection in, one answer out, one line in the log (aiohttp's server)."""

from __future__ import annotations

import asyncio
import itertools
import os
import secrets
import time
from collections.abc import Awaitable, Callable

import structlog
from aiohttp import web

from contentapp.core.errors import ContentAppError, InvalidRequestError
from contentapp.core.origin_path import split_target
from contentapp.core.settings import EngineSettings
from contentapp.logs import log_request
from contentapp.metrics import metrics
from contentapp.pipeline.deliver import Delivery, Served
from contentapp.pipeline.refuse import Refused, internal_error, malformed_request, method_not_allowed, refuse
from contentapp.pipeline.request import DeviceRequest
from contentapp.pipeline.respond import Device, DeviceGone
from contentapp.server.protocol import DeviceServer

log = structlog.get_logger("contentapp.content")

MAX_HEADERS = 64
MAX_HEADER_SIZE = 8190
READ_SIZE = 64 * 1024

Readiness = Callable[[], Awaitable[str]]
"""Why this process is not ready, "" if it is."""


class ContentServer:
    """Answers devices. `server` makes the protocol factory for a listening socket."""

    def __init__(self, delivery: Delivery, readiness: Readiness, settings: EngineSettings) -> None:
        self._delivery = delivery
        self._readiness = readiness
        self._settings = settings
        self._prefix = f"{os.getpid():x}-{secrets.token_hex(3)}"
        self._count = itertools.count(1)

    def server(self) -> DeviceServer:
        """A device that leaves cancels its handler; a head must be complete within its time (slow loris)."""
        return DeviceServer(
            self.handle,
            self.malformed,
            handler_cancellation=True,
            access_log=None,
            keepalive_timeout=self._settings.request_head_timeout_seconds,
            lingering_time=0.0,
            max_line_size=MAX_HEADER_SIZE,
            max_field_size=MAX_HEADER_SIZE,
            max_headers=MAX_HEADERS,
            read_bufsize=READ_SIZE,
        )

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """One request. Errors before the first byte become an answer; after it the connection is cut."""
        started = time.monotonic()  # the loop's own clock, without uvloop's rounding to milliseconds
        device, served = Device(request, self._settings), Served()
        request_id = self._next_id()
        raw_path = request._message.path
        is_complete = False
        try:
            if request.version.major != 1:
                return self._refused(device, served, malformed_request())
            if request.method not in {"GET", "HEAD"}:
                return self._refused(device, served, method_not_allowed(raw_path))
            raw_path, query = split_target(raw_path)
            if raw_path in {"/livez", "/readyz"}:
                return await self._health(device, raw_path)
            asked = DeviceRequest(
                id=request_id,
                method=request.method,
                raw_path=raw_path,
                query=query,
                headers=request.headers,
                version=(request.version.major, request.version.minor),
                peer=request.remote or "",
                started=started,
            )
            await self._delivery.deliver(asked, device, served)
            is_complete = True
        except DeviceGone:
            device.cut()
        except ContentAppError as error:
            if device.has_begun:
                log.warning("answer cut", request_id=request_id, reason=str(error))
                served.outcome = "error"
                device.cut()
            else:
                self._refuse(device, served, raw_path, error)
        except asyncio.CancelledError:
            device.cut()
            raise
        except Exception:
            log.exception("request failed", request_id=request_id)
            served.outcome = "error"
            if device.has_begun:
                device.cut()
            else:
                self._refused(device, served, internal_error(raw_path))
        finally:
            device.close()
            self._account(request, device, served, raw_path, request_id, started, is_complete=is_complete)
        return device.response

    def malformed(self, request: web.BaseRequest) -> web.StreamResponse:
        """The answer to bytes that are no request; it ends the connection."""
        started = time.monotonic()
        device, served = Device(request, self._settings), Served()
        response = self._refused(device, served, malformed_request())
        response.force_close()
        self._account(request, device, served, "", self._next_id(), started, is_complete=True)
        return response

    def _next_id(self) -> str:
        return f"{self._prefix}-{next(self._count):x}"

    async def _health(self, device: Device, path: str) -> web.StreamResponse:
        """Neither counted nor logged: somebody asks every few seconds."""
        reason = "" if path == "/livez" else await self._readiness()
        headers = {"Cache-Control": "no-store", "Content-Type": "text/plain; charset=utf-8"}
        device.send_document(503 if reason else 200, headers, f"{reason or 'ok'}\n".encode())
        device.status = 0
        return device.response

    def _refuse(self, device: Device, served: Served, raw_path: str, error: ContentAppError) -> None:
        if not isinstance(error, InvalidRequestError):
            log.info("refused", path=raw_path[:200], reason=str(error))
        self._refused(device, served, refuse(raw_path, served.distribution, error))

    def _refused(self, device: Device, served: Served, refused: Refused) -> web.StreamResponse:
        served.outcome = "error"
        device.send_document(refused.status, refused.headers, refused.body, refused.reason)
        return device.response

    def _account(
        self,
        request: web.BaseRequest,
        device: Device,
        served: Served,
        raw_path: str,
        request_id: str,
        started: float,
        *,
        is_complete: bool,
    ) -> None:
        """Count and log what became of it."""
        if not device.status:
            return  # health
        seconds = time.monotonic() - started
        kind = "none" if served.distribution is None else str(served.distribution.type)
        first_byte = None if device.first_byte_at is None else device.first_byte_at - started
        metrics.request(
            kind,
            served.policy,
            served.outcome,
            device.status,
            seconds=seconds,
            size=device.sent,
            first_byte_seconds=first_byte,
        )
        if is_complete and device.sent and served.distribution is not None:
            metrics.body(kind, served.verified)
        log_request(
            request_id=request_id,
            device=request.remote or "",
            method=request.method,
            path=raw_path,
            status=device.status,
            size=device.sent,
            seconds=seconds,
            outcome=served.outcome,
            distribution="" if served.distribution is None else served.distribution.name,
        )

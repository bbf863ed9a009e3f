"""Respond: put frames and bodies on a device's connection, or cut it (P1, P4).

A body goes out by sendfile on a duplicate of the connection's descriptor, so that the loop keeps watching the
connection itself and a device that leaves is noticed. Under TLS it is read in a thread.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import struct
import time
from collections.abc import Mapping
from typing import Any

from aiohttp import web
from aiohttp.abc import AbstractStreamWriter

from contentapp.core.errors import ArtifactDamaged
from contentapp.core.settings import KIB, MIB, EngineSettings
from contentapp.pipeline.frame import Frame
from contentapp.pipeline.pages import read_piece
from contentapp.storage.base import ArtifactReader

SLICE_SIZE = MIB
MIN_PIECE_SIZE = 32 * KIB
MAX_PIECE_SIZE = 64 * KIB
QUICK_SECONDS = 0.02
WRITE_BUFFER_SIZE = 64 * KIB
OWN_HEADERS = {"Server": "contentapp"}
RESET_ON_CLOSE = struct.pack("ii", 1, 0)
DAMAGE = frozenset({errno.EIO, errno.ENODATA, errno.EBADMSG, errno.ESTALE})


class DeviceGone(ConnectionError):
    """The device left, or was dropped for being too slow."""


class Cut(web.StreamResponse):
    """What a handler returns after it has cut the connection: the server finds it gone, and sends nothing more."""

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        raise ConnectionResetError("connection cut")


class Document(web.Response):
    """A whole answer from memory. A device that does not take it within `seconds` is cut off."""

    def __init__(self, *, seconds: float, **answer: Any) -> None:
        super().__init__(**answer)
        self._seconds = seconds
        self._transport: asyncio.Transport | None = None

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        self._transport = request.transport
        return await super().prepare(request)

    async def write_eof(self, data: bytes = b"") -> None:
        try:
            async with asyncio.timeout(self._seconds):
                await super().write_eof(data)
        except TimeoutError:
            reset(self._transport)
            raise DeviceGone("device too slow") from None


class Device:
    """One answer to one device. Exactly one of `send_document` and `begin` starts it; then bodies, then `finish`."""

    def __init__(self, request: web.BaseRequest, settings: EngineSettings) -> None:
        self._request = request
        self._settings = settings
        self._response: web.StreamResponse | None = None
        self._socket: int | None = None
        self._piece_size = MIN_PIECE_SIZE
        self._is_framed = False  # chunked: each piece has a frame of its own, so nothing may go past the writer
        self.sent = 0
        self.status = 0
        self.first_byte_at: float | None = None

    @property
    def has_begun(self) -> bool:
        """Whether a head is out: from here on the only answer to failure is to go on or to cut."""
        return self._response is not None

    @property
    def response(self) -> web.StreamResponse:
        """What the handler returns."""
        if self._response is None:
            raise RuntimeError("nothing was sent")
        return self._response

    def send_document(self, status: int, headers: Mapping[str, str], body: bytes, reason: str | None = None) -> None:
        """A whole answer from memory; HEAD gets its head alone."""
        self._response = Document(
            seconds=self._seconds_for(len(body)),
            status=status,
            headers={**headers, **OWN_HEADERS},
            body=body,
            reason=reason,
        )
        self.status = status
        self.sent = 0 if self._request.method == "HEAD" else len(body)
        self._mark_first_byte()

    async def begin(self, frame: Frame) -> None:
        """Send the head of a body that follows."""
        response = web.StreamResponse(status=frame.status, headers={**frame.headers, **OWN_HEADERS})
        self._response = response
        self.status = frame.status
        self._is_framed = frame.length is None
        if frame.length is None and self._request.version < (1, 1):
            response.force_close()
        try:
            await response.prepare(self._request)
        except (ConnectionError, OSError) as error:
            raise DeviceGone("device left") from error
        self._mark_first_byte()

    async def send_file(self, reader: ArtifactReader, start: int, end: int, *, is_on_disk: bool = True) -> int:
        """Send bytes start <= i < end of a reader; how far it came: less than `end` means the file is damaged there.

        is_on_disk: it may have to be read from the disk, so that asking for the next slice early is worth it.
        DeviceGone when the device left or is too slow.
        """
        position = start
        while position < end:
            size = min(SLICE_SIZE, end - position)
            if is_on_disk and position + size < end:
                _will_need(reader.fileno(), position + size)
            sent = await self._within_time(self._send_slice(reader, position, size), size)
            self.sent += sent
            position += sent
            if sent < size:
                break
        return position

    async def send_bytes(self, data: bytes) -> None:
        """Send bytes from memory. DeviceGone as above."""
        response = self.response
        await self._within_time(self._write(response, data), len(data))
        self.sent += len(data)

    async def finish(self) -> None:
        """The body is complete: end it properly."""
        self._close_socket()
        await self._within_time(self._end(self.response), 0)

    async def _end(self, response: web.StreamResponse) -> int:
        try:
            await response.write_eof()
        except (ConnectionError, OSError) as error:
            raise DeviceGone("device left") from error
        return 0

    def cut(self) -> None:
        """Reset the connection: no byte after this, and never a proper end (SO_LINGER 0, then abort)."""
        self._close_socket()
        self._response = Cut()
        reset(self._request.transport)

    def close(self) -> None:
        """Give back what this answer holds."""
        self._close_socket()

    def _mark_first_byte(self) -> None:
        self.first_byte_at = time.monotonic()

    def _seconds_for(self, size: int) -> float:
        """A device gets the write timeout, and what its lowest rate needs for these bytes."""
        rate = self._settings.min_device_rate
        return self._settings.device_write_timeout_seconds + (size / rate if rate else 0.0)

    async def _within_time(self, sending: object, size: int) -> int:
        try:
            async with asyncio.timeout(self._seconds_for(size)):
                sent: int = await sending  # type: ignore[misc]
                return sent
        except TimeoutError:
            raise DeviceGone("device too slow") from None

    async def _send_slice(self, reader: ArtifactReader, offset: int, size: int) -> int:
        transport = self._request.transport
        if transport is None or transport.is_closing():
            raise DeviceGone("device left")
        if self._is_framed or transport.get_extra_info("sslcontext") is not None:
            return await self._copy_slice(reader, offset, size)
        try:
            if self._socket is None:
                self._socket = await self._duplicate(transport)
            return await _sendfile(self._socket, reader.fileno(), offset, size)
        except OSError as error:
            raise DeviceGone("device left") from error

    async def _copy_slice(self, reader: ArtifactReader, offset: int, size: int) -> int:
        """Through user space: TLS, or chunked framing. A device that keeps up gets larger pieces, others cost less
        memory.
        """
        loop = asyncio.get_running_loop()
        transport = self._request.transport
        if transport is not None:
            transport.set_write_buffer_limits(high=WRITE_BUFFER_SIZE)
        sent = 0
        while sent < size:
            try:
                data = await read_piece(reader, offset + sent, min(self._piece_size, size - sent))
            except ArtifactDamaged:
                break
            if not data:
                break
            started = loop.time()
            sent += await self._write(self.response, data)
            is_quick = loop.time() - started < QUICK_SECONDS
            self._piece_size = min(2 * self._piece_size, MAX_PIECE_SIZE) if is_quick else MIN_PIECE_SIZE
        return sent

    async def _write(self, response: web.StreamResponse, data: bytes | memoryview) -> int:
        try:
            await response.write(data)
        except (ConnectionError, OSError) as error:
            raise DeviceGone("device left") from error
        return len(data)

    async def _duplicate(self, transport: asyncio.Transport) -> int:
        """A descriptor of the connection for ourselves, once the transport has written all of the head."""
        transport.set_write_buffer_limits(high=0)
        writer = self._request.writer
        await writer.drain()
        connection = transport.get_extra_info("socket")
        if connection is None or transport.is_closing():
            raise DeviceGone("device left")
        return os.dup(connection.fileno())

    def _close_socket(self) -> None:
        if self._socket is not None:
            os.close(self._socket)
            self._socket = None


def reset(transport: asyncio.Transport | None) -> None:
    """Drop a connection with all that is still to be sent on it: RST instead of FIN."""
    if transport is None:
        return
    connection = transport.get_extra_info("socket")
    if connection is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
    transport.abort()


def _will_need(fileno: int, offset: int) -> None:
    os.posix_fadvise(fileno, offset, SLICE_SIZE, os.POSIX_FADV_WILLNEED)


async def _sendfile(out: int, source: int, offset: int, size: int) -> int:
    """Bytes sent; fewer than `size` only where the file ends or is damaged. One call a turn of the loop, so that all
    get theirs.
    """
    sent = 0
    while sent < size:
        try:
            count = os.sendfile(out, source, offset + sent, size - sent)
        except BlockingIOError:
            await _writable(out)
            continue
        except OSError as error:
            if error.errno in DAMAGE:
                break
            raise
        if count == 0:
            break
        sent += count
        if sent < size:
            await asyncio.sleep(0)
    return sent


async def _writable(fileno: int) -> None:
    loop = asyncio.get_running_loop()
    ready = loop.create_future()

    def wake() -> None:
        if not ready.done():
            ready.set_result(None)

    loop.add_writer(fileno, wake)
    try:
        await ready
    finally:
        loop.remove_writer(fileno)

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
from collections.abc import Mapping

from aiohttp import web
from aiohttp.abc import AbstractStreamWriter

from contentapp.core.errors import ArtifactDamaged
from contentapp.core.settings import KIB, MIB, EngineSettings
from contentapp.pipeline.frame import Frame
from contentapp.storage.base import ArtifactReader

SLICE_SIZE = MIB
READ_SIZE = 64 * KIB
OWN_HEADERS = {"Server": "contentapp"}
RESET_ON_CLOSE = struct.pack("ii", 1, 0)
DAMAGE = frozenset({errno.EIO, errno.ENODATA, errno.EBADMSG, errno.ESTALE})


class DeviceGone(ConnectionError):
    """The device left, or was dropped for being too slow."""


class Cut(web.StreamResponse):
    """What a handler returns after it has cut the connection: the server finds it gone, and sends nothing more."""

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        raise ConnectionResetError("connection cut")


class Device:
    """One answer to one device. Exactly one of `send_document` and `begin` starts it; then bodies, then `finish`."""

    def __init__(self, request: web.BaseRequest, settings: EngineSettings) -> None:
        self._request = request
        self._settings = settings
        self._response: web.StreamResponse | None = None
        self._socket: int | None = None
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
        self._response = web.Response(status=status, headers={**headers, **OWN_HEADERS}, body=body, reason=reason)
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
        await response.prepare(self._request)
        self._mark_first_byte()

    async def send_file(self, reader: ArtifactReader, start: int, end: int) -> int:
        """Send bytes start <= i < end of a reader; how far it came: less than `end` means the file is damaged there.

        DeviceGone when the device left or is too slow.
        """
        position = start
        while position < end:
            size = min(SLICE_SIZE, end - position)
            if position + size < end:
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
        try:
            await self.response.write_eof()
        except (ConnectionError, OSError) as error:
            raise DeviceGone("device left") from error

    def cut(self) -> None:
        """Reset the connection: no byte after this, and never a proper end (SO_LINGER 0, then abort)."""
        self._close_socket()
        transport = self._request.transport
        self._response = Cut()
        if transport is None:
            return
        connection = transport.get_extra_info("socket")
        if connection is not None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
        transport.abort()

    def close(self) -> None:
        """Give back what this answer holds."""
        self._close_socket()

    def _mark_first_byte(self) -> None:
        self.first_byte_at = asyncio.get_running_loop().time()

    async def _within_time(self, sending: object, size: int) -> int:
        """A device gets the write timeout, and what its lowest rate needs for these bytes."""
        rate = self._settings.min_device_rate
        seconds = self._settings.device_write_timeout_seconds + (size / rate if rate else 0.0)
        try:
            async with asyncio.timeout(seconds):
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
        """Through user space: TLS, or chunked framing."""
        loop = asyncio.get_running_loop()
        try:
            data = await loop.run_in_executor(None, reader.read, offset, min(size, READ_SIZE))
        except ArtifactDamaged:
            return 0
        if data:
            await self._write(self.response, data)
        rest = size - len(data)
        return len(data) + (await self._copy_slice(reader, offset + len(data), rest) if data and rest else 0)

    async def _write(self, response: web.StreamResponse, data: bytes) -> int:
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

"""Sends one Answer over the wire, to the byte as its faults say."""

from __future__ import annotations

import asyncio
import fcntl
import re
import socket
import struct
import termios
from dataclasses import dataclass

from aiohttp import web
from multidict import CIMultiDict, CIMultiDictProxy

from tests.remotes.faults import Answer

RANGE = re.compile(r"bytes=(\d*)-(\d*)")
SLICES_A_SECOND = 20
FLUSH_SECONDS = 5.0


@dataclass(eq=False)
class Exchange:
    """One request that came in, and what became of its answer. `sent` counts body bytes handed to the kernel."""

    method: str
    path: str
    raw_path: str
    query: str
    headers: CIMultiDictProxy[str]
    status: int = 0
    sent: int = 0
    is_complete: bool = False
    is_over: bool = False


def selected_range(answer: Answer, headers: CIMultiDictProxy[str]) -> tuple[int, int] | None:
    """The half-open range asked for, None for the whole; start > end when it can't be satisfied (RFC 9110, 14)."""
    match = RANGE.fullmatch(headers.get("Range", ""))
    if answer.status != 200 or not answer.honours_range or match is None or not range_is_current(answer, headers):
        return None
    first, last, size = match[1], match[2], answer.content.size
    if not first:
        return (max(0, size - int(last)), size) if last and int(last) else (size, -1)
    end = min(int(last) + 1, size) if last else size
    return (int(first), end) if int(first) < size else (size, -1)


def range_is_current(answer: Answer, headers: CIMultiDictProxy[str]) -> bool:
    """Whether If-Range, if sent and looked at, names the validator of what is here now."""
    validator = headers.get("If-Range") if answer.honours_if_range else None
    return validator is None or validator in (answer.headers.get("ETag"), answer.headers.get("Last-Modified"))


def apply_range(answer: Answer, headers: CIMultiDictProxy[str]) -> tuple[int, int]:
    """Turn the answer into 206 or 416 where the request says so; the bytes of the content to send."""
    chosen = selected_range(answer, headers)
    if chosen is None:
        return 0, answer.content.size
    start, end = chosen
    if start > end:
        answer.replace_by(416, b"")
        answer.headers["Content-Range"] = f"bytes */{start}"
        return 0, 0
    answer.status = 206
    end = end if answer.portion is None else min(end, start + answer.portion)
    total = answer.range_total if answer.range_total is not None else str(answer.content.size)
    answer.headers["Content-Range"] = f"bytes {start + answer.range_shift}-{end - 1 + answer.range_shift}/{total}"
    return start, end


class Delivery:
    """One answer on its way to one device."""

    def __init__(self, request: web.BaseRequest, answer: Answer, exchange: Exchange) -> None:
        self.request, self.answer, self.exchange = request, answer, exchange
        self.start, self.end = apply_range(answer, request.headers)

    async def send(self) -> web.StreamResponse:
        """Send it; what is returned is finished, or its connection is closed."""
        await asyncio.sleep(self.answer.delay)
        for at, gate in self.answer.gates:
            if at < 0:
                await gate.wait()
        if self.answer.cut_at is not None and self.answer.cut_at < 0:
            await self.disconnect()
            return web.Response()
        response = await self.send_head()
        if self.request.method != "HEAD":
            await self.send_body(response)
        else:
            self.exchange.is_complete = True
        return response

    async def send_head(self) -> web.StreamResponse:
        response = web.StreamResponse(status=self.answer.status, reason=self.answer.reason)
        response.headers.update(CIMultiDict(self.answer.headers))
        if not self.answer.keeps_alive:
            response.force_close()
        if self.answer.is_sized:
            response.content_length = self.end - self.start
        await response.prepare(self.request)
        self.exchange.status = self.answer.status
        return response

    async def send_body(self, response: web.StreamResponse) -> None:
        """Bytes up to each gate, then up to the cut or the end."""
        cut_at = self.answer.cut_at
        length = self.end - self.start
        last = length if cut_at is None else min(cut_at, length)
        for at, gate in sorted(self.answer.gates, key=lambda entry: entry[0]):
            if 0 <= at <= last:
                await self.send_until(response, at)
                await gate.wait()
        await self.send_until(response, last)
        if self.answer.surplus:
            self.transport.write(self.answer.surplus)
        self.exchange.is_complete = cut_at is None
        if cut_at is not None or self.answer.surplus:
            await self.disconnect()

    async def send_until(self, response: web.StreamResponse, position: int) -> None:
        """Send the body's bytes up to `position`, at the answer's rate."""
        rate = self.answer.rate
        for piece in self.answer.content.pieces(self.start + self.exchange.sent, self.start + position):
            step = len(piece) if rate is None else max(1, int(rate / SLICES_A_SECOND))
            for at in range(0, len(piece), step):
                part = piece[at : at + step]
                await response.write(part)
                self.exchange.sent += len(part)
                if rate is not None:
                    await asyncio.sleep(len(part) / rate)

    @property
    def transport(self) -> asyncio.Transport:
        """The connection; ConnectionResetError once the device has left."""
        transport = self.request.transport
        if transport is None:
            raise ConnectionResetError("the device has left")
        assert isinstance(transport, asyncio.Transport)
        return transport

    async def disconnect(self) -> None:
        """End the connection: FIN, or RST once the peer's kernel has what was sent."""
        transport = self.transport
        if not self.answer.is_reset:
            transport.close()
            return
        connection = transport.get_extra_info("socket")
        async with asyncio.timeout(FLUSH_SECONDS):
            while transport.get_write_buffer_size() or unacknowledged(connection):
                await asyncio.sleep(0.002)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        transport.abort()


def unacknowledged(connection: socket.socket) -> int:
    """Bytes sent that the peer's kernel has not got yet (SIOCOUTQ of tcp(7), which has the number of TIOCOUTQ)."""
    return int(struct.unpack("i", fcntl.ioctl(connection.fileno(), termios.TIOCOUTQ, b"\0" * 4))[0])

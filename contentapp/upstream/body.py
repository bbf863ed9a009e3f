"""Bodies: the stream of an answer's bytes, and what is left over of answers nobody wants."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field

from aiohttp import ClientResponse, StreamReader

from contentapp.core.errors import TransferInterrupted, UpstreamProtocolError
from contentapp.core.records import Remote
from contentapp.upstream.answer import Framing, read_framing
from contentapp.upstream.base import UpstreamRequest
from contentapp.upstream.failure import BODY_FAILURES, body_failure

EXTRA_SECONDS = 1.0
SETTLE_SECONDS = 1.0
SETTLE_SIZE = 64 * 1024


@dataclass(slots=True)
class HttpResponse:
    """UpstreamResponse over aiohttp's. `limit`: a longer body is an error. patience_seconds: for each read."""

    status: int
    offset: int
    size: int | None
    length: int | None
    etag: str
    last_modified: str
    headers: Mapping[str, str]
    host: str
    url: str
    has_body: bool
    limit: int | None
    patience_seconds: float
    _response: ClientResponse = field(repr=False)

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body in the pieces it arrives in, never more than `length` bytes in all."""
        if not self.has_body:
            return
        received, content = 0, self._response.content
        bound = _smaller(self.length, self.limit)
        try:
            while piece := await read_piece(content, self.patience_seconds):
                received += len(piece)
                if bound is not None and received > bound:
                    raise UpstreamProtocolError(f"{self.host} sent more than it announced or may send", host=self.host)
                yield piece
        except BODY_FAILURES as error:
            raise body_failure(error, self.host) from None
        if self.length is not None and received < self.length:
            raise TransferInterrupted(f"{self.host}: unexpected EOF within the body", host=self.host)

    async def read(self, max_size: int) -> bytes:
        """The whole body; UpstreamProtocolError, before it is read where that can be known, when it is longer."""
        if self.has_body and self.length is not None and self.length > max_size:
            raise UpstreamProtocolError(f"{self.host} sends more than {max_size} bytes", host=self.host)
        body = bytearray()
        async for piece in self.chunks():
            body += piece
            if len(body) > max_size:
                raise UpstreamProtocolError(f"{self.host} sends more than {max_size} bytes", host=self.host)
        return bytes(body)


def _smaller(first: int | None, second: int | None) -> int | None:
    return min((value for value in (first, second) if value is not None), default=None)


def make_response(request: UpstreamRequest, response: ClientResponse, host: str, url: str) -> HttpResponse:
    """Check an accepted answer's head; UpstreamProtocolError."""
    try:
        framing: Framing = read_framing(request, response.status, response.headers)
    except UpstreamProtocolError as error:
        raise UpstreamProtocolError(f"{host}: {error}", host=host) from None
    has_body = request.method != "HEAD" and response.status != 304
    if has_body and request.max_body_size is not None and (framing.length or 0) > request.max_body_size:
        raise UpstreamProtocolError(f"{host} sends more than {request.max_body_size} bytes", host=host)
    return HttpResponse(
        status=response.status,
        offset=framing.offset,
        size=framing.size,
        length=framing.length,
        etag=response.headers.get("ETag", ""),
        last_modified=response.headers.get("Last-Modified", ""),
        headers=response.headers,
        host=host,
        url=url,
        has_body=has_body,
        limit=request.max_body_size,
        patience_seconds=patience_seconds(request.source.remote),
        _response=response,
    )


def patience_seconds(remote: Remote) -> float:
    """A little more than aiohttp's own timeout, which tells more."""
    return remote.settings.sock_read_timeout + EXTRA_SECONDS


async def read_piece(content: StreamReader, seconds: float) -> bytes:
    """The next bytes as they came, b"" at the end; TimeoutError after so many seconds without any.

    aiohttp's own timeout ends with the connection, which it closes when its parser finds a broken chunk: whoever waits
    for the body then is not told. An empty piece at the end of a chunk is not the end of the body.
    """
    async with asyncio.timeout(seconds):
        while True:
            piece, is_chunk_end = await content.readchunk()
            if piece or not is_chunk_end:
                return piece


async def settle(response: ClientResponse) -> None:
    """Read the little that is left of an unwanted answer, so that its connection can be used again; else close it."""
    length = response.content_length
    try:
        if length is None or length > SETTLE_SIZE:
            return
        with suppress(*BODY_FAILURES):
            async with asyncio.timeout(SETTLE_SECONDS):
                while await response.content.readany():
                    pass
    finally:
        response.close()


async def read_bounded(response: ClientResponse, max_size: int, host: str, seconds: float) -> bytes:
    """A small body as a whole; UpstreamError for one that is coded, too long, cut or stalled for so many seconds."""
    if response.headers.get("Content-Encoding", "identity").lower() != "identity":
        response.close()
        raise UpstreamProtocolError(f"{host}: content coding although none was accepted", host=host)
    body = bytearray()
    try:
        while piece := await read_piece(response.content, seconds):
            body += piece
            if len(body) > max_size:
                raise UpstreamProtocolError(f"{host} sends more than {max_size} bytes", host=host)
    except BODY_FAILURES as error:
        raise body_failure(error, host) from None
    finally:
        response.close()
    return bytes(body)

"""Upstream: one HTTP exchange with a remote; no retry, failover, cooldown rule or digest in it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Protocol

from contentapp.core.errors import HostCooling
from contentapp.core.records import Source

HostGate = Callable[[str], Awaitable[None]]
"""Asked with ``host:port`` before each host of an exchange is talked to; raises HostCooling to stop it."""


async def open_gate(host: str) -> None:
    """Lets every host through."""


class RemoteBusy(HostCooling):
    """Our own limits (connections, request rate, open files) leave this remote no room in time: nobody's failure."""

    phrase = "i/o timeout"

    def __init__(self, message: str, *, retry_after_seconds: float) -> None:
        super().__init__(message, host="", retry_after_seconds=retry_after_seconds)


@dataclass(frozen=True, slots=True, kw_only=True)
class UpstreamRequest:
    """What to ask one source for.

    offset: first byte wanted; end: half-open end, None for the rest. A Range header is sent unless both are (0, None).
    if_range, if_none_match, if_modified_since: validators, verbatim. gate: asked before each hop. is_last: no other
    source is left, so waiting for a retry is worth it. max_body_size: a longer body is an UpstreamProtocolError.
    """

    source: Source
    method: str = "GET"
    offset: int = 0
    end: int | None = None
    if_range: str = ""
    if_none_match: str = ""
    if_modified_since: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    gate: HostGate = open_gate
    is_last: bool = True
    max_body_size: int | None = None
    deadline: float | None = None  # loop.time() by which the head must be there; retries stop before it


class UpstreamResponse(Protocol):
    """An answer with a body that has not been read yet. 200, 206, 304 (conditional requests) and nothing else.

    offset: where the body really starts: 0 for a remote that ignored Range. size: of the whole representation, None if
    unknown. length: of this body, None if unknown. etag, last_modified: verbatim or "". headers: all, case-insensitive.
    host: ``host:port`` that sent it. url: for messages, without query.
    """

    status: int
    offset: int
    size: int | None
    length: int | None
    etag: str
    last_modified: str
    headers: Mapping[str, str]
    host: str
    url: str

    def chunks(self) -> AsyncIterator[bytes]:
        """The body as it arrives, never more than `length` bytes. TransferInterrupted, UpstreamTimeout, …"""
        ...

    async def read(self, max_size: int) -> bytes:
        """The whole body; UpstreamProtocolError when it is longer than `max_size`."""
        ...


class Upstream(Protocol):
    """Opens exchanges."""

    def open(self, request: UpstreamRequest) -> AbstractAsyncContextManager[UpstreamResponse]:
        """Send the request and read the answer's head. Leaving the context drops or reuses the connection.

        Statuses other than 200, 206 and (asked conditionally) 304 raise UpstreamStatusError; other failures the other
        UpstreamErrors, each with the host it came from. A token challenge and redirects are handled inside.
        """
        ...

    async def close(self) -> None: ...

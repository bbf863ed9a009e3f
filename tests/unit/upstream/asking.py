"""Short ways to make remotes and requests."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from contentapp.core.records import ContentType, Remote, Source
from contentapp.core.settings import RemoteSettings
from contentapp.upstream.base import Upstream, UpstreamRequest, UpstreamResponse
from contentapp.upstream.http import HttpUpstream

SETTING_NAMES = frozenset(RemoteSettings.names())


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def make_remote(url: str, **values: Any) -> Remote:
    """A remote; values are its fields or its settings, by their names."""
    settings: dict[str, Any] = {"sock_read_timeout": 5.0, "connect_timeout": 5.0, "sock_connect_timeout": 5.0}
    settings |= {name: values.pop(name) for name in list(values) if name in SETTING_NAMES}
    fields: dict[str, Any] = {"id": 1, "name": "origin", "type": ContentType.CONTAINER} | values
    return Remote(url=url, settings=RemoteSettings(**settings), **fields)


def make_request(remote: Remote, path: str = "/f", *, scope: str = "", **values: Any) -> UpstreamRequest:
    """A request to a path of the remote, or to a whole URL."""
    url = path if "://" in path else remote.url.rstrip("/") + path
    return UpstreamRequest(source=Source(remote=remote, url=url, path=path, scope=scope), **values)


@dataclass(frozen=True)
class Got:
    """An answer and its whole body."""

    response: UpstreamResponse
    body: bytes


async def get(upstream: Upstream, request: UpstreamRequest) -> Got:
    """Ask and read to the end."""
    async with upstream.open(request) as response:
        return Got(response, b"".join([chunk async for chunk in response.chunks()]))


@asynccontextmanager
async def http_upstream(**values: Any) -> AsyncIterator[HttpUpstream]:
    """An HttpUpstream that is closed at the end."""
    upstream = HttpUpstream(user_agent="contentapp-test", **values)
    try:
        yield upstream
    finally:
        await upstream.close()

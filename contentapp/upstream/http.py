"""HTTP(S) remotes over aiohttp's client: hops by hand, so that each is checked before it is made (P8)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager

from aiohttp import ClientResponse
from multidict import CIMultiDict
from yarl import URL

from contentapp.core.errors import RedirectRefused, UpstreamProtocolError, UpstreamTimeout
from contentapp.core.origin import describe_url
from contentapp.core.records import Remote
from contentapp.upstream.address import Lookup, system_lookup
from contentapp.upstream.answer import REDIRECTS, check_status, is_ranged, range_header, status_error
from contentapp.upstream.auth import Grant
from contentapp.upstream.base import UpstreamRequest, UpstreamResponse
from contentapp.upstream.body import HttpResponse, make_response, settle
from contentapp.upstream.client import ClientPool, RemoteClient
from contentapp.upstream.target import join_target, parse_target, target_origin

NAME_THREADS = 4
# Framing and routing are ours, whatever is configured.
RESERVED = frozenset(
    {"host", "range", "if-range", "if-none-match", "if-modified-since", "accept-encoding", "content-length"}
    | {"transfer-encoding", "connection", "keep-alive", "te", "trailer", "upgrade", "expect", "proxy-authorization"}
)


class HttpUpstream:
    """Upstream for http and https.

    clock: monotonic, for tokens and helpers' answers. lookup: resolves names, in threads of this object's own.
    """

    def __init__(
        self,
        *,
        user_agent: str,
        clock: Callable[[], float] = time.monotonic,
        helper_timeout_seconds: float = 10.0,
        lookup: Lookup = system_lookup,
    ) -> None:
        self._user_agent = user_agent
        self._clock = clock
        self._helper_timeout_seconds = helper_timeout_seconds
        self._lookup = lookup
        self._executor = ThreadPoolExecutor(NAME_THREADS, thread_name_prefix="names")
        self._pool = ClientPool(self._make_client)

    def _make_client(self, remote: Remote) -> RemoteClient:
        return RemoteClient(
            remote,
            user_agent=self._user_agent,
            clock=self._clock,
            helper_timeout_seconds=self._helper_timeout_seconds,
            lookup=self._lookup,
            executor=self._executor,
        )

    @asynccontextmanager
    async def open(self, request: UpstreamRequest) -> AsyncIterator[UpstreamResponse]:
        """As Upstream.open. A connection is used again when its body was read to the end, else closed at once."""
        async with AsyncExitStack() as stack:
            yield await self._head(stack, request)

    async def _head(self, stack: AsyncExitStack, request: UpstreamRequest) -> HttpResponse:
        """The answer's head; all that must be closed after the body goes on the stack."""
        exchange: Exchange | None = None
        try:
            async with asyncio.timeout_at(_head_deadline(request)):
                client = await stack.enter_async_context(self._pool.use(request.source.remote))
                await stack.enter_async_context(client.slot())
                exchange = Exchange(client, request)
                stack.callback(exchange.close)
                return await exchange.answer()
        except TimeoutError:
            host = exchange.host if exchange is not None else ""
            raise UpstreamTimeout(f"{host or request.source.remote.name}: no answer in time", host=host) from None

    async def close(self) -> None:
        """Cut all exchanges and close all connections."""
        await self._pool.close()
        self._executor.shutdown(wait=False, cancel_futures=True)


def _head_deadline(request: UpstreamRequest) -> float | None:
    """The earliest of the bounds on the head, in loop.time(); None without any."""
    now = asyncio.get_running_loop().time()
    total = request.source.remote.settings.total_timeout
    ends = (request.deadline, None if total is None else now + total)
    return min((end for end in ends if end is not None), default=None)


class Exchange:
    """One request with all its hops. `host`: who is being talked to. One answer at most is open at any time."""

    def __init__(self, client: RemoteClient, request: UpstreamRequest) -> None:
        self.host = ""
        self._client = client
        self._request = request
        self._response: ClientResponse | None = None
        self._grant: Grant | None = None
        self._admitted: set[str] = set()
        total = client.remote.settings.total_timeout
        self._end = None if total is None else asyncio.get_running_loop().time() + total

    def close(self) -> None:
        """Drop the connection unless its answer was read to the end."""
        if self._response is not None:
            self._response.close()

    async def answer(self) -> HttpResponse:
        """Follow the hops to an answer that is the content, or raise what came instead."""
        try:
            url = parse_target(self._request.source.url)
        except ValueError:
            raise UpstreamProtocolError("the source has no usable URL") from None
        response = await self._ask_source(url)
        for _ in range(self._client.remote.settings.max_redirects):
            if response.status not in REDIRECTS:
                break
            url = self._redirected(url, response)
            await settle(response)
            response = await self._hop(url, is_own=False)
        return await self._accept(url, response)

    async def _accept(self, url: URL, response: ClientResponse) -> HttpResponse:
        if response.status in REDIRECTS:
            raise RedirectRefused(f"{self.host}: too many redirects", host=self.host)
        if not check_status(self._request, response.status):
            await settle(response)
            is_refusal = response.status in {401, 403} and url.raw_path == "/v2/" and self._used_credentials
            raise status_error(response.status, response.headers, self.host, credentials_refused=is_refusal)
        return make_response(self._request, response, self.host, describe_url(str(url)))

    @property
    def _used_credentials(self) -> bool:
        return self._grant is not None and self._grant.has_credentials

    async def _ask_source(self, url: URL) -> ClientResponse:
        """The first hop, which alone may carry credentials, and only to the remote's own host."""
        if target_origin(url) != self._client.own:
            return await self._hop(url, is_own=False)
        if self._has_configured_authorization():
            return await self._hop(url, is_own=True)
        authorizer, scope, gate = self._client.authorizer, self._request.source.scope, self._admit
        await gate(str(self._client.own))
        self._grant = await authorizer.prepare(scope, gate)
        response = await self._hop(url, is_own=True)
        if response.status != 401:
            return response
        await settle(response)
        self._grant, used = await authorizer.answer(response.headers, scope, self._grant, gate), self._grant
        if self._grant is None:
            self._grant = used
            return response
        response = await self._hop(url, is_own=True)
        if response.status == 401:
            authorizer.refused(self._grant)
        return response

    def _has_configured_authorization(self) -> bool:
        return any(name.lower() == "authorization" for name, _ in self._client.remote.headers)

    async def _admit(self, host: str) -> None:
        """Ask the gate, once for each host: it may have given us the one trial of a host that was cooling down."""
        if host not in self._admitted:
            await self._request.gate(host)
            self._admitted.add(host)

    async def _hop(self, url: URL, *, is_own: bool) -> ClientResponse:
        host = str(target_origin(url))
        await self._admit(host)
        self.host = host
        left = None if self._end is None else max(self._end - asyncio.get_running_loop().time(), 0.001)
        self._response = await self._client.send(
            self._request.method, url, self._headers(is_own=is_own), is_own=is_own, total_seconds=left
        )
        return self._response

    def _headers(self, *, is_own: bool) -> CIMultiDict[str]:
        """What is asked goes along on every hop; what is configured goes to the remote's own host alone."""
        request, headers = self._request, CIMultiDict[str]()
        if is_own:
            headers.extend(self._client.remote.headers)
        for name, value in [*request.source.headers, *request.headers.items()]:
            if is_own or name.lower() == "accept":
                headers[name] = value
        for name in RESERVED.intersection(name.lower() for name in headers):
            headers.popall(name)
        headers.update(self._validators())
        if is_own and self._grant is not None:
            headers["Authorization"] = self._grant.value
        return headers

    def _validators(self) -> dict[str, str]:
        request = self._request
        sent = {
            "Accept-Encoding": "identity",
            "Range": range_header(request) if is_ranged(request) else "",
            "If-Range": request.if_range if is_ranged(request) else "",
            "If-None-Match": request.if_none_match,
            "If-Modified-Since": request.if_modified_since,
        }
        return {name: value for name, value in sent.items() if value}

    def _redirected(self, base: URL, response: ClientResponse) -> URL:
        """Where a redirect leads; RedirectRefused when we do not go there."""
        locations = response.headers.getall("Location", [])
        try:
            url = join_target(base, locations[0])
        except (IndexError, ValueError):
            raise RedirectRefused(f"{self.host}: redirect without a usable Location", host=self.host) from None
        if base.scheme == "https" and url.scheme != "https":
            raise RedirectRefused(f"{self.host}: redirect from https to http", host=self.host)
        return url

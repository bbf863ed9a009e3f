"""One remote's connections, in two sessions: to its own host, and to hosts that it names; and the pool of all."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import asynccontextmanager, suppress

import aiohttp
from multidict import CIMultiDict
from yarl import URL

from contentapp.core.errors import AddressRefused, ConnectError
from contentapp.core.records import Remote
from contentapp.upstream.address import DialGuard, Lookup, NameResolver, Reach, classify_host
from contentapp.upstream.auth import Authorizer
from contentapp.upstream.base import RemoteBusy
from contentapp.upstream.credentials import CredentialSource, basic_authorization
from contentapp.upstream.failure import HEAD_FAILURES, head_failure
from contentapp.upstream.target import HUB_REGISTRY, own_origin, target_origin
from contentapp.upstream.tls import Contexts, build_contexts, needs_contexts

READ_SIZE = 256 * 1024  # twice this is buffered; larger ones were measured to be no faster
MAX_LINE = 8 * 1024
MAX_FIELD = 16 * 1024
MAX_HEADERS = 128
HUB_SERVER = "https://index.docker.io/v1/"  # the name under which credential helpers keep Docker Hub


class RemoteClient:
    """Sends single requests for one revision of one remote. `users`: exchanges that are open."""

    def __init__(
        self,
        remote: Remote,
        *,
        user_agent: str,
        clock: Callable[[], float],
        helper_timeout_seconds: float,
        lookup: Lookup,
        executor: Executor,
    ) -> None:
        self.remote = remote
        self.own = own_origin(remote.url)
        self.users = 0
        self.guard = DialGuard(allow_private=remote.settings.allow_private_redirects, is_proxied=bool(remote.proxy_url))
        server = HUB_SERVER if self.own.host == HUB_REGISTRY else _server_name(URL(remote.url))
        credentials = CredentialSource(remote, server, clock=clock, helper_timeout_seconds=helper_timeout_seconds)
        self.authorizer = Authorizer(remote, self, credentials, clock)
        self._resolver = NameResolver(lookup, executor, self._resolved)
        self._user_agent = user_agent
        self._slots = asyncio.Semaphore(remote.settings.download_concurrency)
        self._opening = asyncio.Lock()
        self._sessions: dict[bool, aiohttp.ClientSession] = {}
        self._is_closed = False
        self._proxy, self._proxy_headers = _proxy(remote)
        if classify_host(self.own.host) is not None:
            with suppress(ValueError):
                self.guard.learn([self.own.host])

    def _resolved(self, host: str, addresses: Sequence[str]) -> None:
        if host.rstrip(".") == self.own.host:
            self.guard.learn(addresses)

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        """One of the remote's `download_concurrency` places, held for a whole exchange."""
        wait = self.remote.settings.connect_timeout
        try:
            async with asyncio.timeout(wait):
                await self._slots.acquire()
        except TimeoutError:
            message = f"all connections to remote {self.remote.name} were busy for {wait:g} s"
            raise RemoteBusy(message, retry_after_seconds=1.0) from None
        try:
            yield
        finally:
            self._slots.release()

    async def send(
        self,
        method: str,
        url: URL,
        headers: Mapping[str, str],
        *,
        is_own: bool,
        body: bytes | None = None,
        total_seconds: float | None = None,
    ) -> aiohttp.ClientResponse:
        """One request and the head of its answer, whatever its status; the caller closes it.

        is_own: it goes to the remote's own host and not by a redirect. total_seconds: for the body too, None: no bound.
        """
        host = str(target_origin(url))
        session = await self._session(is_own=is_own)
        if self._proxy is not None:
            self._check_proxied(url, host, is_own=is_own)
        elif not is_own and not self.guard.own:
            # The class of the own host decides what is permitted, so it must be known.
            with suppress(OSError):
                await self._resolver.resolve(self.own.host, self.own.port)
        settings = self.remote.settings
        timeout = aiohttp.ClientTimeout(
            total=total_seconds,
            connect=settings.connect_timeout,
            sock_connect=settings.sock_connect_timeout,
            sock_read=settings.sock_read_timeout,
        )
        try:
            # sock_read starts anew with every byte, so an endless head needs a bound of its own.
            async with asyncio.timeout(settings.connect_timeout + settings.sock_read_timeout):
                return await session.request(
                    method,
                    url,
                    headers=self._proxied(url, headers),
                    data=body,
                    allow_redirects=False,
                    timeout=timeout,
                    proxy=self._proxy,
                    proxy_headers=self._proxy_headers,
                )
        except HEAD_FAILURES as error:
            raise head_failure(error, host) from None
        except RuntimeError:
            if session.closed:
                raise ConnectError(f"closed before {host} answered", host=host) from None
            raise

    def _check_proxied(self, url: URL, host: str, *, is_own: bool) -> None:
        """The proxy dials, so there is no socket to check; what names mean is its affair."""
        reach = classify_host(url.host or "")
        is_permitted = reach is not Reach.METADATA if is_own else reach is None or self.guard.permits(reach)
        if not is_permitted:
            raise AddressRefused(f"{host} is at an address that this remote may not send us to", host=host)

    def _proxied(self, url: URL, headers: Mapping[str, str]) -> Mapping[str, str]:
        """aiohttp sends proxy_headers with CONNECT only; without TLS the request itself goes to the proxy."""
        if url.scheme == "https" or not self._proxy_headers:
            return headers
        return CIMultiDict(headers, **self._proxy_headers)

    async def _session(self, *, is_own: bool) -> aiohttp.ClientSession:
        if is_own not in self._sessions:
            async with self._opening:
                # Looked at again, since the lock's last holder may have opened them.
                if is_own not in self._sessions:
                    await self._open_sessions()
        return self._sessions[is_own]

    async def _open_sessions(self) -> None:
        plain = self.remote.settings.tls_validation
        contexts = Contexts(plain, plain)
        if needs_contexts(self.remote):
            contexts = await asyncio.to_thread(build_contexts, self.remote)
        if self._is_closed:
            raise ConnectError("the upstream client is closed")
        self._sessions = {
            True: self._open_session(
                aiohttp.TCPConnector(
                    ssl=contexts.own, limit=0, resolver=self._resolver, socket_factory=self.guard.own_socket
                )
            ),
            False: self._open_session(
                aiohttp.TCPConnector(
                    ssl=contexts.foreign, limit=0, resolver=self._resolver, socket_factory=self.guard.foreign_socket
                )
            ),
        }

    def _open_session(self, connector: aiohttp.TCPConnector) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"User-Agent": self._user_agent},
            auto_decompress=False,
            trust_env=False,
            read_bufsize=READ_SIZE,
            max_line_size=MAX_LINE,
            max_field_size=MAX_FIELD,
            max_headers=MAX_HEADERS,
        )

    async def close(self) -> None:
        """Cut what is open."""
        self._is_closed = True
        await self.authorizer.close()
        for session in self._sessions.values():
            await session.close()


def _server_name(url: URL) -> str:
    """What credential helpers know a registry by: its host, with the port if one is given."""
    host = url.host_subcomponent or ""
    return host if url.explicit_port is None else f"{host}:{url.explicit_port}"


def _proxy(remote: Remote) -> tuple[URL | None, dict[str, str] | None]:
    """The proxy's URL without userinfo, and the headers for it."""
    if not remote.proxy_url:
        return None, None
    url = URL(remote.proxy_url)
    username = remote.proxy_username or url.user
    password = remote.proxy_password.reveal() if remote.proxy_password else (url.password or "")
    headers = {"Proxy-Authorization": basic_authorization(username, password)} if username else None
    return url.with_user(None), headers


class ClientPool:
    """The clients of all remotes; a newer revision of a remote replaces the older one's when that is no longer used."""

    def __init__(self, make: Callable[[Remote], RemoteClient]) -> None:
        self._make = make
        self._clients: dict[int, RemoteClient] = {}
        self._retired: set[RemoteClient] = set()
        self._is_closed = False

    @asynccontextmanager
    async def use(self, remote: Remote) -> AsyncIterator[RemoteClient]:
        """The remote's client, which stays open at least as long as the context."""
        client = self._current(remote)
        client.users += 1
        try:
            yield client
        finally:
            client.users -= 1
            await self._close_unused()

    def _current(self, remote: Remote) -> RemoteClient:
        if self._is_closed:
            raise ConnectError("the upstream client is closed")
        client = self._clients.get(remote.id)
        if client is None or client.remote.revision != remote.revision:
            if client is not None:
                self._retired.add(client)
            client = self._clients[remote.id] = self._make(remote)
        return client

    async def _close_unused(self) -> None:
        for client in [client for client in self._retired if not client.users]:
            self._retired.discard(client)
            await client.close()

    async def close(self) -> None:
        """Close all, used or not."""
        self._is_closed = True
        clients = [*self._clients.values(), *self._retired]
        self._clients.clear()
        self._retired.clear()
        for client in clients:
            await client.close()

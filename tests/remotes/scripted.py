"""A real HTTP server on loopback that follows a script, and remembers what it was asked."""

from __future__ import annotations

import asyncio
import fnmatch
import ssl
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Self

from aiohttp import web

from tests.ports import Port
from tests.remotes.delivery import Delivery, Exchange
from tests.remotes.faults import WAIT_SECONDS, Answer, Fault, Gate, Stall


@dataclass
class Rule:
    """Faults for requests whose path matches a shell pattern: the first-th of them and `times` - 1 after it."""

    path: str
    faults: tuple[Fault, ...]
    method: str | None = None
    first: int = 1
    times: int | None = None
    ranged: bool | None = None
    seen: int = field(default=0, init=False)
    hits: int = field(default=0, init=False)

    def takes(self, exchange: Exchange) -> bool:
        """Count the request if it matches, and say whether it is one of those that go wrong."""
        if not matches(exchange, self.path, self.method):
            return False
        if self.ranged is not None and self.ranged != ("Range" in exchange.headers):
            return False
        self.seen += 1
        is_hit = self.seen >= self.first and (self.times is None or self.hits < self.times)
        self.hits += is_hit
        return is_hit


def matches(exchange: Exchange, path: str, method: str | None) -> bool:
    """Whether a request has this method and a path of this shell pattern (``*`` goes over slashes)."""
    return (method is None or method == exchange.method) and fnmatch.fnmatchcase(exchange.path, path)


class ScriptedRemote(ABC):
    """Base of all remotes: subclasses say what the right answer is (`answer`), the script says what is wrong with it.

    Used as ``async with FileRemote(...) as remote``. Every wait ends with TimeoutError instead of hanging.
    keeps_alive: whether a connection takes more than one request. aiohttp's client asks twice over one that has waited
    in its pool for longer than its read timeout, which where that is short must not get into what is counted.
    """

    def __init__(self, *, tls: ssl.SSLContext | None = None) -> None:
        self.requests: list[Exchange] = []
        self.keeps_alive = True
        self._tls = tls
        self._rules: list[Rule] = []
        self._port = Port()
        self._changed = asyncio.Event()
        self._listener: asyncio.Server | None = None
        self._server = web.Server(self._handle, handler_cancellation=True, access_log=None)

    @abstractmethod
    async def answer(self, request: web.BaseRequest) -> Answer:
        """The answer of a remote that works."""

    # -- where and whether it runs

    @property
    def address(self) -> str:
        """``127.0.0.1:port``; known before it listens, the same until it stops."""
        return f"127.0.0.1:{self._port.number}"

    @property
    def url(self) -> str:
        """``http(s)://127.0.0.1:port``, without a slash at the end."""
        return f"{'https' if self._tls else 'http'}://{self.address}"

    async def __aenter__(self) -> Self:
        await self.listen()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.refuse()
        await self._server.shutdown(0)
        self._port.close()

    async def listen(self) -> None:
        """Accept connections (again)."""
        if self._listener is None:
            loop = asyncio.get_running_loop()
            self._listener = await loop.create_server(self._server, sock=self._port.open(), ssl=self._tls, backlog=1024)

    async def refuse(self) -> None:
        """Drop every connection and refuse new ones, as a remote that is down does; `listen` ends it."""
        if self._listener is None:
            return
        self._listener.close()
        self._listener = None
        for connection in self._server.connections:
            if connection.transport is not None:
                connection.transport.abort()
        self._port.reserve()
        await self.idle()

    # -- what goes wrong

    def script(
        self,
        path: str,
        *faults: Fault,
        fault: Fault | None = None,
        method: str | None = None,
        first: int = 1,
        times: int | None = None,
        ranged: bool | None = None,
    ) -> Rule:
        """From the `first` matching request on, `times` of them (None: all) suffer these faults, applied in order.

        A request is the business of the first rule that takes it; it is not counted by the rules after that.
        ranged: only requests with (True) or without (False) a Range header.
        """
        chosen = (*faults, fault) if fault is not None else faults
        rule = Rule(path, chosen, method=method, first=first, times=times, ranged=ranged)
        self._rules.append(rule)
        return rule

    def hold(self, path: str, *, at: int = -1, method: str | None = None, times: int | None = None) -> Gate:
        """Matching requests wait before the head, or after `at` bytes of the body, until the gate is released."""
        gate = Gate()
        self.script(path, Stall(at, gate), method=method, times=times)
        return gate

    def clear(self) -> None:
        """Forget the script: everything works again, also for those who come to a gate set before."""
        self._rules.clear()

    # -- what it was asked

    def asked(self, path: str = "*", *, method: str | None = None) -> list[Exchange]:
        """The requests so far that match, in the order they came in."""
        return [exchange for exchange in self.requests if matches(exchange, path, method)]

    def count(self, path: str = "*", *, method: str | None = None) -> int:
        """How many requests matched so far."""
        return len(self.asked(path, method=method))

    def sent(self, path: str = "*", *, method: str | None = None) -> int:
        """Body bytes sent so far for requests that match."""
        return sum(exchange.sent for exchange in self.asked(path, method=method))

    def asked_ranges(self, path: str = "*") -> list[str | None]:
        """The Range of each GET so far that matches, None for the whole, in the order they came in."""
        return [exchange.headers.get("Range") for exchange in self.asked(path, method="GET")]

    def forget(self) -> None:
        """Start counting from nothing."""
        self.requests.clear()

    async def seen(
        self, path: str = "*", count: int = 1, *, method: str | None = None, timeout: float = WAIT_SECONDS
    ) -> list[Exchange]:
        """Return when `count` matching requests have come in."""
        await self._until(lambda: self.count(path, method=method) >= count, timeout)
        return self.asked(path, method=method)

    async def idle(self, path: str = "*", *, timeout: float = WAIT_SECONDS) -> None:
        """Return when no matching request is being answered any more, however it ended."""
        await self._until(lambda: all(exchange.is_over for exchange in self.asked(path)), timeout)

    async def _until(self, condition: Callable[[], bool], timeout: float) -> None:
        async with asyncio.timeout(timeout):
            while not condition():
                await self._changed.wait()

    def _note_change(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    # -- one request

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        exchange = Exchange(request.method, request.path, request.raw_path, request.query_string, request.headers)
        self.requests.append(exchange)
        self._note_change()
        try:
            answer = await self.answer(request)
            answer.keeps_alive = self.keeps_alive
            rule = next((rule for rule in self._rules if rule.takes(exchange)), None)
            for fault in rule.faults if rule else ():
                fault.change(answer)
            return await Delivery(request, answer, exchange).send()
        except ConnectionError:
            return web.Response()  # the device left; aiohttp sees that when it tries to finish this
        finally:
            exchange.is_over = True
            self._note_change()

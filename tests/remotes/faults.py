"""What can be wrong with an answer, as data. A fault changes one Answer before it is sent; several can be combined.

Offsets: `Flip` and `Shorten` count from the start of the content, whatever range was asked for, as damage in a file
does. `Cut` and `Stall` count the bytes of this one body, as trouble on the way does.
"""

from __future__ import annotations

import asyncio
import gzip
from dataclasses import dataclass, field
from typing import Protocol

from multidict import CIMultiDict

from tests.remotes.content import Content, Flipped, Shortened, Stored, Synthetic, content_of, read_all

LOGIN_PAGE = b"<!DOCTYPE html><html><head><title>Sign in</title></head><body><form>Password</form></body></html>"
WAIT_SECONDS = 15.0


class Gate:
    """A point that requests wait at until the test lets them go on."""

    def __init__(self) -> None:
        self._open = asyncio.Event()
        self._arrival = asyncio.Event()
        self.arrived = 0

    def release(self) -> None:
        """Let everybody through, those who wait and those who come later."""
        self._open.set()

    async def wait(self) -> None:
        """What a request does here."""
        self.arrived += 1
        arrival, self._arrival = self._arrival, asyncio.Event()
        arrival.set()
        await self._open.wait()

    async def reached(self, count: int = 1, *, timeout: float = WAIT_SECONDS) -> None:
        """Return when `count` requests have come this far; TimeoutError if they don't."""
        async with asyncio.timeout(timeout):
            while self.arrived < count:
                await self._arrival.wait()


@dataclass(kw_only=True)
class Answer:
    """One answer as the remote would give it, and how it is going to be delivered.

    gates: (bytes of this body sent, gate); -1 is before the head. rate: bytes a second. surplus: bytes sent behind the
    announced end. is_sized: whether Content-Length is sent (else chunked). cut_at: the connection ends after so many
    bytes of this body, with RST if `is_reset`, else FIN; -1 is before the head. honours_if_range: else a range is
    given whatever If-Range says. portion: most bytes of a range that one answer gives. keeps_alive: whether the
    connection may be used again.
    """

    path: str
    status: int = 200
    reason: str | None = None
    headers: CIMultiDict[str] = field(default_factory=CIMultiDict)
    content: Content = field(default_factory=lambda: Stored(b""))
    honours_range: bool = False
    honours_if_range: bool = True
    portion: int | None = None
    keeps_alive: bool = True
    range_shift: int = 0
    range_total: str | None = None
    delay: float = 0.0
    gates: list[tuple[int, Gate]] = field(default_factory=list)
    rate: float | None = None
    is_sized: bool = True
    surplus: bytes = b""
    cut_at: int | None = None
    is_reset: bool = False

    def replace_by(self, status: int, body: bytes, content_type: str = "text/plain") -> None:
        """Another answer altogether, without the headers of the one there was."""
        self.status, self.content, self.honours_range = status, Stored(body), False
        self.headers = CIMultiDict({"Content-Type": content_type})


class Fault(Protocol):
    """Something that goes wrong."""

    def change(self, answer: Answer) -> None:
        """Make the answer wrong."""
        ...


@dataclass(frozen=True)
class Delay:
    """The head comes late by so many seconds."""

    seconds: float

    def change(self, answer: Answer) -> None:
        answer.delay = self.seconds


@dataclass(frozen=True)
class Slow:
    """The body comes at `rate` bytes a second."""

    rate: float

    def change(self, answer: Answer) -> None:
        answer.rate = self.rate


@dataclass(frozen=True)
class Stall:
    """After `at` bytes of this body (-1: before the head) nothing more comes until the gate is released."""

    at: int
    gate: Gate = field(default_factory=Gate)

    def change(self, answer: Answer) -> None:
        answer.gates.append((self.at, self.gate))


@dataclass(frozen=True)
class Cut:
    """After `at` bytes of this body (-1: before the head) the connection ends: RST, or FIN with `reset=False`."""

    at: int
    reset: bool = True

    def change(self, answer: Answer) -> None:
        answer.cut_at, answer.is_reset = self.at, self.reset


@dataclass(frozen=True)
class Drop:
    """The connection is reset instead of an answer."""

    def change(self, answer: Answer) -> None:
        answer.cut_at, answer.is_reset = -1, True


@dataclass(frozen=True)
class Flip:
    """The content's byte at `at` is wrong; an offset behind its end changes nothing."""

    at: int = 0

    def change(self, answer: Answer) -> None:
        answer.content = Flipped(answer.content, self.at)


@dataclass(frozen=True)
class Shorten:
    """The content is its first `to` bytes, announced as if that were all."""

    to: int

    def change(self, answer: Answer) -> None:
        answer.content = Shortened(answer.content, min(self.to, answer.content.size))


@dataclass(frozen=True)
class Replace:
    """Other content in its place, everything else as it was."""

    body: bytes | Content = field(repr=False)

    def change(self, answer: Answer) -> None:
        answer.content = content_of(self.body)


@dataclass(frozen=True)
class Surplus:
    """So many bytes more are sent than Content-Length announces."""

    size: int = 1024

    def change(self, answer: Answer) -> None:
        answer.surplus = b"X" * self.size


@dataclass(frozen=True)
class Unsized:
    """No Content-Length: chunked."""

    def change(self, answer: Answer) -> None:
        answer.is_sized = False


@dataclass(frozen=True)
class Endless:
    """A body without Content-Length that never ends."""

    def change(self, answer: Answer) -> None:
        answer.content, answer.is_sized, answer.honours_range = Synthetic(1 << 60), False, False


@dataclass(frozen=True)
class IgnoreRange:
    """A range is answered with 200 and the whole."""

    def change(self, answer: Answer) -> None:
        answer.honours_range = False


@dataclass(frozen=True)
class IgnoreIfRange:
    """A range is given although If-Range names what was here before."""

    def change(self, answer: Answer) -> None:
        answer.honours_if_range = False


@dataclass(frozen=True)
class Portion:
    """A range is answered with its first `size` bytes only, and says so, as RFC 9110 (15.3.7) allows."""

    size: int

    def change(self, answer: Answer) -> None:
        answer.portion = self.size


@dataclass(frozen=True)
class WrongRange:
    """A 206 whose Content-Range lies: its start is `shift` off, or its total is `total`."""

    shift: int = 0
    total: str | None = None

    def change(self, answer: Answer) -> None:
        answer.range_shift, answer.range_total = self.shift, self.total


@dataclass(frozen=True)
class Headers:
    """These headers are set; None removes one."""

    values: dict[str, str | None]

    def change(self, answer: Answer) -> None:
        for name, value in self.values.items():
            answer.headers.popall(name, None)
            if value is not None:
                answer.headers[name] = value


def changed_etag(etag: str = '"other"') -> Headers:
    """Another ETag than before."""
    return Headers({"ETag": etag})


def wrong_type(content_type: str = "application/x-surprise") -> Headers:
    """A Content-Type that does not fit."""
    return Headers({"Content-Type": content_type})


def oversized_headers(size: int = 256 * 1024) -> Headers:
    """A header of so many bytes."""
    return Headers({"X-Padding": "p" * size})


@dataclass(frozen=True)
class Gzip:
    """The body is compressed although nobody asked for it."""

    def change(self, answer: Answer) -> None:
        answer.content = Stored(gzip.compress(read_all(answer.content), mtime=0))
        answer.headers["Content-Encoding"], answer.honours_range = "gzip", False


@dataclass(frozen=True)
class Status:
    """A status instead of the content, with more headers and a body if wanted."""

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b"no"
    reason: str | None = None

    def change(self, answer: Answer) -> None:
        answer.replace_by(self.status, self.body)
        answer.headers.update(self.headers)
        answer.reason = self.reason


def too_many(retry_after: str | None = None) -> Status:
    """429, with Retry-After if given."""
    return Status(429, {"Retry-After": retry_after} if retry_after is not None else {})


def challenge(value: str) -> Status:
    """401 with this WWW-Authenticate, well-formed or not."""
    return Status(401, {"WWW-Authenticate": value})


@dataclass(frozen=True)
class LoginPage:
    """200, and a login page in HTML."""

    def change(self, answer: Answer) -> None:
        answer.replace_by(200, LOGIN_PAGE, "text/html; charset=utf-8")


@dataclass(frozen=True)
class Redirect:
    """Redirect to `to`, in which ``{path}`` stands for the path asked for. ``Redirect("{path}")`` is a loop."""

    to: str
    status: int = 307

    def change(self, answer: Answer) -> None:
        answer.replace_by(self.status, b"elsewhere")
        answer.headers["Location"] = self.to.replace("{path}", answer.path)

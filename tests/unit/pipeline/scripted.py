"""Sources that follow a script: what they answer, what they were asked, and what was booked against them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from contentapp.core.digest import Digest
from contentapp.core.errors import ContentAppError, TransferInterrupted, UpstreamProtocolError
from contentapp.core.records import ContentType, Remote, Source
from contentapp.core.settings import RemoteSettings
from contentapp.pipeline.fetch import Fetched, Refusal, Refusals
from contentapp.pipeline.flight import Plan
from contentapp.upstream.base import UpstreamRequest

BODY = bytes(range(256)) * 40
QUICK = RemoteSettings(retry_backoff_seconds=0.01, retry_backoff_max_seconds=0.01)


def source(name: str) -> Source:
    remote = Remote(id=ord(name), name=name, type=ContentType.FILE, url=f"http://{name}/", settings=QUICK)
    return Source(remote=remote, url=f"http://{name}/file", path="file")


A, B, C = source("a"), source("b"), source("c")


@dataclass
class Answer:
    """One exchange: its body in pieces of `step`, ended by an error after `count` bytes of it."""

    offset: int = 0
    size: int | None = len(BODY)
    etag: str = ""
    last_modified: str = ""
    body: bytes = BODY
    count: int | None = None
    step: int = 1000
    status: int = 200
    length: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    host: str = "host:80"
    url: str = "http://host/file"

    async def chunks(self) -> AsyncIterator[bytes]:
        body = self.body[self.offset :]
        stop = len(body) if self.count is None else self.count
        for start in range(0, stop, self.step):
            yield body[start : min(start + self.step, stop)]
        if self.count is not None:
            raise TransferInterrupted("cut", host=self.host)

    async def read(self, max_size: int) -> bytes:
        body = b"".join([chunk async for chunk in self.chunks()])
        if len(body) > max_size:
            raise UpstreamProtocolError("too long", host=self.host)
        return body


Reply = Answer | Refusal


class ScriptedFetcher:
    """Each source's replies, in their order; what was asked; and which failures were booked."""

    def __init__(self, replies: Mapping[str, Sequence[Reply]]) -> None:
        self._replies = {name: list(script) for name, script in replies.items()}
        self.asked: list[tuple[str, int, str]] = []
        self.failures: list[tuple[str, str]] = []
        self.failures_aside: list[tuple[str, str]] = []
        self.wrong: list[tuple[str, Digest]] = []
        self.ends: list[str] = []
        self.opened = 0

    def reply(self, name: str, _wanted: UpstreamRequest) -> Reply:
        """What a source says to a request."""
        script = self._replies.get(name, [])
        return script.pop(0) if script else Refusal(name, "absent", "no more replies", status=404)

    @asynccontextmanager
    async def open(
        self, sources: Sequence[Source], request: Callable[[Source], UpstreamRequest], **options: Any
    ) -> AsyncIterator[Fetched]:
        refusals: Refusals = options.get("refusals") or Refusals()
        for candidate in sources:
            wanted = request(candidate)
            name = candidate.remote.name
            self.asked.append((name, wanted.offset, wanted.if_range))
            reply = self.reply(name, wanted)
            if isinstance(reply, Refusal):
                refusals.add(reply)
                continue
            self.opened += 1
            try:
                yield Fetched(candidate, reply)
            finally:
                self.opened -= 1
            return
        raise refusals.unavailable()

    async def failed(self, candidate: Source, error: ContentAppError) -> None:
        self.failures.append((candidate.remote.name, str(error)))

    async def failed_aside(self, candidate: Source, error: ContentAppError) -> None:
        self.failures_aside.append((candidate.remote.name, str(error)))

    async def wrong_bytes(self, candidate: Source, digest: Digest, _reason: str) -> None:
        self.wrong.append((candidate.remote.name, digest))

    async def ended(self, fetched: Fetched) -> None:
        self.ends.append(fetched.source.remote.name)


def plan(**changes: Any) -> Plan:
    """A plan for what nobody has stored and nobody records."""

    async def nothing(*_: object) -> None:
        return None

    async def no() -> bool:
        return False

    facts: dict[str, Any] = {
        "key": "key",
        "path": "/pulp/content/files/file",
        "sources": (A, B, C),
        "digest": Digest.of(BODY),
        "size": len(BODY),
        "is_stored": no,
        "delivered": nothing,
        "record": nothing,
        "revalidate": no,
        "find_modified": nothing,
    }
    return Plan(**(facts | changes))

"""Resume: the bytes of one body over as many exchanges as it takes (P2 after the first byte).

A transfer that breaks off goes on at its offset, first from the same source, then from the others. With a digest any
source will do, since the digest has the last word. Without one only the same URL may, and only if a validator says that
it still has the same bytes.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import timedelta
from http import HTTPStatus

import structlog

from contentapp.core.conditional import parse_entity_tag
from contentapp.core.digest import Digest, Hasher
from contentapp.core.errors import (
    ContentAppError,
    ContentDenied,
    ContentNotFound,
    ContentUnavailable,
    TransferInterrupted,
    UpstreamError,
    UpstreamProtocolError,
)
from contentapp.core.httpdate import parse_http_date
from contentapp.core.records import Source
from contentapp.core.settings import MIB
from contentapp.metrics import metrics
from contentapp.pipeline.fetch import Fetched, Fetcher, Refusals, refusal_of
from contentapp.pipeline.lookup import now
from contentapp.pipeline.progress import fact
from contentapp.upstream.base import UpstreamRequest, UpstreamResponse

log = structlog.get_logger("contentapp.resume")

PROGRESS_SIZE = MIB
"""An exchange that brought this much before it broke off is not held against its host: it would cool one that cuts long
transfers, though going on from it works.
"""

Held = Callable[[int], Awaitable[Hasher | None]]


class CannotGoOn(ContentAppError):
    """No source goes on with what has come so far.

    refusals: why. may_begin_anew: a source is there, but not for the rest of what has come so far.
    """

    def __init__(self, refusals: Refusals, *, may_begin_anew: bool) -> None:
        super().__init__(refusals.unavailable().reason)
        self.refusals = refusals
        self.may_begin_anew = may_begin_anew


class Changed(ContentAppError):
    """What the source has now is not what it had when the transfer began, or nothing says that it is."""


class _Unusable(ContentAppError):
    """A correct answer that can't be gone on with: nobody's failure."""


async def nothing_held(_offset: int) -> Hasher | None:
    """For a transfer whose first bytes can't be compared with a source's."""
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What a transfer keeps to.

    sources: that may go on, in their order. digest: None for bytes of which none was known before. if_range: what they
    are resumed by then (see `resume_validator`), "" for not at all; etag, last_modified: what they began with.
    size: of the whole, None: unknown. start, end: the part that is wanted, end None: to the end.
    deadline_seconds: the longest time without a new byte.
    first_byte_deadline_seconds: what all sources together have for an answer. held: the running hash over all bytes
    before an offset, to which they have come; None when it can't be had.
    """

    sources: Sequence[Source]
    digest: Digest | None
    deadline_seconds: float
    first_byte_deadline_seconds: float
    if_range: str = ""
    etag: str = ""
    last_modified: str = ""
    size: int | None = None
    start: int = 0
    end: int | None = None
    held: Held = nothing_held


class Transfer:
    """The bytes of a part of a body, from `offset` on; what is open is closed with `exchange`.

    source: where they come from now. exchanges: those that have given bytes or the proper end, by URL of the source.
    is_composed: more than one exchange has had a part in it, so that the source may have changed between them.
    """

    def __init__(self, fetcher: Fetcher, exchange: AsyncExitStack, source: Source, terms: Terms, offset: int) -> None:
        self.source = source
        self.offset = offset
        self.exchanges: dict[str, Fetched] = {}
        self.is_composed = False
        self._fetcher = fetcher
        self._exchange = exchange
        self._terms = terms
        self._stop = terms.size if terms.end is None else terms.end
        self._fetched: Fetched | None = None
        self._chunks: AsyncIterator[bytes] = _nothing()
        self._received = 0  # from the present exchange
        self._moved_at = asyncio.get_running_loop().time()
        self._left: set[str] = set()
        self._is_out_of_range = False
        self._fruitless: set[str] = set()  # answered since the last new byte, but brought none
        self._rounds = 0  # through all sources since then

    @classmethod
    def begun(cls, fetcher: Fetcher, exchange: AsyncExitStack, fetched: Fetched, terms: Terms) -> Transfer:
        """One whose first exchange is open already, and starts where it is to start."""
        transfer = cls(fetcher, exchange, fetched.source, terms, terms.start)
        transfer._use(fetched, fetched.response.chunks())
        return transfer

    async def reopen(self, refusals: Refusals) -> bool:
        """Open the first exchange of one that begins in the middle; whether a source goes on. Changed, as `chunks`."""
        return await self._is_whole() or await self._reopen(refusals, self._moved_at + self._terms.deadline_seconds)

    async def chunks(self) -> AsyncIterator[bytes]:
        """The bytes, in the pieces they arrive in.

        Raises the exchange's own UpstreamError when nothing has come at all, CannotGoOn and Changed later on. More than
        was asked for is the caller's to refuse; less is only what the source calls its end without a known size.
        """
        while True:
            error: UpstreamError
            try:
                async for chunk in self._chunks:
                    self._moved(len(chunk))
                    yield chunk
                if self._has_all or (self._stop is None and self._fetched is not None):
                    self._contributed()
                    return
                host = "" if self._fetched is None else self._fetched.response.host
                error = TransferInterrupted(f"{host}: ended at {self.offset}", host=host)
            except UpstreamError as failure:
                if await self._is_whole():
                    self._contributed()
                    return
                error = failure
            await self._go_on(error)

    @property
    def _is_of_whole(self) -> bool:
        return self._terms.start == 0 and self._terms.end is None

    @property
    def may_begin_anew(self) -> bool:
        """Whether a source is there, but not for the rest of what has come so far."""
        return bool(self._left) or self._is_out_of_range

    @property
    def _has_all(self) -> bool:
        """Whether it is known that nothing more is to come."""
        return self._stop is not None and self.offset >= self._stop

    async def _is_whole(self) -> bool:
        """Whether all is there, though the source has not said so: of a known size, or as the digest tells."""
        digest = self._terms.digest
        if self._stop is not None or digest is None:
            return self._has_all and digest is not None
        held = await self._terms.held(self.offset) if self.offset else None
        return held is not None and digest.matches(held)

    def _moved(self, count: int) -> None:
        metrics.upstream_bytes(self.source.remote.name, count)
        self.offset += count
        self._received += count
        self._moved_at = asyncio.get_running_loop().time()
        self._fruitless.clear()
        self._rounds = 0
        self._contributed()

    def contributed(self, fetched: Fetched) -> None:
        """Another exchange has given some of these bytes."""
        self.exchanges[fetched.source.url] = fetched
        self.is_composed = True

    def _contributed(self) -> None:
        if self._fetched is not None:
            self.exchanges[self.source.url] = self._fetched

    def _use(self, fetched: Fetched, chunks: AsyncIterator[bytes]) -> None:
        self.is_composed = self.is_composed or self.offset > self._terms.start
        self.source, self._fetched, self._chunks, self._received = fetched.source, fetched, chunks, 0

    async def _go_on(self, error: UpstreamError) -> None:
        """Find an exchange that goes on at the offset."""
        await self._exchange.aclose()
        if self._has_all or (self.offset == self._terms.start and self._is_of_whole):
            raise error
        source = self.source
        log.warning("transfer broke off", remote=source.remote.name, offset=self.offset, error=str(error))
        if self._received < PROGRESS_SIZE:
            await self._fetcher.failed(source, error)
        if not self._received:
            self._fruitless.add(source.url)
        give_up_at = self._moved_at + self._terms.deadline_seconds
        refusals = Refusals([refusal_of(source, error)])
        while not await self._reopen(refusals, give_up_at):
            await self._wait(refusals, give_up_at)
            self._fruitless.clear()
            refusals = Refusals(refusals.items[:1])
        metrics.resumed_transfer(self.source.remote.name)
        if self.source is not source:
            metrics.failover(source.remote.name)

    async def _wait(self, refusals: Refusals, give_up_at: float) -> None:
        """Until it is worth asking again; CannotGoOn when it is not."""
        later = [refusal for refusal in refusals.items[0 if self._fruitless else 1 :] if refusal.kind == "failed"]
        settings = self.source.remote.settings
        longest = min(settings.retry_backoff_max_seconds, settings.retry_backoff_seconds * 2.0**self._rounds)
        self._rounds += 1
        backoff = longest * random.random()  # noqa: S311 - spreads, protects nothing
        seconds = min((item.retry_after_seconds if item.is_cooling else backoff for item in later), default=None)
        if seconds is None or asyncio.get_running_loop().time() + seconds >= give_up_at:
            raise CannotGoOn(refusals, may_begin_anew=self.may_begin_anew)
        await asyncio.sleep(seconds)

    async def _reopen(self, refusals: Refusals, give_up_at: float) -> bool:
        """Ask the sources in their order until one goes on; whether one does."""
        candidates = self._candidates()
        deadline = min(asyncio.get_running_loop().time() + self._terms.first_byte_deadline_seconds, give_up_at)
        while candidates:
            opened = self._fetcher.open(
                candidates,
                self._request,
                digest=self._terms.digest,
                deadline=deadline,
                must_exist=True,
                refusals=refusals,
            )
            try:
                fetched = await self._exchange.enter_async_context(opened)
            except (ContentUnavailable, ContentNotFound, ContentDenied):
                self._check_range_refused(refusals)
                return False
            try:
                await self._take_up(fetched, give_up_at)
            except (UpstreamError, _Unusable) as error:
                await self._exchange.aclose()
                if isinstance(error, UpstreamError):
                    await self._fetcher.failed(fetched.source, error)
                refusals.add(refusal_of(fetched.source, error))
                candidates = candidates[candidates.index(fetched.source) + 1 :]
                continue
            return True
        return False

    def _check_range_refused(self, refusals: Refusals) -> None:
        """A file that has not as many bytes any more is another one."""
        if any(item.status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE for item in refusals.items):
            if self._terms.digest is None:
                raise Changed("it has changed upstream")
            self._is_out_of_range = True

    def _candidates(self) -> list[Source]:
        """The source that has just broken off, then the others: without a digest its own URL alone."""
        current, terms = self.source, self._terms
        if terms.digest is None:
            if not terms.if_range:
                raise Changed("nothing says that it is still the same")
            others = []
        else:
            others = [source for source in terms.sources if source.url != current.url]
        return [source for source in (current, *others) if source.url not in self._left | self._fruitless]

    def _request(self, source: Source) -> UpstreamRequest:
        if_range = self._terms.if_range if self._terms.digest is None else ""
        return UpstreamRequest(source=source, offset=self.offset, end=self._terms.end, if_range=if_range)

    async def _take_up(self, fetched: Fetched, give_up_at: float) -> None:
        """Go on with an answer, if it is one to go on with; UpstreamError if not, Changed without a digest."""
        response, terms = fetched.response, self._terms
        is_other_size = terms.size is not None and response.size not in {None, terms.size}
        if terms.digest is None:
            if response.offset != self.offset or is_other_size or not self._has_same_validator(response):
                raise Changed("it has changed upstream")
        elif is_other_size:
            self._leave(fetched)
            raise UpstreamProtocolError("a range of another size", host=response.host)
        chunks = response.chunks()
        if response.offset != self.offset:
            chunks = await self._behind_prefix(fetched, chunks, give_up_at)
        elif self._stop is None:
            self._learn_size(fetched)
        self._use(fetched, chunks)

    def _learn_size(self, fetched: Fetched) -> None:
        """A part may be shorter than was asked for, so its end is the end of the whole only if the total says so."""
        if fetched.response.size is not None:
            self._stop = fetched.response.size
        elif self._terms.digest is None:
            raise Changed("a part of a whole of unknown size")
        else:
            self._leave(fetched)
            raise _Unusable("a part of a whole of unknown size")

    def _has_same_validator(self, response: UpstreamResponse) -> bool:
        """Whether a 206 names no other validator than the first answer: one that does has ignored If-Range."""
        is_same_tag = fact(response.etag) in {"", self._terms.etag}
        return is_same_tag and fact(response.last_modified) in {"", self._terms.last_modified}

    async def _behind_prefix(
        self, fetched: Fetched, chunks: AsyncIterator[bytes], give_up_at: float
    ) -> AsyncIterator[bytes]:
        """What follows the held bytes in an answer that starts at 0, once it has been seen to start with them."""
        digest = self._terms.digest
        held = await self._terms.held(self.offset) if self._is_of_whole else None
        if held is None or digest is None:
            self._leave(fetched)
            raise _Unusable("answered the whole instead of a range")
        seen, left, rest = digest.hasher(), self.offset, b""
        try:
            async with asyncio.timeout_at(give_up_at):
                while left and (chunk := await anext(chunks, b"")):
                    seen.update(chunk[:left])
                    rest = chunk[left:]
                    left -= len(chunk) - len(rest)
        except TimeoutError:
            self._leave(fetched)
            raise _Unusable("its beginning takes too long") from None
        if left or seen.hexdigest() != held.hexdigest():
            # Which of the two is wrong is not known: this one is left alone, and nobody is cooled.
            self._leave(fetched)
            raise _Unusable("it starts otherwise than what has come before")
        return _after(rest, chunks)

    def _leave(self, fetched: Fetched) -> None:
        """Ask this source no more in this transfer."""
        self._left.add(fetched.source.url)


async def _nothing() -> AsyncIterator[bytes]:
    none: tuple[bytes, ...] = ()
    for piece in none:
        yield piece


async def _after(first: bytes, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    if first:
        yield first
    async for chunk in chunks:
        yield chunk


def resume_validator(response: UpstreamResponse) -> str:
    """The If-Range by which undigested bytes may be resumed; "" if none may be relied on.

    A strong ETag, else a Last-Modified at least a second older than the answer's Date (RFC 9110, 8.8.2.2 and 13.1.5).
    """
    tag = parse_entity_tag(response.etag)
    if tag is not None:
        return "" if tag.is_weak else response.etag
    at = now()
    modified = parse_http_date(response.last_modified, at)
    date = parse_http_date(response.headers.get("Date", ""), at)
    is_strong = modified is not None and date is not None and date - modified >= timedelta(seconds=1)
    return response.last_modified if is_strong else ""

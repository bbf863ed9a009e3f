"""Resolve: what a route means: which bytes, known by which digest, permitted to whom, deliverable by which sources."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING
from urllib.parse import quote

import structlog

from contentapp.core.conditional import undigested_tag
from contentapp.core.digest import Digest
from contentapp.core.errors import (
    CatalogUnavailable,
    ContentAppError,
    ContentDenied,
    ContentNotFound,
    ContentUnavailable,
    StorageError,
    UpstreamProtocolError,
)
from contentapp.core.records import Distribution, FileEntry, Kind, ListedFile, Member, Policy, Remote, Source
from contentapp.pipeline.chunked import KnownChunks
from contentapp.pipeline.chunklists import SUFFIX, ChunkLists
from contentapp.pipeline.collapse import Collapse
from contentapp.pipeline.fetch import Fetched, Fetcher, HeadRefused, Refusals, refusal_of
from contentapp.pipeline.flight import Plan
from contentapp.pipeline.learn import Learner
from contentapp.pipeline.listing import Listings
from contentapp.pipeline.lookup import Lookup, now
from contentapp.pipeline.route import Route
from contentapp.pipeline.store import Store
from contentapp.plugins import container, file
from contentapp.plugins.base import Wanted
from contentapp.upstream.base import UpstreamRequest

if TYPE_CHECKING:
    from contentapp.pipeline.intake import Received

log = structlog.get_logger("contentapp.resolve")

BLOB_TYPE = "application/octet-stream"
"""Never a manifest's: containerd would store it wrongly."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """One body that a device may have.

    digest: what the bytes must be, None for undigested; for undigested content that is stored, what they were, with
    `entry`. is_stale: `entry` is out of date, but no source answers. must_exist: a served manifest names it.
    previous: what is stored and has changed since, for when what is new can't be had.
    """

    distribution: Distribution
    wanted: Wanted
    name: str
    path: str
    media_type: str
    sources: Sequence[Source]
    digest: Digest | None = None
    size: int | None = None
    must_exist: bool = False
    entry: FileEntry | None = None
    is_stale: bool = False
    is_revalidated: bool = False
    previous: Content | None = None

    @property
    def is_private(self) -> bool:
        """Whether credentials stand behind it."""
        return any(remote.has_credentials for remote in self.distribution.remotes)

    @property
    def is_digested(self) -> bool:
        """Whether its digest was known before its bytes."""
        return self.digest is not None and self.entry is None

    @property
    def is_html_allowed(self) -> bool:
        """Whether a page of HTML may be the content, and not what stands in its place."""
        return self.is_digested or self.path.endswith((".html", ".htm", "/"))

    @property
    def policy(self) -> Policy:
        """The policy of the remote that comes first."""
        return self.sources[0].remote.policy if self.sources else Policy.ON_DEMAND

    @property
    def key(self) -> str:
        """The key of its flight: by digest, one for all names; else by what the distribution calls it."""
        return str(self.digest) if self.is_digested else f"{self.distribution.id}/{self.path}"


class Resolver:
    """Turns routes of blobs and files into contents."""

    def __init__(
        self,
        fetcher: Fetcher,
        lookup: Lookup,
        listings: Listings,
        store: Store,
        *,
        members: Collapse[Member],
        contents: Collapse[Content],
        chunk_lists: ChunkLists,
        learner: Learner,
    ) -> None:
        """`members`, `contents`: what makes one HEAD of many devices' (P4)."""
        self._members = members
        self._contents = contents
        self._chunk_lists = chunk_lists
        self._learner = learner
        self._fetcher = fetcher
        self._lookup = lookup
        self._listings = listings
        self._store = store

    async def resolve(self, route: Route) -> Content:
        """ContentNotFound, ContentDenied or ContentUnavailable when it can't be had under this name."""
        return await (self._blob(route) if route.path.wanted is Wanted.BLOB else self._file(route))

    # Blobs

    async def _blob(self, route: Route) -> Content:
        digest = route.path.digest
        if digest is None:
            raise ContentNotFound(route.path.name)
        sources = [container.locate(remote, route.name, route.path) for remote in route.distribution.remotes]
        member = await self._lookup.member(route.distribution.id, route.name, digest)
        is_referenced = member is not None
        if member is None:
            member, _ = await self._members.do(
                f"member:{route.distribution.id}:{route.name}:{digest}",
                lambda: self._lookup.member(route.distribution.id, route.name, digest),
                lambda: self._confirm(route, sources, digest),
            )
        return Content(
            distribution=route.distribution,
            wanted=Wanted.BLOB,
            name=route.name,
            path=route.name,
            media_type=BLOB_TYPE,
            sources=sources,
            digest=digest,
            size=member.size,
            must_exist=is_referenced,
        )

    async def _confirm(self, route: Route, sources: Sequence[Source], digest: Digest) -> Member:
        """Nothing served under this name has named the blob: a source must say that it is there (P8)."""
        await self._head(sources, digest, route.distribution)
        # Not its size: what a HEAD says of it would become what every source's bytes are held against.
        member = Member(digest=digest, kind=Kind.BLOB)
        try:
            await self._lookup.record_members(route.distribution.id, route.name, [member])
        except CatalogUnavailable as error:
            log.warning("permission not recorded", error=str(error))
        return member

    async def head(self, content: Content) -> Fetched:
        """The head of a content as its sources have it; only the head of the answer is of use afterwards."""
        return await self._head(
            content.sources,
            content.digest,
            content.distribution,
            must_exist=content.must_exist,
            is_html_allowed=content.is_html_allowed,
        )

    async def _head(
        self,
        sources: Sequence[Source],
        digest: Digest | None,
        distribution: Distribution,
        *,
        must_exist: bool = False,
        is_html_allowed: bool = False,
    ) -> Fetched:
        """The first answer that is no login page in the content's place."""
        deadline = asyncio.get_running_loop().time() + distribution.settings.first_byte_deadline_seconds
        refusals, left = Refusals(), list(sources)
        while True:
            fetched = await self._ask_head(left, digest, deadline, refusals, must_exist=must_exist)
            if is_html_allowed or not is_unwanted_page(fetched):
                return fetched
            error = UpstreamProtocolError("answered an HTML page", host=fetched.response.host)
            await self._fetcher.failed(fetched.source, error)
            refusals.add(refusal_of(fetched.source, error))
            left = left[left.index(fetched.source) + 1 :]

    async def _ask_head(
        self, sources: Sequence[Source], digest: Digest | None, deadline: float, refusals: Refusals, *, must_exist: bool
    ) -> Fetched:
        """By HEAD, or by GET of one byte where HEAD is refused."""

        async def ask(request: Callable[[Source], UpstreamRequest]) -> Fetched:
            async with self._fetcher.open(
                sources, request, digest=digest, deadline=deadline, must_exist=must_exist, refusals=refusals
            ) as fetched:
                return fetched

        try:
            return await ask(lambda source: UpstreamRequest(source=source, method="HEAD"))
        except HeadRefused:
            return await ask(lambda source: UpstreamRequest(source=source, end=1))

    # Files

    async def _file(self, route: Route) -> Content:
        distribution, path = route.distribution, route.name
        entry = await self._lookup.file(distribution.id, path)
        listed, remotes = await self._listed(distribution, path)
        content = Content(
            distribution=distribution,
            wanted=Wanted.FILE,
            name=path,
            path=path,
            media_type=file.media_type(path),
            sources=[file.locate(remote, path) for remote in remotes],
        )
        if listed is not None:
            return replace(content, digest=listed.digest, size=listed.size)
        if entry is None:
            return content
        if (stored := self._fresh(content, entry)) is not None:
            return stored
        known = entry
        result, _ = await self._contents.do(
            f"revalidate:{distribution.id}:{path}",
            lambda: self._found_fresh(content),
            lambda: self._undigested(content, known),
        )
        return result

    def _fresh(self, content: Content, entry: FileEntry) -> Content | None:
        ttl = timedelta(seconds=content.distribution.settings.content_ttl_seconds)
        if now() - entry.checked_at > ttl:
            return None
        return replace(content, digest=entry.digest, size=entry.size, entry=entry)

    async def _found_fresh(self, content: Content) -> Content | None:
        """What another process has found out meanwhile."""
        entry = await self._lookup.file(content.distribution.id, content.path)
        return None if entry is None else self._fresh(content, entry)

    async def _listed(self, distribution: Distribution, path: str) -> tuple[ListedFile | None, list[Remote]]:
        """The first remote's word on a path, and the remotes that do not contradict it."""
        states = await asyncio.gather(*(self._listings.ready(remote) for remote in distribution.remotes))
        expected: ListedFile | None = None
        remotes = []
        for remote, state in zip(distribution.remotes, states, strict=True):
            listed = await self._lookup.listed(remote.id, path) if state is not None and state.present else None
            expected = expected or listed
            if listed is None or expected is None or listed.digest == expected.digest:
                remotes.append(remote)
        return expected, remotes

    async def _authority(self, distribution: Distribution, path: str) -> Remote | None:
        """The remote whose word on a path counts: the first that lists it."""
        for remote in distribution.remotes:
            state = await self._listings.ready(remote)
            if state is not None and state.present and await self._lookup.listed(remote.id, path) is not None:
                return remote
        return None

    async def _undigested(self, content: Content, entry: FileEntry) -> Content:
        """What is stored, if it is still the same upstream or its remote can't be asked; else what is new."""
        stored = replace(content, digest=entry.digest, size=entry.size, entry=entry)
        sources = [source for source in content.sources if source.remote.id == entry.remote_id]
        if not sources:
            return content
        try:
            fetched = await self.head(replace(content, sources=sources))
        except ContentNotFound:
            await self._lookup.forget_file(content.distribution.id, entry.path)
            return content
        except (ContentUnavailable, ContentDenied) as error:
            log.info("served stale", distribution=content.distribution.name, reason=str(error))
            return replace(stored, is_stale=True)
        if not _is_same(entry, fetched):
            return replace(content, previous=replace(stored, is_stale=True))
        try:
            await self._lookup.touch_file(content.distribution.id, entry.path)
        except CatalogUnavailable as error:
            log.warning("revalidation not recorded", error=str(error))
        return replace(stored, is_revalidated=True)

    # Flights

    def plan(self, content: Content) -> Plan:
        """What a flight for this content is to do."""
        settings = content.distribution.settings
        digest = content.digest if content.is_digested else None
        return Plan(
            key=content.key,
            path=device_path(content),
            sources=content.sources,
            digest=digest,
            size=content.size if content.is_digested else None,
            is_stored=self._is_stored(content),
            delivered=self._delivered,
            record=lambda received: self._record(content, received),
            revalidate=self._revalidate(content),
            find_modified=self._find_modified(digest),
            find_chunks=self._find_chunks(content),
            must_exist=content.must_exist,
            first_byte_deadline_seconds=settings.first_byte_deadline_seconds,
            resume_deadline_seconds=settings.resume_deadline_seconds,
            is_html_allowed=content.is_html_allowed,
        )

    def _is_stored(self, content: Content) -> Callable[[], Awaitable[bool]]:
        """Asked of the catalog itself, since another process may have stored it a moment ago."""

        async def is_stored() -> bool:
            try:
                if content.is_digested and content.digest is not None:
                    return await self._store.has(content.digest)
                entry = await self._lookup.file(content.distribution.id, content.path, is_fresh=True)
                ttl = timedelta(seconds=content.distribution.settings.content_ttl_seconds)
                is_fresh = entry is not None and now() - entry.checked_at <= ttl
                return entry is not None and is_fresh and await self._store.has(entry.digest)
            except (CatalogUnavailable, StorageError):
                return False

        return is_stored

    def _find_chunks(self, content: Content) -> Callable[[], Awaitable[KnownChunks | None]]:
        async def find_chunks() -> KnownChunks | None:
            if content.digest is None or not content.is_digested:
                return None
            try:
                return await self._chunks_of(content, content.digest)
            except ContentAppError as error:
                log.info("no chunk list", key=content.key, reason=str(error))
                return None

        return find_chunks

    async def _chunks_of(self, content: Content, digest: Digest) -> KnownChunks | None:
        """From the metadata that the digest comes from, or what was learned."""
        if content.wanted is not Wanted.FILE or content.size is None:
            return await self._chunk_lists.of_digest(digest, content.size)
        expected = ListedFile(path=content.path, digest=digest, size=content.size)
        if (remote := await self._authority(content.distribution, content.path)) is None:
            return await self._chunk_lists.of_digest(digest, content.size)
        listed = await self._lookup.listed(remote.id, content.path + SUFFIX)
        return await self._chunk_lists.of_file(content.path, expected, listed, remote)

    def _find_modified(self, digest: Digest | None) -> Callable[[], Awaitable[datetime | None]]:
        async def find_modified() -> datetime | None:
            return None if digest is None else await self.modified(digest)

        return find_modified

    async def modified(self, digest: Digest) -> datetime | None:
        """The Last-Modified that these bytes had when they were first seen."""
        try:
            return await self._lookup.catalog.find_modified(digest)
        except CatalogUnavailable:
            return None

    def _revalidate(self, content: Content) -> Callable[[], Awaitable[bool]]:
        """Only a file's digest can be outdated: a registry's is its name."""

        async def revalidate() -> bool:
            if content.wanted is not Wanted.FILE or not content.is_digested:
                return False
            for remote in content.distribution.remotes:
                await self._listings.revalidate(remote)
            listed, _ = await self._listed(content.distribution, content.path)
            return listed is None or listed.digest != content.digest or listed.size != content.size

        return revalidate

    async def _delivered(self, source: Source, digest: Digest) -> None:
        """This remote has it: before the artifact itself, so that even one that a crash leaves unrecorded has a
        source.
        """
        if source.remote.keeps:
            await self._lookup.record_source(digest, source.remote, source.path)

    async def _record(self, content: Content, received: Received) -> None:
        """Write down what a flight has brought."""
        if received.is_stored:
            await self._store.record(
                received.digest, received.size, flight=received.flight, modified_at=received.head.modified
            )
            self._learner.stored(received.digest, received.size)
        if received.is_stored and not content.is_digested:
            await self._record_file(content, received, now())

    async def _record_file(self, content: Content, received: Received, at: datetime) -> None:
        """Undigested: this is what the path is now, unless somebody else has recorded something newer meanwhile."""
        known = await self._lookup.catalog.find_file(content.distribution.id, content.path)
        is_same = known is not None and known.digest == received.digest
        entry = FileEntry(
            path=content.path,
            digest=received.digest,
            size=received.size,
            is_digested=False,
            etag=received.head.etag,
            last_modified=received.head.last_modified,
            validator=undigested_tag(received.head.etag, received.size, received.source.remote.name).strip('"'),
            remote_id=received.source.remote.id,
            checked_at=at,
            modified_at=known.modified_at if known is not None and is_same else received.head.modified or at,
        )
        await self._lookup.record_file(content.distribution.id, entry, replaces=0 if known is None else known.revision)


def device_path(content: Content) -> str:
    """The path by which a device asks for a blob or a file, percent-encoded."""
    base_path = content.distribution.base_path
    if content.wanted is Wanted.BLOB:
        return f"/v2/{base_path}/{content.name}/blobs/{content.digest}"
    return f"/pulp/content/{base_path}/{quote(content.path, safe='/')}"


def _is_same(entry: FileEntry, fetched: Fetched) -> bool:
    """Whether the remote still has these bytes: by a strong ETag, else by Last-Modified, and by size (RFC 9110,
    13.1).
    """
    response = fetched.response
    if response.size is not None and response.size != entry.size:
        return False
    if entry.etag and not entry.etag.startswith("W/") and response.etag:
        return response.etag == entry.etag
    return bool(entry.last_modified) and response.last_modified == entry.last_modified


def is_unwanted_page(fetched: Fetched) -> bool:
    """Whether it is a page of HTML, of a remote that has no such content."""
    is_page = fetched.response.headers.get("Content-Type", "").lower().startswith("text/html")
    return is_page and not fetched.source.remote.settings.allow_html

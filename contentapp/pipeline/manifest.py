"""Manifests: small, verified whole in memory, kept byte for byte; tags with their TTL, revalidation and staleness."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from fnmatch import fnmatchcase

import structlog

from contentapp.core.digest import Digest
from contentapp.core.errors import (
    CatalogUnavailable,
    ContentAppError,
    ContentDenied,
    ContentNotFound,
    ContentUnavailable,
    InvalidDigest,
    MetadataInvalid,
    UpstreamError,
    UpstreamProtocolError,
    UpstreamTimeout,
)
from contentapp.core.httpdate import parse_http_date
from contentapp.core.records import Distribution, Kind, Member, Source, Tag
from contentapp.metrics import metrics
from contentapp.pipeline.collapse import Collapse
from contentapp.pipeline.fetch import Fetched, Fetcher, HeadRefused, Refusal, Refusals, refusal_of
from contentapp.pipeline.lookup import Lookup, now
from contentapp.pipeline.route import Route
from contentapp.pipeline.store import Store
from contentapp.pipeline.wrong import WrongBytes
from contentapp.plugins import container, container_manifest
from contentapp.plugins.base import ContentPath
from contentapp.upstream.base import UpstreamRequest, UpstreamResponse

log = structlog.get_logger("contentapp.manifest")

INLINE_SIZE = 64 * 1024
"""Larger manifests are hashed and parsed in a thread."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ManifestBody:
    """A verified manifest. outcome: for metrics; cache_status: for the header."""

    digest: Digest
    media_type: str
    body: bytes
    modified_at: datetime
    outcome: str = "hit"
    cache_status: str = "hit"


@dataclass(frozen=True, slots=True)
class _Answered:
    source: Source
    body: bytes
    digest: Digest
    manifest: container_manifest.Manifest
    last_modified: str


class Manifests:
    """Gets manifests by tag and by digest."""

    def __init__(self, fetcher: Fetcher, store: Store, lookup: Lookup, collapse: Collapse[ManifestBody]) -> None:
        self._fetcher = fetcher
        self._store = store
        self._lookup = lookup
        self._collapse = collapse

    async def get(self, route: Route) -> ManifestBody:
        """The manifest that a route names, from here or from its remotes."""
        if route.path.digest is not None:
            return await self._by_digest(route, route.path.digest)
        return await self._by_tag(route)

    # By digest: never revalidated.

    async def _by_digest(self, route: Route, digest: Digest) -> ManifestBody:
        if (held := await self._permitted(route, digest)) is not None:
            return held
        key = f"manifest:{route.distribution.id}:{route.name}:{digest}"
        result, is_joined = await self._collapse.do(
            key, lambda: self._permitted(route, digest), lambda: self._fetch_digest(route, digest)
        )
        return _joined(result) if is_joined else result

    async def _permitted(self, route: Route, digest: Digest) -> ManifestBody | None:
        """What is held, if it may be read under this name (P8)."""
        member = await self._lookup.member(route.distribution.id, route.name, digest)
        if member is None or member.kind is not Kind.MANIFEST or not member.media_type:
            return None
        return await self._read_stored(digest, member.media_type)

    async def _read_stored(self, digest: Digest, media_type: str) -> ManifestBody | None:
        small = await self._store.read(digest)
        if small is None:
            return None
        return ManifestBody(digest=digest, media_type=media_type, body=small.body, modified_at=small.modified_at)

    async def _fetch_digest(self, route: Route, digest: Digest) -> ManifestBody:
        member = await self._lookup.member(route.distribution.id, route.name, digest)
        answered = await self._ask(
            route, _sources(route, replace(route.path, digest=digest, tag="")), digest, must_exist=member is not None
        )
        return await self._keep(route, answered, "fwd=miss")

    # By tag.

    async def _by_tag(self, route: Route) -> ManifestBody:
        if (held := await self._fresh(route)) is not None:
            return held
        key = f"tag:{route.distribution.id}:{route.name}:{route.path.tag}"
        result, is_joined = await self._collapse.do(key, lambda: self._fresh(route), lambda: self._resolve_tag(route))
        return _joined(result) if is_joined else result

    async def _fresh(self, route: Route) -> ManifestBody | None:
        """The tag's manifest as long as its TTL lasts."""
        known = await self._lookup.tag(route.distribution.id, route.name, route.path.tag)
        if known is None or now() - known.checked_at > timedelta(seconds=tag_ttl(route.distribution, known.name)):
            return None
        return await self._held(known)

    async def _held(self, known: Tag) -> ManifestBody | None:
        return await self._read_stored(known.digest, known.media_type)

    async def _resolve_tag(self, route: Route) -> ManifestBody:
        """Ask upstream what the tag is now."""
        known = await self._lookup.tag(route.distribution.id, route.name, route.path.tag)
        sources = _sources(route, route.path)
        if known is None or await self._held(known) is None:
            return await self._keep(route, await self._ask(route, sources, None), "fwd=miss")
        return await self._revalidate(route, known, sources)

    async def _revalidate(self, route: Route, known: Tag, sources: Sequence[Source]) -> ManifestBody:
        """The first source decides; while it can't, what is cached stays (P7): later ones might have an older tag."""
        try:
            if (unchanged := await self._unchanged(route, known, sources[:1])) is not None:
                return unchanged
            answered = await self._ask(route, sources[:1], None)
        except ContentNotFound:
            await self._lookup.forget_tag(route.distribution.id, route.name, known.name)
            return await self._keep(route, await self._ask(route, sources, None), "fwd=stale")
        except (ContentDenied, ContentUnavailable) as error:
            if (stale := await self._stale(route, known, error)) is not None:
                return stale
            if not sources[1:]:
                raise
            return await self._keep(route, await self._ask(route, sources[1:], None), "fwd=stale")
        return await self._keep(route, answered, "fwd=stale; fwd-status=200")

    async def _unchanged(self, route: Route, known: Tag, sources: Sequence[Source]) -> ManifestBody | None:
        """One HEAD: the manifest, if the tag is what it was; None when it changed or the HEAD does not tell."""
        limit = _deadline(route)
        try:
            async with self._fetcher.open(
                sources, lambda source: UpstreamRequest(source=source, method="HEAD"), deadline=limit
            ) as fetched:
                digest = _announced(fetched.response)
        except HeadRefused:
            return None
        if digest != known.digest:
            return None
        try:
            await self._lookup.record_tag(route.distribution.id, route.name, replace(known, checked_at=now()))
        except CatalogUnavailable as error:
            log.warning("revalidation not recorded", error=str(error))
        held = await self._held(known)
        return None if held is None else replace(held, cache_status="fwd=stale; fwd-status=200")

    async def _stale(self, route: Route, known: Tag, error: ContentAppError) -> ManifestBody | None:
        """What was there before, while its time lasts; None after it."""
        settings = route.distribution.settings
        ttl = tag_ttl(route.distribution, known.name)
        age = (now() - known.checked_at).total_seconds()
        held = await self._held(known) if age <= ttl + settings.stale_if_error_seconds else None
        if held is None:
            return None
        log.info("served stale", distribution=route.distribution.name, reason=str(error))
        status = f"hit; ttl={min(-1, int(ttl - age))}; detail=stale-if-error"
        return replace(held, outcome="stale", cache_status=status)

    # Both.

    async def _ask(
        self, route: Route, sources: Sequence[Source], digest: Digest | None, *, must_exist: bool = False
    ) -> _Answered:
        """The first valid answer; one that is invalid makes its source fail, and the next is asked."""
        refusals, left = Refusals(), list(sources)
        limit = _deadline(route)
        while True:
            opened = self._fetcher.open(
                left,
                lambda source: UpstreamRequest(source=source),
                digest=digest,
                deadline=limit,
                must_exist=must_exist,
                refusals=refusals,
            )
            async with opened as fetched:
                read = await self._read(route, fetched, digest, limit)
            if isinstance(read, _Answered):
                return read
            refusals.add(read)
            metrics.failover(fetched.source.remote.name)
            left = left[left.index(fetched.source) + 1 :]

    async def _read(self, route: Route, fetched: Fetched, digest: Digest | None, limit: float) -> _Answered | Refusal:
        """Read and verify one answer."""
        source, response = fetched.source, fetched.response
        try:
            async with asyncio.timeout_at(limit):
                body = await response.read(route.distribution.settings.max_manifest_size)
            metrics.upstream_bytes(source.remote.name, len(body))
            media_type = response.headers.get("Content-Type")
            expected = digest or _announced(response)
            if len(body) <= INLINE_SIZE:
                actual, manifest = _examine(body, media_type, expected)
            else:
                actual, manifest = await asyncio.to_thread(_examine, body, media_type, expected)
        except WrongBytes as error:
            log.warning("wrong manifest", remote=source.remote.name, error=str(error))
            await self._fetcher.wrong_bytes(source, _expected(digest, response), str(error))
            return Refusal(source.remote.name, "failed", str(error), "unexpected EOF")
        except TimeoutError:
            return await self._failed(source, UpstreamTimeout("no manifest before the deadline", host=response.host))
        except MetadataInvalid as error:
            return await self._failed(source, UpstreamProtocolError(str(error), host=response.host))
        except UpstreamError as error:
            return await self._failed(source, error)
        await self._fetcher.right_bytes(fetched, actual)
        return _Answered(source, body, actual, manifest, response.last_modified)

    async def _failed(self, source: Source, error: UpstreamError) -> Refusal:
        await self._fetcher.failed(source, error)
        return refusal_of(source, error)

    async def _keep(self, route: Route, answered: _Answered, forwarded: str) -> ManifestBody:
        """Record what it permits, store it by its remote's policy, and answer."""
        remote, digest = answered.source.remote, answered.digest
        own = Member(
            digest=digest, kind=Kind.MANIFEST, media_type=answered.manifest.media_type, size=len(answered.body)
        )
        at = now()
        modified_at = await self._store.first_seen(digest, parse_http_date(answered.last_modified, at) or at)
        result = ManifestBody(
            digest=digest,
            media_type=own.media_type,
            body=answered.body,
            modified_at=modified_at,
            outcome="miss" if remote.keeps else "streamed",
            cache_status=forwarded if remote.keeps else "fwd=bypass",
        )
        is_stored = remote.keeps and await self._store.keep(digest, answered.body, modified_at, answered.source)
        try:
            await self._lookup.record_members(route.distribution.id, route.name, [own, *answered.manifest.members])
            if route.path.tag:
                await self._lookup.record_tag(
                    route.distribution.id,
                    route.name,
                    Tag(
                        name=route.path.tag,
                        digest=digest,
                        media_type=own.media_type,
                        checked_at=now(),
                        remote_id=remote.id,
                    ),
                )
        except CatalogUnavailable as error:
            log.warning("manifest not recorded", error=str(error))
        return replace(result, cache_status=f"{result.cache_status}; stored") if is_stored else result


def tag_ttl(distribution: Distribution, tag: str) -> float:
    """Seconds; the first pattern that matches, else the distribution's."""
    for pattern, seconds in distribution.settings.tag_ttl_patterns.items():
        if fnmatchcase(tag, pattern):
            return seconds
    return distribution.settings.tag_ttl_seconds


def _joined(result: ManifestBody) -> ManifestBody:
    if result.outcome != "miss":
        return result
    return replace(result, outcome="collapsed", cache_status="fwd=miss; collapsed")


def _sources(route: Route, path: ContentPath) -> list[Source]:
    return [container.locate(remote, route.name, path) for remote in route.distribution.remotes]


def _deadline(route: Route) -> float:
    return asyncio.get_running_loop().time() + route.distribution.settings.first_byte_deadline_seconds


def _announced(response: UpstreamResponse) -> Digest | None:
    """The Docker-Content-Digest; a broken one counts as none."""
    try:
        return Digest.parse(response.headers.get("Docker-Content-Digest", ""))
    except InvalidDigest:
        return None


def _examine(
    body: bytes, media_type: str | None, expected: Digest | None
) -> tuple[Digest, container_manifest.Manifest]:
    """The verified digest, and what the manifest says."""
    actual = _digest_of(body, expected)
    return actual, container_manifest.read_manifest(body, media_type, digest=actual)


def _digest_of(body: bytes, expected: Digest | None) -> Digest:
    """The body's digest, in the expected one's algorithm; WrongBytes when it is another."""
    algorithm = expected.algorithm if expected is not None else "sha256"
    actual = Digest(algorithm, hashlib.new(algorithm, body).hexdigest())
    if expected is not None and actual != expected:
        raise WrongBytes(f"digest mismatch on {expected}")
    return actual


def _expected(digest: Digest | None, response: UpstreamResponse) -> Digest:
    expected = digest or _announced(response)
    if expected is None:
        raise ValueError("nothing was expected")
    return expected

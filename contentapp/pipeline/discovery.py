"""Tag lists and referrers: asked of the first source that answers, never merged, never kept."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from contentapp.core.errors import (
    ContentAppError,
    ContentNotFound,
    ContentUnavailable,
    MetadataInvalid,
    UpstreamError,
    UpstreamProtocolError,
)
from contentapp.core.records import Source
from contentapp.core.settings import MIB
from contentapp.metrics import metrics
from contentapp.pipeline.fetch import Fetcher, Refusals, refusal_of
from contentapp.pipeline.route import Route
from contentapp.plugins import container, container_manifest, container_tags
from contentapp.upstream.base import UpstreamRequest, UpstreamResponse

WITHOUT_API = frozenset({400, 404, 405, 410, 501})
"""How registries without the referrers API answer."""

LIST_SIZE = 8 * MIB
"""Largest tag list or referrers answer that is read."""


@dataclass(frozen=True, slots=True)
class Listed:
    """A body of ours, its media type, and the Link to its next page ("" for none)."""

    body: bytes
    media_type: str
    link: str = ""
    is_filtered: bool = False


class Discovery:
    """Asks remotes for lists."""

    def __init__(self, fetcher: Fetcher) -> None:
        self._fetcher = fetcher

    async def tags(self, route: Route) -> Listed:
        """One page of tags, under our own name."""

        def read(body: bytes, response: UpstreamResponse) -> Listed:
            tags = container_tags.parse_tag_list(body)
            link = container_tags.next_link(response.headers.get("Link"), route.path)
            return Listed(container_tags.tag_list(route.path.name, tags), "application/json", link)

        return await self._ask(route, _sources(route, route), read)

    async def referrers(self, route: Route) -> Listed:
        """Who refers to a digest. A 404 is a remote without the API: then the tag scheme, whose 404 means nobody."""

        def read(body: bytes, response: UpstreamResponse) -> Listed:
            found = container_manifest.read_referrers(body, response.headers.get("Content-Type"))
            body = container_manifest.referrers_index(found, artifact_type=route.path.artifact_type)
            link = container_tags.next_link(response.headers.get("Link"), route.path)
            return Listed(body, container.OCI_INDEX, link, is_filtered=bool(route.path.artifact_type))

        refusals = Refusals()
        try:
            return await self._ask(route, _sources(route, route), read, refusals)
        except (ContentNotFound, ContentUnavailable):
            if not all(refusal.status in WITHOUT_API for refusal in refusals.items):
                raise
            fallback = replace(route, path=container.referrers_tag_path(route.path))
        try:
            return await self._ask(route, _sources(fallback, fallback), read)
        except ContentNotFound:
            none = container_manifest.referrers_index([])
            return Listed(none, container.OCI_INDEX, is_filtered=bool(route.path.artifact_type))

    async def _ask(
        self,
        route: Route,
        sources: Sequence[Source],
        read: Callable[[bytes, UpstreamResponse], Listed],
        refusals: Refusals | None = None,
    ) -> Listed:
        deadline = asyncio.get_running_loop().time() + route.distribution.settings.first_byte_deadline_seconds
        refusals, left = Refusals() if refusals is None else refusals, list(sources)
        while True:
            async with self._fetcher.open(
                left, lambda source: UpstreamRequest(source=source), deadline=deadline, refusals=refusals
            ) as fetched:
                try:
                    body = await fetched.response.read(LIST_SIZE)
                    metrics.upstream_bytes(fetched.source.remote.name, len(body))
                    listed = await asyncio.to_thread(read, body, fetched.response)
                    await self._fetcher.ended(fetched)
                    return listed
                except (MetadataInvalid, UpstreamError) as error:
                    failure = error
            await self._failed(refusals, fetched.source, failure, fetched.response.host)
            left = left[left.index(fetched.source) + 1 :]

    async def _failed(self, refusals: Refusals, source: Source, error: ContentAppError, host: str) -> None:
        failure = error if isinstance(error, UpstreamError) else UpstreamProtocolError(str(error), host=host)
        await self._fetcher.failed(source, failure)
        refusals.add(refusal_of(source, failure))


def _sources(route: Route, of: Route) -> list[Source]:
    """What goes wrong with a list says nothing of the repository's contents, so it has a path of its own."""
    located = [container.locate(remote, route.name, of.path) for remote in route.distribution.remotes]
    return [replace(source, path=source.url) for source in located]

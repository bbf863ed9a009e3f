"""Tag lists and referrers: asked of the first source that answers, never merged, never kept."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from contentapp.core.errors import (
    ContentAppError,
    ContentNotFound,
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

LIST_SIZE = 16 * MIB
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

        try:
            return await self._ask(route, _sources(route, route), read)
        except ContentNotFound:
            fallback = replace(route, path=container.referrers_tag_path(route.path))
        try:
            return await self._ask(route, _sources(fallback, fallback), read)
        except ContentNotFound:
            return Listed(container_manifest.referrers_index([]), container.OCI_INDEX)

    async def _ask(
        self, route: Route, sources: Sequence[Source], read: Callable[[bytes, UpstreamResponse], Listed]
    ) -> Listed:
        deadline = asyncio.get_running_loop().time() + route.distribution.settings.first_byte_deadline_seconds
        refusals, left = Refusals(), list(sources)
        while True:
            async with self._fetcher.open(
                left, lambda source: UpstreamRequest(source=source), deadline=deadline, refusals=refusals
            ) as fetched:
                try:
                    body = await fetched.response.read(LIST_SIZE)
                    metrics.upstream_bytes(fetched.source.remote.name, len(body))
                    return await asyncio.to_thread(read, body, fetched.response)
                except (MetadataInvalid, UpstreamError) as error:
                    failure = error
            await self._failed(refusals, fetched.source, failure, fetched.response.host)
            left = left[left.index(fetched.source) + 1 :]

    async def _failed(self, refusals: Refusals, source: Source, error: ContentAppError, host: str) -> None:
        failure = error if isinstance(error, UpstreamError) else UpstreamProtocolError(str(error), host=host)
        await self._fetcher.failed(source, failure)
        refusals.add(refusal_of(source, failure))


def _sources(route: Route, of: Route) -> list[Source]:
    return [container.locate(remote, route.name, of.path) for remote in route.distribution.remotes]

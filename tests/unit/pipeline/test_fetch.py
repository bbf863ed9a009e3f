"""The book that fetchers keep of remotes, over the coordinations of several processes (P3)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest
import pytest_asyncio

from contentapp.coordination.local import LocalCoordination
from contentapp.core.cooldown import ScopeKind
from contentapp.core.digest import Digest
from contentapp.core.records import ContentType, Remote, Source
from contentapp.pipeline.fetch import Fetcher, scope_of
from contentapp.upstream.base import UpstreamRequest, UpstreamResponse

REMOTE = Remote(id=1, name="quay", type=ContentType.CONTAINER, url="https://quay.io")
SOURCE = Source(remote=REMOTE, url="https://quay.io/x", path="x")
ARTIFACTS = [Digest.of(str(number).encode()) for number in range(3)]


class Unasked:
    """An upstream for those who only keep the book."""

    def open(self, request: UpstreamRequest) -> AbstractAsyncContextManager[UpstreamResponse]:
        raise AssertionError(f"{request.source.url} was asked")

    async def close(self) -> None:
        """Nothing to close."""


@pytest_asyncio.fixture
async def coordinations(tmp_path: Path) -> AsyncIterator[list[LocalCoordination]]:
    """Three, as three processes have them."""
    started = [LocalCoordination(tmp_path) for _ in range(3)]
    for coordination in started:
        await coordination.start()
    yield started
    for coordination in started:
        await coordination.close()


@pytest.mark.parametrize(
    ("reports", "is_left_alone"),
    [((0, 0, 0), False), ((0, 1, 0, 1, 0), False), ((0, 1, 2), True), ((0, 0, 1, 1, 2), True)],
)
async def test_three_artifacts_cool_a_remote_but_not_one_three_times(
    coordinations: list[LocalCoordination], reports: Sequence[int], is_left_alone: bool
) -> None:
    """reports: the artifacts that were found wrong; whoever fetched one meanwhile finds it wrong, too."""
    fetchers = [Fetcher(Unasked(), coordination) for coordination in coordinations]
    for number, artifact in enumerate(reports):
        await fetchers[number % 3].wrong_bytes(SOURCE, ARTIFACTS[artifact], "digest mismatch")
    for coordination in coordinations:
        admission = await coordination.admit([scope_of(ScopeKind.REMOTE, REMOTE)])
        assert admission.is_admitted != is_left_alone, admission.reason
        for artifact in reports:
            pair = scope_of(ScopeKind.ARTIFACT, REMOTE, str(ARTIFACTS[artifact]))
            assert not (await coordination.admit([pair])).is_admitted

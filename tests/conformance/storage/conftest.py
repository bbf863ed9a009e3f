from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from contentapp.storage.base import Storage
from tests.conformance.storage.kit import FilesystemKit, Kit, MemoryKit, eventually

MakeStorage = Callable[..., Storage]


@pytest.fixture(params=["filesystem", "memory"])
def kit(request: pytest.FixtureRequest, tmp_path: Path) -> Kit:
    return FilesystemKit(tmp_path) if request.param == "filesystem" else MemoryKit()


@pytest.fixture
async def make(kit: Kit) -> AsyncIterator[MakeStorage]:
    """Makes storages, which are closed at the end; then nothing may be left."""
    made: list[Storage] = []

    def make_one(**options: object) -> Storage:
        made.append(kit.make(**options))  # type: ignore[arg-type]
        return made[-1]

    yield make_one
    for storage in made:
        await storage.close()
    assert kit.leftovers() == []


@pytest.fixture
async def storage(make: MakeStorage) -> AsyncIterator[Storage]:
    """One storage, in which no reservation may be left."""
    storage = make()
    yield storage

    async def is_unreserved() -> bool:  # what a follower held, the background gives back
        return (await storage.use()).reserved == 0

    await eventually(is_unreserved)

"""One suite for every database. Another one joins as a fixture like `sqlite_place`, named in the params of `place`."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from contentapp.catalog.admin import SqlAdminCatalog
from contentapp.catalog.base import AdminCatalog, ContentCatalog, UpkeepCatalog
from contentapp.catalog.content import SqlContentCatalog
from contentapp.catalog.engine import CatalogEngine, open_catalog
from contentapp.catalog.upkeep import SqlUpkeepCatalog
from contentapp.core.settings import DistributionSettings, RemoteSettings
from tests.conformance.catalog import samples


class Catalog:
    """All faces on one engine, as one process has them."""

    def __init__(self, engine: CatalogEngine) -> None:
        self.engine = engine
        self.content: ContentCatalog = SqlContentCatalog(
            engine, RemoteSettings(sock_read_timeout=77.0), DistributionSettings(tag_ttl_seconds=88.0)
        )
        self.upkeep: UpkeepCatalog = SqlUpkeepCatalog(engine)
        self.admin: AdminCatalog = SqlAdminCatalog(engine, now=lambda: samples.START)


@dataclass
class Place:
    """A database, which any number of processes may have open."""

    url: str
    opened: list[CatalogEngine] = field(default_factory=list)

    async def open(self, **options: Any) -> Catalog:
        engine = await open_catalog(self.url, **options)
        self.opened.append(engine)
        return Catalog(engine)

    async def close(self) -> None:
        for engine in self.opened:
            await engine.close()


@pytest.fixture
def sqlite_place(tmp_path: Path) -> Iterator[Place]:
    place = Place(f"sqlite:///{tmp_path}/catalog.sqlite")
    yield place
    leftovers = {path.name for path in tmp_path.iterdir()} - {"catalog.sqlite", "catalog.sqlite.lock"}
    assert leftovers == set(), "the last one to close folds the WAL back in"


@pytest.fixture(params=["sqlite_place"])
async def place(request: pytest.FixtureRequest) -> AsyncIterator[Place]:
    place: Place = request.getfixturevalue(request.param)
    yield place
    await place.close()
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("catalog")] == []


@pytest.fixture
async def catalog(place: Place) -> Catalog:
    return await place.open()

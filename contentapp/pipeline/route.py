"""Route: which distribution a request's path belongs to, and what it asks of it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import structlog
from cachetools import LRUCache

from contentapp.catalog.base import ContentCatalog
from contentapp.coordination.base import RESYNC, Coordination
from contentapp.core.basepath import BasePaths
from contentapp.core.errors import CatalogUnavailable, DistributionNotFound, InvalidPath
from contentapp.core.records import ContentType, Distribution
from contentapp.pipeline.request import DeviceRequest
from contentapp.plugins import container, file
from contentapp.plugins.base import ContentPath, Wanted

log = structlog.get_logger("contentapp.route")

REGISTRY_ROOT = "/v2"
CONTENT_ROOT = "/pulp/content/"
DISTRIBUTIONS_TOPIC = "distributions"
"""Published when distributions or remotes have changed."""


REMEMBERED_ROUTES = 4096
REMEMBERED_LENGTH = 512
"""Longer paths are parsed each time, so that odd ones can't fill the memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """`name` is what is left behind the base_path: the upstream's repository name, or the relative path."""

    distribution: Distribution
    path: ContentPath
    name: str


@dataclass(frozen=True, slots=True)
class Table:
    """All distributions, ready to be found."""

    registries: BasePaths[Distribution]
    files: BasePaths[Distribution]
    hosts: dict[str, Distribution]
    default: Distribution | None
    all: tuple[Distribution, ...]

    @classmethod
    def of(cls, distributions: Sequence[Distribution]) -> Table:
        """Build it once; it is immutable."""
        registries = [item for item in distributions if item.type is ContentType.CONTAINER]
        files = [item for item in distributions if item.type is ContentType.FILE]
        return cls(
            BasePaths({item.base_path: item for item in registries}),
            BasePaths({item.base_path: item for item in files}),
            {host.lower(): item for item in registries for host in item.registry_hosts},
            next((item for item in registries if item.default_registry), None),
            tuple(distributions),
        )


class Router:
    """Finds routes in a table that is replaced whole when distributions change."""

    def __init__(self, catalog: ContentCatalog, coordination: Coordination) -> None:
        self._catalog = catalog
        self._table = Table.of(())
        self._routes: LRUCache[tuple[str, str], Route] = LRUCache(REMEMBERED_ROUTES)
        self._changed = asyncio.Event()
        coordination.subscribe(DISTRIBUTIONS_TOPIC, lambda _: self._changed.set())
        coordination.subscribe(RESYNC, lambda _: self._changed.set())

    async def load(self) -> None:
        """Read the table now."""
        self._table = Table.of(await self._catalog.distributions())
        self._routes.clear()

    async def follow_changes(self, reload_seconds: float) -> None:
        """Reload on every change, and every `reload_seconds` in case a message was lost; runs until cancelled."""
        while True:
            try:
                async with asyncio.timeout(reload_seconds):
                    await self._changed.wait()
            except TimeoutError:
                pass
            self._changed.clear()
            try:
                await self.load()
            except CatalogUnavailable as error:
                log.warning("distributions not reloaded", error=str(error))

    @property
    def distributions(self) -> tuple[Distribution, ...]:
        """All of them."""
        return self._table.all

    def route(self, request: DeviceRequest) -> Route:
        """InvalidPath and its like for a broken path, DistributionNotFound for one that nobody serves."""
        key = (request.raw_path, request.query)
        route = self._routes.get(key)
        if route is None:
            route = self._find(request)
            if len(request.raw_path) + len(request.query) <= REMEMBERED_LENGTH:
                self._routes[key] = route
        return route

    def _find(self, request: DeviceRequest) -> Route:
        if is_registry_path(request.raw_path):
            return self._registry(container.parse(request.raw_path, request.query))
        if not request.raw_path.startswith(CONTENT_ROOT):
            raise InvalidPath(request.raw_path[:200])
        return self._file(file.parse(request.raw_path[len(CONTENT_ROOT) :]))

    def _registry(self, path: ContentPath) -> Route:
        table = self._table
        if path.namespace:
            return self._mirrored(path)
        if found := table.registries.find(path.name):
            distribution, name = found
            if name:
                return Route(distribution=distribution, path=path, name=name)
        if table.default is not None:
            return Route(distribution=table.default, path=path, name=path.name)
        raise DistributionNotFound(path.name)

    def _mirrored(self, path: ContentPath) -> Route:
        """containerd names the registry it means: nothing else may answer for it, whatever the name looks like.

        The name may have the base_path before it, where the mirror's own path has it (`override_path`).
        """
        distribution = self._table.hosts.get(path.namespace)
        if distribution is not None:
            name = path.name
            if distribution.base_path == path.namespace:
                name = name.removeprefix(f"{path.namespace}/")
            return Route(distribution=distribution, path=path, name=name)
        found = self._table.registries.find(path.name)
        if found is None or found[0].base_path != path.namespace or not found[1]:
            raise DistributionNotFound(path.namespace)
        return Route(distribution=found[0], path=path, name=found[1])

    def _file(self, path: ContentPath) -> Route:
        found = self._table.files.find(path.name)
        if found is None:
            raise DistributionNotFound(path.name)
        distribution, name = found
        if not name and path.wanted is Wanted.FILE:
            raise DistributionNotFound(path.name)
        return Route(distribution=distribution, path=path, name=name)


def is_registry_path(raw_path: str) -> bool:
    """Whether a path belongs to the registry, and its errors are the registry's."""
    return raw_path == REGISTRY_ROOT or raw_path.startswith(REGISTRY_ROOT + "/")

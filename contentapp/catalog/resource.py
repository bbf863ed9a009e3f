"""Remotes and distributions as records: what their rows override, merged with the defaults."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from sqlalchemy import Connection, Row, select

from contentapp.catalog.engine import CatalogEngine, Queries
from contentapp.catalog.tables import distribution_remotes, distributions, remotes
from contentapp.core.records import ContentType, Distribution, Policy, Remote
from contentapp.core.secret import Secret
from contentapp.core.settings import DistributionSettings, RemoteSettings, Scoped

Scope = TypeVar("Scope", bound=Scoped)

SELECT_REMOTES = select(remotes).order_by(remotes.c.id)
SELECT_DISTRIBUTIONS = select(distributions).order_by(distributions.c.id)
SELECT_SOURCES = select(distribution_remotes).order_by(
    distribution_remotes.c.distribution_id, distribution_remotes.c.position
)


class ResourceQueries(Queries):
    """What is configured. The defaults are those of the whole program, for what a resource leaves open."""

    def __init__(
        self, engine: CatalogEngine, remote_defaults: RemoteSettings, distribution_defaults: DistributionSettings
    ) -> None:
        super().__init__(engine)
        self._remote_defaults = remote_defaults
        self._distribution_defaults = distribution_defaults

    async def remotes(self) -> Sequence[Remote]:
        return await self._engine.read(self._load_remotes)

    async def distributions(self) -> Sequence[Distribution]:
        return await self._engine.read(self._load_distributions)

    def _load_remotes(self, connection: Connection) -> list[Remote]:
        return [self._remote(row) for row in connection.execute(SELECT_REMOTES)]

    def _load_distributions(self, connection: Connection) -> list[Distribution]:
        remote = {remote.id: remote for remote in self._load_remotes(connection)}
        sources = defaultdict(list)
        for row in connection.execute(SELECT_SOURCES):
            sources[row.distribution_id].append(remote[row.remote_id])
        return [self._distribution(row, sources[row.id]) for row in connection.execute(SELECT_DISTRIBUTIONS)]

    def _remote(self, row: Row[Any]) -> Remote:
        return Remote(
            id=row.id,
            name=row.name,
            type=ContentType(row.type),
            url=row.url,
            policy=Policy(row.policy),
            revision=row.revision,
            username=row.username,
            password=secret(row.password),
            credential_helper=row.credential_helper,
            auth_hosts=tuple(row.auth_hosts),
            headers=tuple((name, value) for name, value in row.headers),
            ca_cert=row.ca_cert,
            client_cert=row.client_cert,
            client_key=secret(row.client_key),
            proxy_url=row.proxy_url,
            proxy_username=row.proxy_username,
            proxy_password=secret(row.proxy_password),
            settings=merged(self._remote_defaults, row.settings),
        )

    def _distribution(self, row: Row[Any], sources: Sequence[Remote]) -> Distribution:
        return Distribution(
            id=row.id,
            name=row.name,
            base_path=row.base_path,
            type=ContentType(row.type),
            remotes=tuple(sources),
            registry_hosts=tuple(row.registry_hosts),
            default_registry=row.default_registry,
            revision=row.revision,
            settings=merged(self._distribution_defaults, row.settings),
        )


def secret(stored: Mapping[str, str] | None) -> Secret | None:
    """Where the row says that the secret is."""
    return None if stored is None else Secret(**stored)


def merged(defaults: Scope, overrides: Mapping[str, Any]) -> Scope:
    """The settings of one resource, without those that only another version of the program knows."""
    return defaults.overridden({name: value for name, value in overrides.items() if name in defaults.names()})

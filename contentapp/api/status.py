"""``/pulp/api/v3/status/``: Pulp's status, without a login as there; and, beside it, what this program adds."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from contentapp import __version__
from contentapp.api.resource import API_ROOT
from contentapp.catalog.base import UpkeepCatalog
from contentapp.config import Config
from contentapp.coordination.base import Coordination
from contentapp.core.errors import ContentAppError
from contentapp.storage.base import Storage

CONTENT_PATH_PREFIX = "/pulp/content/"


class Status:
    """Says whether things work, in counts; names, addresses and paths want a login."""

    def __init__(self, config: Config, storage: Storage, coordination: Coordination, upkeep: UpkeepCatalog) -> None:
        self._config = config
        self._storage = storage
        self._coordination = coordination
        self._upkeep = upkeep

    def routes(self) -> list[web.RouteDef]:
        """Where it is found."""
        return [web.get(f"{API_ROOT}status/", self.show)]

    async def show(self, _request: web.Request) -> web.Response:
        """All of it; a part that can't be known is null."""
        return web.json_response(
            {
                "versions": [
                    {
                        "component": "contentapp",
                        "version": __version__,
                        "package": "contentapp",
                        "module": "contentapp",
                        "domain_compatible": False,
                    }
                ],
                "online_workers": [],
                "online_api_apps": [],
                "online_content_apps": [],
                "redis_connection": None,
                "content_settings": {"content_origin": None, "content_path_prefix": CONTENT_PATH_PREFIX},
                "domain_enabled": False,
                **await self._database(),
                "storage": await self._storage_use(),
                "cooldowns": len(await self._coordination.cooldowns()),
                "transfers": len(await self._coordination.transfers()),
                "coordination": {"type": "local", "scope": "host"},
                "content_workers": self._config.content.workers,
            }
        )

    async def _database(self) -> dict[str, Any]:
        try:
            count = await self._upkeep.artifact_count()
        except ContentAppError:
            return {"database_connection": {"connected": False}, "artifacts": None}
        return {"database_connection": {"connected": True}, "artifacts": count}

    async def _storage_use(self) -> dict[str, int] | None:
        """As Pulp's, of the quota: its total, what is used, and what is free of it and on the disk."""
        try:
            use = await self._storage.use()
        except ContentAppError:
            return None
        free = max(0, min(use.limit - use.used, use.free))
        return {"total": use.limit, "used": use.used, "free": free, "reserved": use.reserved, "disk_free": use.free}

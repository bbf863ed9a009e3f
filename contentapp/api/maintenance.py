"""``/pulp/api/v3/repair/`` and ``/pulp/api/v3/orphans/cleanup/``: both become tasks."""

from __future__ import annotations

from aiohttp import web

from contentapp.api.resource import API_ROOT, body_of
from contentapp.api.task import accepted
from contentapp.tasks.base import AdminTasks


class Maintenance:
    """Reading all artifacts again, and tidying up."""

    def __init__(self, tasks: AdminTasks) -> None:
        self._tasks = tasks

    def routes(self) -> list[web.RouteDef]:
        """Where it is found."""
        return [
            web.post(f"{API_ROOT}repair/", self.repair),
            web.post(f"{API_ROOT}orphans/cleanup/", self.clean_up),
        ]

    async def repair(self, request: web.Request) -> web.Response:
        """Read every stored artifact; what is damaged goes, and is fetched again by the next request.

        Pulp's ``verify_checksums`` may stand in the body; it is always done.
        """
        await body_of(request, {"verify_checksums": bool})
        return accepted(self._tasks.repair())

    async def clean_up(self, request: web.Request) -> web.Response:
        """Adopt, remove what dead processes left, sweep the catalog, evict; ``force``: down to the low watermark."""
        body = await body_of(request, {"force": bool})
        return accepted(self._tasks.clean_up(is_forced=body.get("force", False)))

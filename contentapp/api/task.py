"""``/pulp/api/v3/tasks/``: slow work that was asked for, with Pulp's field names."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from contentapp.api.resource import API_ROOT, href, not_found, page, timestamp
from contentapp.tasks.base import AdminTasks, Task

NOUN = "tasks"
FILTERS = ("name", "state")


class Tasks:
    """Those that are remembered."""

    def __init__(self, tasks: AdminTasks) -> None:
        self._tasks = tasks

    def routes(self) -> list[web.RouteDef]:
        """Where they are found."""
        return [web.get(f"{API_ROOT}{NOUN}/", self.index), web.get(f"{API_ROOT}{NOUN}/{{id}}/", self.read)]

    async def index(self, request: web.Request) -> web.Response:
        """All, or those of a ``name`` or in a ``state``; the newest first."""
        name, state = request.query.get("name"), request.query.get("state")
        found = [task for task in self._tasks.all() if name in {None, task.name} and state in {None, str(task.state)}]
        return page(request, found, show, FILTERS)

    async def read(self, request: web.Request) -> web.Response:
        """One."""
        task = self._tasks.find(request.match_info["id"])
        return not_found() if task is None else web.json_response(show(task))


def accepted(task: Task) -> web.Response:
    """The answer to a request that has become a task."""
    return web.json_response({"task": href(NOUN, task.id)}, status=202)


def show(task: Task) -> dict[str, Any]:
    """As JSON."""
    report = {
        "message": task.message,
        "code": task.code,
        "state": str(task.state),
        "total": task.total or None,
        "done": task.done,
        "suffix": None,
    }
    return {
        "pulp_href": href(NOUN, task.id),
        "prn": f"prn:core.task:{task.id}",
        "pulp_created": timestamp(task.created_at),
        "name": task.name,
        "state": str(task.state),
        "started_at": timestamp(task.started_at),
        "finished_at": timestamp(task.finished_at),
        "error": {"description": task.error} if task.error else None,
        "progress_reports": [] if task.started_at is None else [report],
        "created_resources": [],
        "result": task.result or None,
    }

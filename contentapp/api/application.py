"""The admin listener's application: all REST resources, behind the login."""

from __future__ import annotations

from aiohttp import web

from contentapp.api.apply import Apply
from contentapp.api.cooldown import Cooldowns
from contentapp.api.health import Health, Readiness
from contentapp.api.login import Login
from contentapp.api.maintenance import Maintenance
from contentapp.api.middleware import access_log, add_headers, require_login, show_errors
from contentapp.api.status import Status
from contentapp.api.task import Tasks
from contentapp.api.transfer import Transfers
from contentapp.catalog.base import AdminCatalog, ContentCatalog, UpkeepCatalog
from contentapp.config import Config
from contentapp.coordination.base import Coordination
from contentapp.storage.base import Storage
from contentapp.tasks.base import AdminTasks


def application(
    *,
    config: Config,
    login: Login,
    storage: Storage,
    coordination: Coordination,
    catalog: AdminCatalog,
    content: ContentCatalog,
    upkeep: UpkeepCatalog,
    tasks: AdminTasks,
    readiness: Readiness,
) -> web.Application:
    """All of it, ready to be run."""
    app = web.Application(middlewares=[access_log(), show_errors, require_login(login)])
    app.on_response_prepare.append(add_headers)
    for resource in (
        Health(storage, coordination, readiness),
        Status(config, storage, coordination, upkeep),
        Cooldowns(coordination),
        Transfers(coordination, storage, content),
        Tasks(tasks),
        Maintenance(tasks),
        Apply(catalog, coordination),
    ):
        app.add_routes(resource.routes())
    return app

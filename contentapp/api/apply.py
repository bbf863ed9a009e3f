"""``/pulp/api/v3/apply/``: remotes and distributions, declared as in the YAML file, become what the catalog holds."""

from __future__ import annotations

import asyncio
import os
from dataclasses import asdict
from typing import Any

import structlog
from aiohttp import web

from contentapp.api.declared import read_resources
from contentapp.api.resource import API_ROOT, InvalidFields, body_of
from contentapp.catalog.base import AdminCatalog, Change, Resources
from contentapp.config import ConfigError
from contentapp.coordination.base import Coordination
from contentapp.pipeline.lookup import RECORDS_TOPIC
from contentapp.pipeline.route import DISTRIBUTIONS_TOPIC

log = structlog.get_logger("contentapp.admin")

MAX_RESOURCES_SIZE = 8 << 20
FIELDS = {"resources": dict, "prune": bool, "dry_run": bool}


class Apply:
    """Reconciles, idempotently; tells the content workers at once."""

    def __init__(self, catalog: AdminCatalog, coordination: Coordination) -> None:
        self._catalog = catalog
        self._coordination = coordination

    def routes(self) -> list[web.RouteDef]:
        """Where it is found."""
        return [web.post(f"{API_ROOT}apply/", self.apply)]

    async def apply(self, request: web.Request) -> web.Response:
        """``{resources: {remotes, distributions}, prune, dry_run}`` → ``{changes: […], warnings: […]}``."""
        body = await body_of(request, FIELDS, max_size=MAX_RESOURCES_SIZE)
        try:
            declared = await asyncio.to_thread(read_resources, body.get("resources", {}), os.environ)
        except ConfigError as error:
            raise InvalidFields(_messages(error)) from None
        dry_run = body.get("dry_run", False)
        changes = await self._catalog.apply(
            Resources(remotes=declared.remotes, distributions=declared.distributions),
            prune=body.get("prune", False),
            dry_run=dry_run,
        )
        if not dry_run:
            self._tell(changes)
        warnings = [f"{warning.key}: {warning.message}" for warning in declared.warnings]
        return web.json_response({"changes": [asdict(change) for change in changes], "warnings": warnings})

    def _tell(self, changes: Any) -> None:
        changed: list[Change] = [change for change in changes if change.action != "unchanged"]
        for change in changed:
            log.info("resource", action=change.action, kind=change.kind, name=change.name, fields=change.fields)
        if changed:
            # What is remembered of a remote's listing is of no use once its URL is another.
            self._coordination.publish(RECORDS_TOPIC)
            self._coordination.publish(DISTRIBUTIONS_TOPIC)


def _messages(error: ConfigError) -> dict[str, list[str]]:
    messages: dict[str, list[str]] = {}
    for problem in error.problems:
        text = f"{problem.value}: {problem.message}" if problem.value else problem.message
        messages.setdefault(problem.key or "resources", []).append(text)
    return messages

"""What happens once, before any process serves: the catalog is migrated and takes over the declared resources."""

from __future__ import annotations

import structlog

from contentapp.catalog.base import Resources
from contentapp.config import Config
from contentapp.services import open_shared

log = structlog.get_logger("contentapp.prepare")


async def prepare(config: Config) -> None:
    """Migrate, apply the configuration's resources (nothing is removed), count what is stored."""
    resources = Resources(remotes=config.remotes, distributions=config.distributions)
    async with open_shared(config) as shared:
        for change in await shared.admin.apply(resources):
            if change.action != "unchanged":
                log.info("resource", action=change.action, kind=change.kind, name=change.name, fields=change.fields)
        await shared.storage.set_stored(await shared.upkeep.stored_size())
        await shared.storage.remove_stale_partials(config.engine.partial_max_age_seconds)

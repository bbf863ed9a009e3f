"""The face of the catalog that an operator edits."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

from sqlalchemy import Connection, Row, Table, delete, insert, select, update

from contentapp.catalog.base import Change, Resources
from contentapp.catalog.declared import (
    DISTRIBUTION,
    DISTRIBUTION_FIELDS,
    REMOTE,
    REMOTE_FIELDS,
    Declared,
    declared_distributions,
    declared_remotes,
)
from contentapp.catalog.engine import CatalogEngine
from contentapp.catalog.reconcile import Plan, check_outcome, outcome, plan
from contentapp.catalog.sweep import sweep
from contentapp.catalog.tables import distribution_remotes, distributions, listing_states, listings, remotes


def utc_now() -> datetime:
    return datetime.now(UTC)


class SqlAdminCatalog:
    """An AdminCatalog on an engine from `open_catalog`; `now` gives the times of creation and change."""

    def __init__(self, engine: CatalogEngine, *, now: Callable[[], datetime] = utc_now) -> None:
        self._engine = engine
        self._now = now

    async def apply(self, resources: Resources, *, prune: bool = False, dry_run: bool = False) -> Sequence[Change]:
        """One Change for each declared resource, and each removed one.

        What was learnt of removed resources is swept afterwards, in transactions of its own.
        """
        wanted = Wanted(declared_remotes(resources), declared_distributions(resources), prune)
        if dry_run:
            plans = await self._engine.read(lambda connection: plan_all(connection, wanted))
        else:
            plans = await self._engine.write(lambda connection: carry_out(connection, wanted, self._now()))
        changes = [change for part in plans for change in part.changes]
        if not dry_run and any(part.update or part.remove for part in plans):
            await sweep(self._engine)
        return changes


@dataclass(frozen=True, slots=True)
class Wanted:
    """What was declared, and whether all else goes."""

    remotes: Sequence[Declared]
    distributions: Sequence[Declared]
    prune: bool


def plan_all(connection: Connection, wanted: Wanted) -> tuple[Plan, Plan]:
    """What is to do with remotes, and with distributions; MetadataInvalid if the outcome would not hold together."""
    there, served = present_remotes(connection), present_distributions(connection)
    for_remotes = plan(REMOTE, wanted.remotes, there, prune=wanted.prune)
    check_outcome(
        outcome(wanted.remotes, there, prune=wanted.prune),
        outcome(wanted.distributions, served, prune=wanted.prune),
        set(for_remotes.remove),
    )
    return for_remotes, plan(DISTRIBUTION, wanted.distributions, served, prune=wanted.prune)


def carry_out(connection: Connection, wanted: Wanted, now: datetime) -> tuple[Plan, Plan]:
    """Plan it and do it. Distributions let go of remotes before these are removed."""
    for_remotes, for_distributions = plan_all(connection, wanted)
    create(connection, remotes, REMOTE_FIELDS, for_remotes.create, now)
    forget_listings(connection, for_remotes)
    change(connection, remotes, REMOTE_FIELDS, for_remotes.update, now)
    remove(connection, distributions, for_distributions.remove)
    park_base_paths(connection, for_distributions.update)
    change(connection, distributions, DISTRIBUTION_FIELDS, for_distributions.update, now)
    create(connection, distributions, DISTRIBUTION_FIELDS, for_distributions.create, now)
    connect_remotes(connection, [*for_distributions.update, *for_distributions.create])
    remove(connection, remotes, for_remotes.remove)
    return for_remotes, for_distributions


def present_remotes(connection: Connection) -> dict[str, Declared]:
    """The remotes that are there, in the shape of declared ones, by name."""
    rows = connection.execute(select(remotes).order_by(remotes.c.id))
    return {row.name: as_declared(REMOTE, row, REMOTE_FIELDS) for row in rows}


def present_distributions(connection: Connection) -> dict[str, Declared]:
    """The distributions that are there, in the shape of declared ones, by name."""
    sources = defaultdict(list)
    links = select(distribution_remotes.c.distribution_id, remotes.c.name).join(
        remotes, remotes.c.id == distribution_remotes.c.remote_id
    )
    for link in connection.execute(links.order_by(distribution_remotes.c.position)):
        sources[link.distribution_id].append(link.name)
    rows = connection.execute(select(distributions).order_by(distributions.c.id))
    return {row.name: as_declared(DISTRIBUTION, row, DISTRIBUTION_FIELDS, remotes=sources[row.id]) for row in rows}


def as_declared(kind: str, row: Row[Any], names: Mapping[str, Any], **other: Any) -> Declared:
    values = row._mapping
    fields = {name: values[name] for name in names if name in values}
    return Declared(kind, row.name, fields | other | values["settings"])


def columns_of(table: Table, names: Mapping[str, Any], resource: Declared) -> dict[str, Any]:
    """A resource as values of its row: fields by name, all overridden settings in one."""
    settings = {name: value for name, value in resource.fields.items() if name not in names}
    columns = {name: value for name, value in resource.fields.items() if name in names and name in table.c}
    return columns | {"settings": settings}


def create(
    connection: Connection, table: Table, names: Mapping[str, Any], resources: Sequence[Declared], now: datetime
) -> None:
    for resource in resources:
        identity = {"name": resource.name, "pulp_id": str(uuid4()), "revision": 1}
        values = columns_of(table, names, resource) | identity | {"created_at": now, "updated_at": now}
        connection.execute(insert(table), values)


def change(
    connection: Connection, table: Table, names: Mapping[str, Any], resources: Sequence[Declared], now: datetime
) -> None:
    for resource in resources:
        values = columns_of(table, names, resource) | {"updated_at": now}
        statement = update(table).where(table.c.name == resource.name).values(revision=table.c.revision + 1, **values)
        connection.execute(statement)


def remove(connection: Connection, table: Table, names: Sequence[str]) -> None:
    for name in names:
        connection.execute(delete(table).where(table.c.name == name))


def park_base_paths(connection: Connection, resources: Sequence[Declared]) -> None:
    """Free the base_paths of all that change, since two may exchange theirs. No base_path has a slash in front."""
    names = [resource.name for resource in resources]
    parked = update(distributions).values(base_path="/" + distributions.c.pulp_id)
    for name in names:
        connection.execute(parked.where(distributions.c.name == name))


def connect_remotes(connection: Connection, resources: Sequence[Declared]) -> None:
    """Give each distribution its remotes, in order."""
    remote_ids = ids_by_name(connection, remotes)
    distribution_ids = ids_by_name(connection, distributions)
    for resource in resources:
        this = distribution_ids[resource.name]
        connection.execute(delete(distribution_remotes).where(distribution_remotes.c.distribution_id == this))
        links = [
            {"distribution_id": this, "position": position, "remote_id": remote_ids[name]}
            for position, name in enumerate(resource.fields["remotes"])
        ]
        if links:
            connection.execute(insert(distribution_remotes), links)


def ids_by_name(connection: Connection, table: Table) -> dict[str, int]:
    return {row.name: row.id for row in connection.execute(select(table.c.name, table.c.id))}


def forget_listings(connection: Connection, plan: Plan) -> None:
    """A remote with another URL has another PULP_MANIFEST: the old one's digests must not be asked of it."""
    urls = {row.name: row for row in connection.execute(select(remotes.c.name, remotes.c.id, remotes.c.url))}
    for resource in plan.update:
        row = urls[resource.name]
        if row.url != resource.fields["url"]:
            connection.execute(delete(listings).where(listings.c.remote_id == row.id))
            connection.execute(delete(listing_states).where(listing_states.c.remote_id == row.id))

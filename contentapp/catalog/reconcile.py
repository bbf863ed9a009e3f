"""What apply would do, worked out from what is declared and what is there; no I/O."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from contentapp.catalog.base import Change
from contentapp.catalog.declared import Declared, invalid

ABSENT = object()


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do with the resources of one kind. `changes` tells it, in the order declared, removals last."""

    create: Sequence[Declared]
    update: Sequence[Declared]
    remove: Sequence[str]
    changes: Sequence[Change]


def plan(kind: str, declared: Sequence[Declared], present: Mapping[str, Declared], *, prune: bool) -> Plan:
    """How to get from `present`, by name, to `declared`."""
    wanted = {resource.name: resource for resource in declared}
    differing = {name: differences(present[name], wanted[name]) for name in wanted if name in present}
    removed = sorted(present.keys() - wanted.keys()) if prune else []
    return Plan(
        create=[resource for resource in declared if resource.name not in present],
        update=[resource for resource in declared if differing.get(resource.name)],
        remove=removed,
        changes=[change(resource, differing.get(resource.name)) for resource in declared]
        + [Change("removed", kind, name) for name in removed],
    )


def change(resource: Declared, differing: tuple[str, ...] | None) -> Change:
    """What happens to a declared resource; `differing` is None if it was not there."""
    if differing is None:
        return Change("created", resource.kind, resource.name)
    return Change("updated" if differing else "unchanged", resource.kind, resource.name, differing)


def differences(present: Declared, wanted: Declared) -> tuple[str, ...]:
    """The names of the fields that are not the same in both."""
    names = sorted(present.fields.keys() | wanted.fields.keys())
    return tuple(n for n in names if not same(present.fields.get(n, ABSENT), wanted.fields.get(n, ABSENT)))


def same(one: Any, other: Any) -> bool:
    """Equal, and in mappings in the same order, which has a meaning in patterns."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return list(one.items()) == list(other.items())
    return bool(one == other)


def outcome(declared: Sequence[Declared], present: Mapping[str, Declared], *, prune: bool) -> dict[str, Declared]:
    """The resources of one kind that there will be, by name."""
    return ({} if prune else dict(present)) | {resource.name: resource for resource in declared}


def check_outcome(remotes: Mapping[str, Declared], distributions: Mapping[str, Declared], removed: set[str]) -> None:
    """MetadataInvalid when these can't stand together; `removed` remotes get a message of their own."""
    for distribution in distributions.values():
        check_remotes(distribution, remotes, removed)
    check_unique(distributions.values(), "base_path", lambda fields: [fields["base_path"]])
    check_unique(distributions.values(), "registry_hosts", lambda fields: [h.lower() for h in fields["registry_hosts"]])
    check_unique(
        distributions.values(), "default_registry", lambda fields: [True] if fields["default_registry"] else []
    )


def check_remotes(distribution: Declared, remotes: Mapping[str, Declared], removed: set[str]) -> None:
    """Each exists once, and is of the distribution's type."""
    seen = set()
    for name in distribution.fields["remotes"]:
        if name not in remotes:
            reason = "would be removed, but is still used here" if name in removed else "no such remote"
            raise invalid(distribution.kind, distribution.name, "remotes", name, reason)
        if name in seen:
            raise invalid(distribution.kind, distribution.name, "remotes", name, "is named twice")
        of_remote, own = remotes[name].fields["type"], distribution.fields["type"]
        if of_remote != own:
            reason = f"is of type {of_remote}, the distribution of type {own}"
            raise invalid(distribution.kind, distribution.name, "remotes", name, reason)
        seen.add(name)


def check_unique(
    resources: Iterable[Declared], field: str, values: Callable[[Mapping[str, Any]], Iterable[Any]]
) -> None:
    """No two resources, nor one twice, claim the same value of a field."""
    owners: dict[Any, str] = {}
    for resource in resources:
        for value in values(resource.fields):
            if value in owners:
                reason = f"is taken by {resource.kind} {owners[value]!r}"
                raise invalid(resource.kind, resource.name, field, value, reason)
            owners[value] = resource.name

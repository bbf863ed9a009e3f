"""Declared resources in one shape: the YAML's own names, each with the value that the catalog keeps for it.

Ranges of settings are the configuration's affair; here only what the catalog's rows need is checked. Errors name kind,
resource, field and value, but never a value that may be secret.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, TypeAlias

from contentapp.catalog.base import Resources
from contentapp.core.basepath import valid_base_path
from contentapp.core.errors import MetadataInvalid
from contentapp.core.records import ContentType, Policy
from contentapp.core.secret import Secret
from contentapp.core.settings import DistributionSettings, RemoteSettings

REMOTE = "remote"
DISTRIBUTION = "distribution"
SECRET_PLACES = ("literal", "env", "file")

Check: TypeAlias = Callable[[Any], Any]  # the value to keep; ValueError says what is allowed


@dataclass(frozen=True, slots=True)
class Declared:
    """One resource. `fields` has every field of its kind but `name`, and the settings that it overrides."""

    kind: str
    name: str
    fields: Mapping[str, Any] = field(repr=False)


def invalid(kind: str, name: str, key: str, value: object, reason: str) -> MetadataInvalid:
    """The error for one field of one resource."""
    return MetadataInvalid(f"{kind} {name!r}: {key} {value!r}: {reason}")


def declared_remotes(resources: Resources) -> list[Declared]:
    """The remotes, each name once."""
    found = [declared(REMOTE, given, REMOTE_FIELDS, RemoteSettings.names()) for given in resources.remotes]
    return each_once(found)


def declared_distributions(resources: Resources) -> list[Declared]:
    """The distributions, each name once; a name that is left out is the base_path."""
    settings = DistributionSettings.names()
    given = [{"name": found.get("base_path"), **found} for found in resources.distributions]
    return each_once([declared(DISTRIBUTION, found, DISTRIBUTION_FIELDS, settings) for found in given])


def declared(kind: str, given: Mapping[str, Any], checks: Mapping[str, Check], settings: Sequence[str]) -> Declared:
    """One resource with all its fields; MetadataInvalid for an unknown one or a value of the wrong form."""
    name = given.get("name")
    if not isinstance(name, str) or not name:
        raise invalid(kind, str(name), "name", name, "must be text")
    for key in given:
        if key != "name" and key not in checks and key not in settings:
            raise MetadataInvalid(f"{kind} {name!r}: {key}: no such field")
    fields = {key: checked(kind, name, key, check, given.get(key)) for key, check in checks.items()}
    return Declared(kind, name, fields | {key: given[key] for key in settings if key in given})


def checked(kind: str, name: str, key: str, check: Check, value: Any) -> Any:
    """The value as it is kept."""
    try:
        return check(value)
    except ValueError as error:
        if key in SECRET_FIELDS:
            raise MetadataInvalid(f"{kind} {name!r}: {key}: {error}") from None
        raise invalid(kind, name, key, value, str(error)) from None


def each_once(found: Sequence[Declared]) -> list[Declared]:
    """The same, if no name is there twice."""
    names = set()
    for resource in found:
        if resource.name in names:
            raise invalid(resource.kind, resource.name, "name", resource.name, "is declared twice")
        names.add(resource.name)
    return list(found)


def text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError("must be text")
    return value


def texts(value: Any) -> list[str]:
    if value is None:
        return []
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise ValueError("must be a list of texts")
    return [text(item) for item in value]


def optional(check: Check) -> Check:
    return lambda value: None if value is None else check(value)


def path(value: Any) -> str:
    if not isinstance(value, str) or not valid_base_path(value):
        raise ValueError("must be segments of letters, digits and . _ -, joined by /")
    return value


def flag(value: Any) -> bool:
    if value is not None and not isinstance(value, bool):
        raise ValueError("must be true or false")
    return bool(value)


def one_of(choices: type[StrEnum], default: str | None = None) -> Check:
    def check(value: Any) -> str:
        allowed = [choice.value for choice in choices]
        found = default if value is None else value
        if found not in allowed:
            raise ValueError(f"must be one of {', '.join(allowed)}")
        return str(found)

    return check


def headers(value: Any) -> list[list[str]]:
    """Pairs, from a mapping or from Pulp's list of mappings, where a name may repeat."""
    groups = [value] if isinstance(value, Mapping) else [] if value is None else value
    if not isinstance(groups, list | tuple) or not all(isinstance(group, Mapping) for group in groups):
        raise ValueError("must map names to texts")
    pairs = [list(pair) for group in groups for pair in group.items()]
    if not all(isinstance(item, str) for pair in pairs for item in pair):
        raise ValueError("must map names to texts")
    return pairs


def secret(value: Any) -> dict[str, str]:
    """Where the secret is: text is the secret itself."""
    if isinstance(value, Secret):
        value = {place: getattr(value, place) for place in SECRET_PLACES if getattr(value, place) is not None}
    if isinstance(value, str):
        return {"literal": value}
    if isinstance(value, Mapping) and len(value) == 1:
        ((place, where),) = value.items()
        if place in SECRET_PLACES and isinstance(where, str):
            return {place: where}
    raise ValueError("must be a text, or a mapping with one of env, file")


SECRET_FIELDS = frozenset({"password", "headers", "client_cert", "client_key", "proxy_url", "proxy_password", "url"})

REMOTE_FIELDS: Mapping[str, Check] = {
    "type": one_of(ContentType),
    "url": text,
    "policy": one_of(Policy, Policy.IMMEDIATE),
    "username": optional(text),
    "password": optional(secret),
    "credential_helper": optional(text),
    "auth_hosts": texts,
    "headers": headers,
    "ca_cert": optional(text),
    "client_cert": optional(text),
    "client_key": optional(secret),
    "proxy_url": optional(text),
    "proxy_username": optional(text),
    "proxy_password": optional(secret),
}

DISTRIBUTION_FIELDS: Mapping[str, Check] = {
    "base_path": path,
    "type": one_of(ContentType),
    "remotes": texts,
    "registry_hosts": texts,
    "default_registry": flag,
}

"""Every key of the configuration: its kind, default and meaning. The table in docs/settings.md is held to this."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, fields
from typing import Any

from contentapp.config.address import HOST_MEANING, LISTEN_MEANING, Listen, parse_host, parse_listen, parse_proxy_url
from contentapp.config.credential import Certificates, Headers, SecretKey, SecretValue
from contentapp.config.kind import (
    Boolean,
    Choice,
    Duration,
    Empty,
    FilePath,
    Integer,
    Kind,
    ListOf,
    Number,
    Parsed,
    PatternDurations,
    Rate,
    Size,
    Text,
)
from contentapp.core.settings import MIB, DistributionSettings, EngineSettings, RemoteSettings, Scoped

REQUIRED = object()
HELPER = re.compile(r"docker-credential-[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]*")
RATES = frozenset({"bandwidth_limit", "chunk_learning_rate", "min_device_rate", "scrub_rate"})


@dataclass(frozen=True, slots=True)
class Setting:
    """One key. `default` is the value without it, REQUIRED if it must be there."""

    kind: Kind
    default: Any
    doc: str


Table = Mapping[str, "Setting | Table"]
"""Keys of one mapping; a nested table is a section."""


def _scoped(scope: type[Scoped]) -> dict[str, Setting]:
    """The settings of a dataclass of core/settings.py, by the names and metadata of its fields."""
    return {f.name: Setting(_kind(f), _default(f), f.metadata["doc"]) for f in fields(scope)}  # type: ignore[arg-type]


def _default(f: Field[Any]) -> Any:
    return f.default if f.default_factory is MISSING else f.default_factory()


def _kind(f: Field[Any]) -> Kind:
    """The kind that a field's name and type ask for: the unit is the end of its name, as STYLE has it."""
    type_name = str(f.type)
    nullable = "None" in type_name
    bounds = {"minimum": f.metadata["minimum"], "maximum": f.metadata["maximum"], "nullable": nullable}
    if f.metadata["choices"]:
        return Choice(choices=f.metadata["choices"])
    if type_name.startswith("bool"):
        return Boolean()
    if type_name.startswith("dict"):
        return PatternDurations(item=Duration(minimum=0, maximum=30 * 86400))
    if f.name.endswith(("_seconds", "_timeout")):
        return Duration(**bounds)
    if f.name.endswith(("_size", "_bytes")):
        return Size(**bounds, unlimited=f.name == "verify_first_bytes")
    if f.name in RATES:
        return Rate(**bounds)
    return Integer(**bounds) if type_name.startswith("int") else Number(**bounds)


REMOTE_SETTINGS = _scoped(RemoteSettings)
DISTRIBUTION_SETTINGS = _scoped(DistributionSettings)
ENGINE_SETTINGS = _scoped(EngineSettings)

LISTEN = Parsed(allowed=LISTEN_MEANING, parser=parse_listen)
HOST = Parsed(allowed=HOST_MEANING, parser=parse_host)
RESOURCE_NAME = Text(allowed="letters, digits and . _ - /, at most 255", pattern=NAME, maximum=255)
LINE = Text()

GLOBAL: Table = {
    "data_dir": Setting(FilePath(), "./data", "Folder of the SQLite file, artifacts and partials."),
    "content": {
        "listen": Setting(LISTEN, Listen("0.0.0.0", 8080), "Where devices connect."),  # noqa: S104
        "workers": Setting(Integer(minimum=1, maximum=64), 1, "Processes that serve content."),
        "tls": {
            "certificate": Setting(FilePath(), None, "PEM file of the content listener; reloaded on change."),
            "key": Setting(FilePath(), None, "PEM file of its private key; reloaded on change."),
        },
    },
    "admin": {"listen": Setting(LISTEN, Listen("127.0.0.1", 8081), "Where admins and Prometheus connect.")},
    "storage": {"type": Setting(Choice(choices=("filesystem",), later=("s3",)), "filesystem", "Where artifacts are.")},
    "database": {"url": Setting(Empty(), "", "Empty: SQLite in data_dir.")},
    "redis": {"url": Setting(Empty(), "", "Empty: this host only.")},
    "cache": {
        "max_size": Setting(
            Size(minimum=MIB, empty=True, nullable=True), None, "Quota; empty: 80 % of what is free at the first start."
        ),
        "high_watermark": Setting(Number(minimum=0.01, maximum=1), 0.9, "Part of it where eviction begins."),
        "low_watermark": Setting(Number(minimum=0.01, maximum=1), 0.8, "Part of it where eviction ends."),
    },
    "log": {
        "format": Setting(
            Choice(choices=("auto", "json", "console")), "auto", "auto: console on a terminal, else json."
        ),
        "level": Setting(
            Choice(choices=("debug", "info", "warning", "error")), "info", "Least level; requests are logged at info."
        ),
    },
    **ENGINE_SETTINGS,
    **REMOTE_SETTINGS,
    **DISTRIBUTION_SETTINGS,
}

TYPE = Choice(choices=("container", "file"))

REMOTE_FIELDS: dict[str, Setting] = {
    "name": Setting(RESOURCE_NAME, REQUIRED, "Unique among remotes."),
    "type": Setting(TYPE, REQUIRED, "What it holds."),
    "url": Setting(
        Text(allowed="an http or https URL", maximum=2048), REQUIRED, "container: without path; file: ends in /."
    ),
    "policy": Setting(
        Choice(choices=("immediate", "on_demand", "streamed")),
        "immediate",
        "What is kept; immediate acts as on_demand for pull-through.",
    ),
    "username": Setting(LINE, None, "For Basic, and for token servers."),
    "password": Setting(SecretValue(), None, "Belongs to username."),
    "credential_helper": Setting(
        Text(allowed="docker-credential-NAME", pattern=HELPER),
        None,
        "Program that gives username and password by Docker's protocol.",
    ),
    "auth_hosts": Setting(
        ListOf(item=HOST, what="hosts"), (), "Further hosts whose token servers may see the credentials."
    ),
    "headers": Setting(Headers(), [], "Sent with each request to the remote's own host."),
    "ca_cert": Setting(Certificates(), None, "CAs that the remote's certificate is checked against."),
    "client_cert": Setting(Certificates(), None, "Client certificate, with its chain."),
    "client_key": Setting(SecretKey(), None, "Its private key, without a passphrase."),
    "proxy_url": Setting(
        Parsed(allowed="an http or https URL", parser=parse_proxy_url), None, "HTTP proxy to go through."
    ),
    "proxy_username": Setting(LINE, None, "For the HTTP proxy."),
    "proxy_password": Setting(SecretValue(), None, "Belongs to proxy_username."),
}
REMOTE: dict[str, Setting] = {**REMOTE_FIELDS, **REMOTE_SETTINGS}

DISTRIBUTION_FIELDS: dict[str, Setting] = {
    "name": Setting(RESOURCE_NAME, None, "Unique among distributions; without it, base_path."),
    "base_path": Setting(Text(allowed="a path such as quay.io or team/firmware", maximum=255), REQUIRED, "Unique."),
    "type": Setting(TYPE, REQUIRED, "What it serves; that of its remotes."),
    "remotes": Setting(ListOf(item=RESOURCE_NAME, what="names of remotes"), REQUIRED, "Asked in this order."),
    "registry_hosts": Setting(
        ListOf(item=HOST, what="hosts"), (), "Registries that containerd's ns= means by it; container only."
    ),
    "default_registry": Setting(Boolean(), False, "Serves names that match nothing else; container only, one at most."),
}
DISTRIBUTION: dict[str, Setting] = {**DISTRIBUTION_FIELDS, **DISTRIBUTION_SETTINGS}

LATER_GLOBAL = frozenset(
    [
        "repositories",
        "prefetch",
        "domains",
        "domain_enabled",
        "content_guards",
        "alternate_content_sources",
        "acs",
        "tasks",
        "partial_max_age_seconds",
    ]
)
LATER_STORAGE = frozenset(
    [
        "bucket",
        "endpoint_url",
        "region",
        "redirect",
        "access_key",
        "secret_key",
        "prefix",
    ]
)
LATER_REMOTE = frozenset(
    [
        "upstream_name",
        "include_tags",
        "exclude_tags",
        "includes",
        "excludes",
        "platforms",
        "sigstore",
        "domain",
        "pulp_labels",
        "chunk_digests",
        "sync",
    ]
)
LATER_DISTRIBUTION = frozenset(
    [
        "repository",
        "repository_version",
        "publication",
        "content_guard",
        "domain",
        "pulp_labels",
        "private",
        "hidden",
    ]
)

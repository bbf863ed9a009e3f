"""From a file and the environment to a Config, or to every problem at once."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from contentapp.config.document import Node, read_document
from contentapp.config.environment import overlay_environment, settings_of
from contentapp.config.kind import resolve_path
from contentapp.config.model import (
    Admin,
    Cache,
    Config,
    Content,
    DatabaseConfig,
    DeclaredResources,
    Log,
    RedisConfig,
    StorageConfig,
    TLSFiles,
)
from contentapp.config.problem import Report
from contentapp.config.resource import ResourceReader
from contentapp.config.schema import GLOBAL, LATER_GLOBAL, Setting, Table
from contentapp.config.section import Values, read_section
from contentapp.core.settings import DistributionSettings, EngineSettings, RemoteSettings

EMBEDDED = Path(__file__).parent.parent / "defaults.yaml"
EMBEDDED_NAME = "embedded defaults"
LISTS: Table = {"remotes": {}, "distributions": {}}


def load_config(path: Path | None, environ: Mapping[str, str]) -> Config:
    """Read the file (None: the embedded defaults), put the environment over it, check everything.

    ConfigError with all problems. A file replaces the embedded remotes and distributions. Reads `path` and the
    certificates it names, nothing else; secrets are not read.
    """
    report = Report()
    root = read_document(path or EMBEDDED)
    resources = ResourceReader(report, environ)
    _read_resources(root, resources)
    root = overlay_environment(_without_resources(root), environ, report)
    given = read_section(root, GLOBAL, "", report, later=LATER_GLOBAL)
    values = _complete(given, GLOBAL)
    if "data_dir" not in given:
        values["data_dir"] = resolve_path(str(values["data_dir"]), root if path else Node(None, ""))
    _check_together(root, values, report)
    report.raise_problems()
    _warn_of_files(root, values, report)
    if path:
        _warn_of_mode(path, root, resources, report)
    return _config(path, values, resources, report, _origins(root))


def load_resources(path: Path, environ: Mapping[str, str]) -> DeclaredResources:
    """Read a file of remotes and distributions alone, whose distributions may name remotes that exist elsewhere.

    ConfigError with all problems.
    """
    report = Report()
    root = read_document(path)
    reader = ResourceReader(report, environ)
    _read_resources(root, reader, is_complete=False)
    _check_rest(root, report)
    report.raise_problems()
    return DeclaredResources(
        remotes=tuple(reader.remotes.values()),
        distributions=tuple(reader.distributions.values()),
        warnings=tuple(report.warnings),
    )


def _check_rest(root: Node, report: Report) -> None:
    """What a file of resources holds besides: global settings are of no use there, everything else is a problem."""
    rest = _without_resources(root)
    if isinstance(rest.value, dict):
        for name, child in rest.value.items():
            if name in GLOBAL:
                report.warning(child, name, "is a global setting; it is read from the configuration file alone")
        unknown = {name: child for name, child in rest.value.items() if name not in GLOBAL}
        rest = Node(unknown, rest.file, rest.line)
    read_section(rest, LISTS, "", report, later=LATER_GLOBAL)


def _read_resources(root: Node, reader: ResourceReader, *, is_complete: bool = True) -> None:
    lists = root.value if isinstance(root.value, dict) else {}
    if "remotes" in lists:
        reader.read_remotes(lists["remotes"])
    if "distributions" in lists:
        reader.read_distributions(lists["distributions"], is_complete=is_complete)
    if "remotes" in lists and is_complete:
        reader.warn_unused(lists["remotes"])


def _without_resources(root: Node) -> Node:
    if not isinstance(root.value, dict):
        return root
    rest = {name: child for name, child in root.value.items() if name not in LISTS}
    return Node(rest, root.file, root.line)


def _complete(given: Values, table: Table) -> dict[str, Any]:
    """Given values, and defaults for the others."""
    complete: dict[str, Any] = {}
    for name, entry in table.items():
        if isinstance(entry, Setting):
            complete[name] = given.get(name, entry.default)
        else:
            complete[name] = _complete(given.get(name, {}), entry)
    return complete


def _check_together(root: Node, values: dict[str, Any], report: Report) -> None:
    """Rules that hold between settings."""
    cache, content, admin = values["cache"], values["content"], values["admin"]
    if cache["low_watermark"] >= cache["high_watermark"]:
        message = f"must be below high_watermark, which is {cache['high_watermark']}"
        report.problem(_at(root, "cache", "low_watermark"), "cache.low_watermark", message)
    for name, other in (("certificate", "key"), ("key", "certificate")):
        if content["tls"][name] and not content["tls"][other]:
            report.problem(_at(root, "content", "tls"), f"content.tls.{other}", "must be given", show=False)
    if admin["listen"] == content["listen"] and admin["listen"].port:
        report.problem(_at(root, "admin", "listen"), "admin.listen", "must not be that of content")


def _at(root: Node, *path: str) -> Node:
    """The node at a path, or the nearest above it."""
    for name in path:
        if not isinstance(root.value, dict) or name not in root.value:
            return root
        root = root.value[name]
    return root


def _warn_of_files(root: Node, values: dict[str, Any], report: Report) -> None:
    for name, path in values["content"]["tls"].items():
        if path and not path.is_file():
            report.warning(_at(root, "content", "tls", name), f"content.tls.{name}", f"file {path} is not there")


def _warn_of_mode(path: Path, root: Node, resources: ResourceReader, report: Report) -> None:
    """Warn of literal secrets in a file that everybody can read."""
    names = ("password", "client_key", "proxy_password")
    has_literal = any("literal" in remote.get(name, ()) for remote in resources.remotes.values() for name in names)
    if has_literal and path.stat().st_mode & 0o004:
        report.warning(Node(None, root.file), "", "holds literal secrets and can be read by every user; chmod 0600 it")


def _origins(root: Node) -> dict[str, str]:
    """Where each given global setting came from."""
    origins = {}
    for path, _ in settings_of(GLOBAL):
        node = _at(root, *path)
        name = ".".join(path)
        parent = _at(root, *path[:-1])
        if isinstance(parent.value, dict) and path[-1] in parent.value:
            origins[name] = f"{node.file}:{node.line}" if node.line else node.file
    return origins


def _config(
    path: Path | None, values: dict[str, Any], resources: ResourceReader, report: Report, origins: dict[str, str]
) -> Config:
    tls = values["content"]["tls"]
    return Config(
        file=path,
        data_dir=values["data_dir"],
        content=Content(
            values["content"]["listen"],
            values["content"]["workers"],
            TLSFiles(**tls) if tls["certificate"] else None,
        ),
        admin=Admin(**values["admin"]),
        storage=StorageConfig(**values["storage"]),
        database=DatabaseConfig(**values["database"]),
        redis=RedisConfig(**values["redis"]),
        cache=Cache(**values["cache"]),
        log=Log(**values["log"]),
        remote_defaults=RemoteSettings(**{name: values[name] for name in RemoteSettings.names()}),
        distribution_defaults=DistributionSettings(**{name: values[name] for name in DistributionSettings.names()}),
        engine=EngineSettings(**{name: values[name] for name in EngineSettings.names()}),
        remotes=tuple(resources.remotes.values()),
        distributions=tuple(resources.distributions.values()),
        warnings=tuple(report.warnings),
        origins=origins,
    )

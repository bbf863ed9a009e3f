"""Remotes and distributions: each by itself, then against each other."""

from __future__ import annotations

import re
from collections.abc import Mapping, Set
from pathlib import Path

from contentapp.config.address import REPOSITORY_NAME, parse_url
from contentapp.config.document import Node
from contentapp.config.problem import NOT_AVAILABLE, Invalid, Report
from contentapp.config.schema import (
    DISTRIBUTION,
    LATER_DISTRIBUTION,
    LATER_REMOTE,
    REMOTE,
    Setting,
)
from contentapp.config.section import Values, check_required, read_section
from contentapp.core.basepath import valid_base_path

SIMPLE_NAME = re.compile(r"[A-Za-z0-9_-]+")
MAX_RESOURCES = 10_000


class ResourceReader:
    """Reads the two lists of one document. `values` that come out hold only what was given, and names and policies."""

    def __init__(self, report: Report, environ: Mapping[str, str]) -> None:
        self.report = report
        self.environ = environ
        self.remotes: dict[str, Values] = {}
        self.distributions: dict[str, Values] = {}
        self._base_paths: set[str] = set()
        self._registry_hosts: dict[str, str] = {}
        self._default_registry = ""

    def read_remotes(self, node: Node) -> None:
        """Read ``remotes:``."""
        for item, key in self._items(node, "remotes"):
            values = self._read(item, key, REMOTE, LATER_REMOTE)
            values.setdefault("policy", "immediate")
            self._check_remote(item, key, values)
            if values.get("name") in self.remotes:
                self._problem(item, f"{key}.name", "is the name of another remote too", "name")
            elif "name" in values:
                self.remotes[values["name"]] = values

    def read_distributions(self, node: Node, *, is_complete: bool = True) -> None:
        """Read ``distributions:``; unless `is_complete`, remotes that are not in this document may exist elsewhere."""
        for item, key in self._items(node, "distributions"):
            values = self._read(item, key, DISTRIBUTION, LATER_DISTRIBUTION)
            self._check_distribution(item, key, values)
            self._check_references(item, key, values, is_complete=is_complete)
            name = str(values.setdefault("name", values.get("base_path", key)))
            if name in self.distributions and _given(item, "name"):
                self._problem(item, f"{key}.name", "is the name of another distribution too", "name")
            self.distributions[name] = values

    def warn_unused(self, node: Node) -> None:
        """Warn of remotes that no distribution of this document names."""
        used = {name for values in self.distributions.values() for name in values.get("remotes", ())}
        for item, key in _items(node, "remotes"):
            name = item.value["name"].text if isinstance(item.value, dict) and "name" in item.value else ""
            if name and name not in used:
                self.report.warning(item, key, "is not used by any distribution")

    def _items(self, node: Node, key: str) -> list[tuple[Node, str]]:
        if node.value is None:
            return []
        if not isinstance(node.value, list) or len(node.value) > MAX_RESOURCES:
            self.report.problem(node, key, f"must be a list of at most {MAX_RESOURCES} mappings", show=False)
            return []
        return _items(node, key)

    def _read(self, node: Node, key: str, table: Mapping[str, Setting], later: Set[str]) -> Values:
        if isinstance(node.value, dict):
            check_required(node, table, key, self.report)
        return read_section(node, table, key, self.report, later=later)

    def _problem(self, node: Node, key: str, message: str, name: str = "") -> None:
        """A problem at the child `name` of a resource, or at the resource."""
        at = node.value[name] if isinstance(node.value, dict) and name in node.value else node
        self.report.problem(at, key, message, show=at is not node)

    # Remotes.

    def _check_remote(self, node: Node, key: str, values: Values) -> None:
        self._check_url(node, key, values)
        self._check_credentials(node, key, values)
        self._check_secrets(node, key, values)
        if values.get("type") == "container" and any(
            name.lower() == "accept" for h in values.get("headers", ()) for name in h
        ):
            self.report.problem(node, f"{key}.headers.Accept", "is fixed for container remotes", show=False)
        if values["policy"] == "immediate":
            self.report.warning(node, f"{key}.policy", "immediate acts as on_demand for pull-through")
        if values.get("tls_validation") is False:
            self.report.warning(node, f"{key}.tls_validation", "the remote's certificate is not checked")

    def _check_url(self, node: Node, key: str, values: Values) -> None:
        if "url" not in values:
            return
        try:
            url = parse_url(values["url"])
            if values.get("type") == "container" and url.path not in {"", "/"}:
                raise Invalid("must not have a path: the url of a container remote is the registry's root")
            if values.get("type") == "file" and not url.path.endswith("/"):
                raise Invalid(_file_url_message(url.path))
        except Invalid as invalid:
            self._problem(node, f"{key}.url", str(invalid), "url")
            return
        if url.scheme == "http" and not url.is_local and {"password", "credential_helper"} & values.keys():
            self.report.warning(node, f"{key}.url", "credentials are sent over http, readable by everyone on the way")

    def _check_credentials(self, node: Node, key: str, values: Values) -> None:
        for name, other in (
            ("username", "password"),
            ("password", "username"),
            ("proxy_username", "proxy_password"),
            ("proxy_password", "proxy_username"),
            ("proxy_username", "proxy_url"),
            ("client_key", "client_cert"),
        ):
            if _given(node, name) and not _given(node, other):
                self.report.problem(node, f"{key}.{name}", f"needs {other} beside it", show=False)
        if _given(node, "credential_helper") and _given(node, "username"):
            self.report.problem(node, f"{key}.credential_helper", "can't stand beside username", show=False)
        if (
            "client_cert" in values
            and not _given(node, "client_key")
            and "PRIVATE KEY-----" not in values["client_cert"]
        ):
            self.report.problem(node, f"{key}.client_cert", "needs client_key beside it", show=False)

    def _check_secrets(self, node: Node, key: str, values: Values) -> None:
        """Warn of secrets that are not there now; they are read at each use, and may come."""
        for name in ("password", "client_key", "proxy_password"):
            place = values.get(name, {})
            if "env" in place and place["env"] not in self.environ:
                self.report.warning(node, f"{key}.{name}", f"environment variable {place['env']} is not set")
            if "file" in place and not Path(place["file"]).is_file():
                self.report.warning(node, f"{key}.{name}", f"file {place['file']} is not there")

    # Distributions.

    def _check_distribution(self, node: Node, key: str, values: Values) -> None:
        self._check_base_path(node, key, values)
        if "remotes" in values and not values["remotes"]:
            self._problem(node, f"{key}.remotes", "must name at least one remote", "remotes")
        if values.get("type") == "file":
            for name in ("registry_hosts", "default_registry"):
                if values.get(name):
                    self._problem(node, f"{key}.{name}", "is for distributions of type container", name)
            return
        for host in values.get("registry_hosts", ()):
            if (other := self._registry_hosts.setdefault(host, key)) != key:
                self._problem(node, f"{key}.registry_hosts", f"{host} belongs to {other} already", "registry_hosts")
        if values.get("default_registry"):
            if self._default_registry:
                message = f"is set for {self._default_registry} already; one distribution at most may have it"
                self._problem(node, f"{key}.default_registry", message, "default_registry")
            self._default_registry = key

    def _check_base_path(self, node: Node, key: str, values: Values) -> None:
        if (path := values.get("base_path")) is None:
            return
        if values.get("type") == "container" and not REPOSITORY_NAME.fullmatch(path):
            message = "must be lower-case letters and digits, joined by single . _ - or /, as in quay.io or team/mirror"
            self._problem(node, f"{key}.base_path", message, "base_path")
        elif not valid_base_path(path):
            message = "must be segments of letters, digits and . _ -, joined by /, none of them . or .."
            self._problem(node, f"{key}.base_path", message, "base_path")
        elif path in self._base_paths:
            self._problem(node, f"{key}.base_path", "is the base_path of another distribution too", "base_path")
        self._base_paths.add(path)

    def _check_references(self, node: Node, key: str, values: Values, *, is_complete: bool) -> None:
        listed = node.value["remotes"].value if "remotes" in values and isinstance(node.value, dict) else []
        for index, child in enumerate(listed if isinstance(listed, list) else []):
            remote = self.remotes.get(child.text)
            if remote is None and is_complete and child.text in values["remotes"]:
                known = ", ".join(sorted(self.remotes)[:20]) or "none"
                self.report.problem(
                    child, f"{key}.remotes[{index}]", f"is not the name of a remote; known are: {known}"
                )
            elif remote and {remote.get("type"), values.get("type")} == {"container", "file"}:
                message = f"is of type {remote['type']}; a distribution has the type of its remotes"
                self.report.problem(child, f"{key}.remotes[{index}]", message)


def _items(node: Node, key: str) -> list[tuple[Node, str]]:
    """The members of a list, each with its key: by name where that is plain, else by number."""
    children = node.value if isinstance(node.value, list) else []
    return [(child, _key(child, key, index)) for index, child in enumerate(children)]


def _key(node: Node, key: str, index: int) -> str:
    name = node.value["name"].text if isinstance(node.value, dict) and "name" in node.value else ""
    return f"{key}.{name}" if SIMPLE_NAME.fullmatch(name) and len(name) <= 60 else f"{key}[{index}]"


def _given(node: Node, name: str) -> bool:
    return isinstance(node.value, dict) and name in node.value


def _file_url_message(path: str) -> str:
    if path.rpartition("/")[2] == "PULP_MANIFEST":
        return f"must end in / for pull-through; to sync a PULP_MANIFEST into a repository is {NOT_AVAILABLE}"
    return "must end in / for pull-through"

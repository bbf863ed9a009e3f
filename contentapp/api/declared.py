"""Declared resources that come as JSON, checked by the same rules as those in a file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from contentapp.config import ConfigError, DeclaredResources, Problem
from contentapp.config.document import MAX_DEPTH, MAX_NODES, Node
from contentapp.config.problem import Report
from contentapp.config.resource import ResourceReader
from contentapp.config.schema import LATER_GLOBAL
from contentapp.config.section import read_section

ORIGIN = "resources"
"""Stands where a file's name would."""


def read_resources(resources: Mapping[str, Any], environ: Mapping[str, str]) -> DeclaredResources:
    """The resources of ``{remotes: […], distributions: […]}``; ConfigError with all problems.

    Distributions may name remotes that exist elsewhere. Reads the certificates that are given as files: of this host.
    """
    root = _Nodes().node(resources)
    report = Report()
    reader = ResourceReader(report, environ)
    lists = root.value if isinstance(root.value, dict) else {}
    if "remotes" in lists:
        reader.read_remotes(lists["remotes"])
    if "distributions" in lists:
        reader.read_distributions(lists["distributions"], is_complete=False)
    rest = {name: node for name, node in lists.items() if name not in {"remotes", "distributions"}}
    read_section(Node(rest, ORIGIN), {"remotes": {}, "distributions": {}}, "", report, later=LATER_GLOBAL)
    report.raise_problems()
    return DeclaredResources(
        remotes=tuple(reader.remotes.values()),
        distributions=tuple(reader.distributions.values()),
        warnings=tuple(report.warnings),
    )


class _Nodes:
    """Makes of JSON what the configuration reads, within the bounds of a file."""

    def __init__(self) -> None:
        self.count = 0

    def node(self, value: Any, depth: int = 0) -> Node:
        self.count += 1
        if self.count > MAX_NODES or depth > MAX_DEPTH:
            raise ConfigError([Problem(ORIGIN, None, "resources", "", "too many values, or too deep")])
        if isinstance(value, dict):
            return Node({name: self.node(child, depth + 1) for name, child in value.items()}, ORIGIN)
        if isinstance(value, list):
            return Node([self.node(child, depth + 1) for child in value], ORIGIN)
        text = value if isinstance(value, str) else "" if value is None else json.dumps(value)
        return Node(value, ORIGIN, None, text)

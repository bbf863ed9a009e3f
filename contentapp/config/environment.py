"""``CONTENTAPP_…`` variables, put over the document: ``CONTENTAPP_CONTENT__LISTEN`` is ``content.listen``."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace

from contentapp.config.document import Node, parse_document
from contentapp.config.problem import ConfigError, Problem, Report, suggestion
from contentapp.config.schema import GLOBAL, Setting, Table

PREFIX = "CONTENTAPP_"
NOT_SETTINGS = frozenset({"CONTENTAPP_CONFIG", "CONTENTAPP_FORMAT", "CONTENTAPP_ADMIN_PASSWORD"})  # of the command line
RESOURCES = ("CONTENTAPP_REMOTES", "CONTENTAPP_DISTRIBUTIONS")
# What Kubernetes sets in every pod for a Service named contentapp or contentapp-…
SERVICE_LINK = re.compile(
    r"CONTENTAPP(_[A-Z0-9_]+)?_(SERVICE_HOST|SERVICE_PORT(_[A-Z0-9_]+)?|PORT(_[0-9]+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?)"
)
MAX_LENGTH = 64 * 1024


def variables() -> dict[str, tuple[tuple[str, ...], Setting]]:
    """Every variable that is a setting, with its path of keys."""
    return {PREFIX + "__".join(path).upper(): (path, setting) for path, setting in settings_of(GLOBAL)}


def settings_of(table: Table, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Setting]]:
    """All settings below a table with their paths of keys."""
    for name, entry in table.items():
        if isinstance(entry, Setting):
            yield (*path, name), entry
        else:
            yield from settings_of(entry, (*path, name))


def overlay_environment(root: Node, environ: Mapping[str, str], report: Report) -> Node:
    """The document with the variables' values in it. An empty variable is none.

    What is no setting becomes a warning, not a problem, since others set variables too.
    """
    known = variables()
    for name in sorted(name for name in environ if name.startswith(PREFIX) and environ[name].strip()):
        if name in known:
            path, setting = known[name]
            if (node := _node(name, environ[name], setting, report)) is not None:
                root = _put(root, path, node)
        elif name not in NOT_SETTINGS and not SERVICE_LINK.fullmatch(name):
            report.warning(Node(None, f"environment {name}"), "", _explain(name, tuple(known)))
    return root


def _explain(name: str, known: tuple[str, ...]) -> str:
    if name.startswith(RESOURCES):
        return "is not a setting: resources are declared in the file, their secrets there by {env: NAME}"
    return f"is not a setting{suggestion(name, known)}"


def _node(name: str, text: str, setting: Setting, report: Report) -> Node | None:
    """The variable's text as a value: as it is where text is wanted, else as YAML."""
    file = f"environment {name}"
    if len(text) > MAX_LENGTH:
        report.problems.append(Problem(file, None, "", "", f"is longer than {MAX_LENGTH} characters"))
        return None
    if setting.kind.is_text:
        return Node(text, file, None, text)
    try:
        return _without_lines(parse_document(text, file))
    except ConfigError as error:
        report.problems += [replace(problem, line=None) for problem in error.problems]
        return None


def _without_lines(node: Node) -> Node:
    """A line of a variable tells nobody anything."""
    value = node.value
    if isinstance(value, dict):
        value = {name: _without_lines(child) for name, child in value.items()}
    elif isinstance(value, list):
        value = [_without_lines(child) for child in value]
    return replace(node, value=value, line=None)


def _put(root: Node, path: tuple[str, ...], node: Node) -> Node:
    """A copy of the tree with `node` at `path`; a section that is no mapping stays, to be reported."""
    if not path:
        return node
    if root.value is None:
        root = replace(root, value={})
    if not isinstance(root.value, dict):
        return root
    child = root.value.get(path[0], Node(None, node.file))
    return replace(root, value={**root.value, path[0]: _put(child, path[1:], node)})

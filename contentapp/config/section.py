"""One mapping of the configuration, read against its table."""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Any

from contentapp.config.document import Node
from contentapp.config.problem import NOT_AVAILABLE, Invalid, Report, suggestion
from contentapp.config.schema import LATER_STORAGE, REQUIRED, Setting, Table

Values = dict[str, Any]


def read_section(node: Node, table: Table, key: str, report: Report, *, later: Set[str] = frozenset()) -> Values:
    """The valid values that are there, sections as nested dicts; everything else goes into the report.

    later: keys of a later version, refused unless they are empty.
    """
    if not isinstance(node.value, dict):
        report.problem(node, key, "must be a mapping", show=not key.startswith("remotes"))
        return {}
    values: Values = {}
    for name, child in node.value.items():
        at = f"{key}.{name[:60]}" if key else name[:60]
        match table.get(name):
            case Setting() as setting:
                if child.value is None and setting.default is None and not setting.kind.nullable:
                    continue
                try:
                    values[name] = setting.kind.read(child, at, report)
                except Invalid as invalid:
                    report.problem(child, at, str(invalid), show=not setting.kind.is_secret)
            case None if name in later:
                if child.value not in (None, [], {}):
                    report.problem(child, at, NOT_AVAILABLE, show=False)
            case None:
                report.problem(child, at, f"is not a setting{_hint(name, table)}", show=False)
            case nested:
                values[name] = _nested(child, nested, at, report)
    return values


def check_required(node: Node, table: Mapping[str, Setting], key: str, report: Report) -> bool:
    """Whether all required keys are there; those that are not go into the report."""
    there = node.value if isinstance(node.value, dict) else {}
    missing = [name for name, setting in table.items() if setting.default is REQUIRED and name not in there]
    for name in missing:
        report.problem(node, f"{key}.{name}", "must be given", show=False)
    return not missing


def _nested(node: Node, table: Table, at: str, report: Report) -> Values:
    if node.value is None:
        return {}
    return read_section(node, table, at, report, later=LATER_STORAGE if at == "storage" else frozenset())


def _hint(name: str, table: Table) -> str:
    """What may have been meant."""
    return suggestion(name, tuple(table)) or (f"; known are {', '.join(table)}" if len(table) < 12 else "")

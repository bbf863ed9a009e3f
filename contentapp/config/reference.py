"""The table of all settings as the documentation shows it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from contentapp.config.environment import settings_of
from contentapp.config.schema import (
    DISTRIBUTION_FIELDS,
    DISTRIBUTION_SETTINGS,
    GLOBAL,
    REMOTE_FIELDS,
    REMOTE_SETTINGS,
    REQUIRED,
    Setting,
)

if TYPE_CHECKING:
    from contentapp.config.model import Config


class SettingRow(NamedTuple):
    """One setting in words."""

    name: str
    scope: str
    default: str
    range: str
    meaning: str


def setting_rows() -> Iterator[SettingRow]:
    """Every setting: global ones by their path of keys, then the fields of remotes and of distributions."""
    for path, setting in settings_of(GLOBAL):
        yield _row(".".join(path), _scope(path[0]), setting)
    for name, setting in REMOTE_FIELDS.items():
        yield _row(name, "remote", setting)
    for name, setting in DISTRIBUTION_FIELDS.items():
        yield _row(name, "distribution", setting)


def _scope(name: str) -> str:
    if name in REMOTE_SETTINGS:
        return "global, remote"
    return "global, distribution" if name in DISTRIBUTION_SETTINGS else "global"


def _row(name: str, scope: str, setting: Setting) -> SettingRow:
    if setting.default is REQUIRED:
        default = "required"
    elif _is_none(setting, setting.default):
        default = "none"
    else:
        default = setting.kind.show(setting.default)
    return SettingRow(name, scope, default, setting.kind.range, setting.doc)


def effective_values(config: Config) -> dict[str, Any]:
    """Every global setting of a configuration by its path of keys."""
    return {name: value for name, _, value in _effective(config)}


def effective_texts(config: Config) -> dict[str, str]:
    """Every global setting of a configuration as one would write it."""
    return {
        name: "none" if _is_none(setting, value) else setting.kind.show(value)
        for name, setting, value in _effective(config)
    }


def _effective(config: Config) -> Iterator[tuple[str, Setting, Any]]:
    for path, setting in settings_of(GLOBAL):
        yield ".".join(path), setting, _find(config, path)


def _find(config: Config, path: tuple[str, ...]) -> Any:
    """The value at a path of keys: a section of the configuration, or one of the groups of scoped settings."""
    for group in (config.remote_defaults, config.distribution_defaults, config.engine):
        if path[0] in group.names():
            return getattr(group, path[0])
    value: Any = config
    for name in path:
        value = getattr(value, name, None)
    return value


def _is_none(setting: Setting, value: Any) -> bool:
    return value is None and not setting.kind.nullable

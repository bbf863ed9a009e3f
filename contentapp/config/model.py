"""A checked configuration: immutable, complete, and safe to print."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from contentapp.config.address import Listen
from contentapp.config.problem import Problem
from contentapp.core.settings import DistributionSettings, EngineSettings, RemoteSettings


@dataclass(frozen=True, slots=True)
class TLSFiles:
    """PEM files of a listener; absolute paths."""

    certificate: Path
    key: Path


@dataclass(frozen=True, slots=True)
class Content:
    """The content listener."""

    listen: Listen
    workers: int
    tls: TLSFiles | None


@dataclass(frozen=True, slots=True)
class Admin:
    """The admin listener."""

    listen: Listen


@dataclass(frozen=True, slots=True)
class StorageConfig:
    """Where artifacts are; `type` is ``filesystem``."""

    type: str


@dataclass(frozen=True, slots=True)
class DatabaseConfig:
    """`url` is "": SQLite in data_dir."""

    url: str


@dataclass(frozen=True, slots=True)
class RedisConfig:
    """`url` is "": this host only."""

    url: str


@dataclass(frozen=True, slots=True)
class Cache:
    """The quota in bytes (None: 80 % of what is free at the first start) and the watermarks as parts of it."""

    max_size: int | None
    high_watermark: float
    low_watermark: float


@dataclass(frozen=True, slots=True)
class Log:
    """`format`: auto, json or console; `level`: debug, info, warning or error."""

    format: str
    level: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DeclaredResources:
    """The resources of a file that holds nothing else; mappings as in Config."""

    remotes: tuple[Mapping[str, Any], ...] = field(repr=False)
    distributions: tuple[Mapping[str, Any], ...] = field(repr=False)
    warnings: tuple[Problem, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The whole configuration.

    file: where it was read from, None for the embedded defaults. remotes, distributions: plain mappings in the YAML's
    names, holding what was given, and always `name` (remotes also `policy`); durations in seconds, sizes in bytes,
    secrets as ``{literal|env|file: …}``, headers as a list of one-field mappings. origins: for each global setting that
    was given, the file and line or the variable it came from.
    """

    file: Path | None
    data_dir: Path
    content: Content
    admin: Admin
    storage: StorageConfig
    database: DatabaseConfig
    redis: RedisConfig
    cache: Cache
    log: Log
    remote_defaults: RemoteSettings
    distribution_defaults: DistributionSettings
    engine: EngineSettings
    remotes: tuple[Mapping[str, Any], ...] = field(default=(), repr=False)
    distributions: tuple[Mapping[str, Any], ...] = field(default=(), repr=False)
    warnings: tuple[Problem, ...] = field(default=(), repr=False)
    origins: Mapping[str, str] = field(default_factory=dict, repr=False)

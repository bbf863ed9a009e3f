"""The configuration: one YAML file, and ``CONTENTAPP_…`` over it."""

from contentapp.config.address import Listen
from contentapp.config.load import load_config, load_resources
from contentapp.config.model import Admin, Cache, Config, Content, DeclaredResources, Log, TLSFiles
from contentapp.config.problem import ConfigError, Problem

__all__ = [
    "Admin",
    "Cache",
    "Config",
    "ConfigError",
    "Content",
    "DeclaredResources",
    "Listen",
    "Log",
    "Problem",
    "TLSFiles",
    "load_config",
    "load_resources",
]

"""``contentapp config check``: is this configuration right, and what does it come to?"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from contentapp.config import Config, Problem


@click.group("config")
def config_group() -> None:
    """Look at the configuration."""


@config_group.command("check")
@click.option(
    "--config",
    "file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    envvar="CONTENTAPP_CONFIG",
    help="Configuration file; without it, the embedded defaults.",
)
@click.option("--format", "output", type=click.Choice(["table", "json"]), default="table", show_default=True)
def check_command(file: Path | None, output: str) -> None:
    """Check a configuration and show the values that result. Exit code 1 when it can't be used."""
    from contentapp.config import ConfigError, load_config

    try:
        config = load_config(file, os.environ)
    except ConfigError as error:
        _show_problems(error.problems, output)
        sys.exit(1)
    if output == "json":
        click.echo(json.dumps(as_json(config), indent=2))
    else:
        _show_table(config)


def as_json(config: Config) -> dict[str, Any]:
    """The whole result as JSON; of secrets, where they are, never what they are."""
    from contentapp.config.reference import effective_values

    return {
        "file": str(config.file) if config.file else None,
        "valid": True,
        "problems": [],
        "warnings": [asdict(warning) for warning in config.warnings],
        "settings": {name: _plain(value) for name, value in effective_values(config).items()},
        "origins": dict(config.origins),
        "remotes": [masked(remote) for remote in config.remotes],
        "distributions": [masked(distribution) for distribution in config.distributions],
    }


def masked(resource: Mapping[str, Any]) -> dict[str, Any]:
    """A resource that may be printed."""
    return {name: _masked(name, value) for name, value in resource.items()}


def _masked(name: str, value: Any) -> Any:
    if name in {"password", "client_key", "proxy_password"}:
        return {form: "***" if form == "literal" else place for form, place in value.items()}
    if name == "headers":
        return [dict.fromkeys(header, "***") for header in value]
    if name in {"ca_cert", "client_cert"}:
        return "PEM"
    return value


def _plain(value: Any) -> Any:
    return value if isinstance(value, str | int | float | bool | dict | None) else str(value)


def _show_problems(problems: tuple[Problem, ...], output: str) -> None:
    if output == "json":
        click.echo(json.dumps({"valid": False, "problems": [asdict(problem) for problem in problems]}, indent=2))
        return
    for problem in problems:
        click.echo(f"error: {problem}", err=True)
    click.echo(f"{len(problems)} problem{'s' * (len(problems) > 1)}; this configuration can't be used", err=True)


def _show_table(config: Config) -> None:
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else 200, highlight=False, markup=False, emoji=False)
    console.print(_settings_table(config))
    for title, resources in (("Remotes", config.remotes), ("Distributions", config.distributions)):
        console.print(_resources_table(title, resources))
    for warning in config.warnings:
        click.echo(f"warning: {warning}", err=True)
    count = len(config.warnings)
    click.echo(f"{config.file or 'embedded defaults'}: ok, {count} warning{'s' * (count != 1)}")


def _settings_table(config: Config) -> Any:
    from rich.table import Table
    from rich.text import Text

    from contentapp.config.reference import effective_texts

    table = Table("Setting", "Value", "From", title="Settings", title_justify="left")
    for name, text in effective_texts(config).items():
        table.add_row(*map(Text, (name, text, config.origins.get(name, "default"))))
    return table


def _resources_table(title: str, resources: tuple[Mapping[str, Any], ...]) -> Any:
    from rich.table import Table
    from rich.text import Text

    table = Table("Name", "Type", "Given", title=title, title_justify="left")
    for resource in resources:
        rest = {name: value for name, value in masked(resource).items() if name not in {"name", "type"}}
        given = ", ".join(f"{name}: {_short(value)}" for name, value in rest.items())
        table.add_row(*map(Text, (resource["name"], resource["type"], given)))
    return table


def _short(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)

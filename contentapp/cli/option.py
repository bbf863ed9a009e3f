"""What all commands share: options, the configuration, and the one way in which a command fails."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from contentapp.config import Config

NOT_AVAILABLE = "not available in this version"

Decorated = TypeVar("Decorated", bound=Callable[..., Any])


class Failed(click.ClickException):
    """What a command was to do can't be done; the text says why, in one plain line."""

    exit_code = 1


class NotAvailable(click.ClickException):
    """A command of a later version."""

    exit_code = 2


class LaterGroup(click.Group):
    """A group that knows the names of commands that will come."""

    later: frozenset[str] = frozenset()

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in self.later:
            raise NotAvailable(f"{ctx.command_path} {cmd_name} is {NOT_AVAILABLE}")
        return super().get_command(ctx, cmd_name)


def config_option(function: Decorated) -> Decorated:
    """``--config FILE``, given to the function as `file`."""
    return click.option(
        "--config",
        "file",
        type=click.Path(dir_okay=False, path_type=Path),
        envvar="CONTENTAPP_CONFIG",
        metavar="FILE",
        help="Configuration file; or CONTENTAPP_CONFIG. Without: embedded defaults.",
    )(function)


def format_option(function: Decorated) -> Decorated:
    """``--format table|json``, given to the function as `output`."""
    return click.option(
        "--format",
        "output",
        type=click.Choice(["table", "json"]),
        default="table",
        show_default=True,
        envvar="CONTENTAPP_FORMAT",
        help="How the result is printed.",
    )(function)


def configuration(file: Path | None) -> Config:
    """The configuration; Failed with all of its problems, a line each."""
    from contentapp.config import ConfigError, load_config

    try:
        return load_config(file, os.environ)
    except ConfigError as error:
        for problem in error.problems[:-1]:
            click.echo(f"error: {problem}", err=True)
        raise Failed(str(error.problems[-1])) from None

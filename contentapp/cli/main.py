"""``contentapp``: the command line. Commands are imported when they are called, so that ``--help`` comes at once."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

import click

from contentapp import __version__
from contentapp.cli.option import LaterGroup

CONFIG_VARIABLE = "CONTENTAPP_CONFIG"


@dataclass(frozen=True, slots=True)
class Place:
    """Where a command is defined, and its line in the list of commands."""

    module: str
    name: str
    help: str


COMMANDS = {
    "serve": Place("serve", "serve_command", "Run the proxy."),
    "apply": Place("apply", "apply_command", "Make remotes and distributions what files say."),
    "cooldown": Place("cooldown", "cooldown_group", "Which sources are not asked now, and why."),
    "transfer": Place("transfer", "transfer_group", "What is being fetched now, and what was interrupted."),
    "status": Place("status", "status_command", "Whether all is well."),
    "verify": Place("maintenance", "verify_command", "Read everything that is stored again."),
    "gc": Place("maintenance", "gc_command", "Clean up, and make room."),
    "chunks": Place("chunks", "chunks_command", "Write the chunk list of a file."),
    "config": Place("config_check", "config_group", "Look at the configuration."),
    "demo": Place("demo", "demo", "Show the main job, without the internet."),
}
LATER = frozenset({"remote", "repository", "distribution", "sync", "prefetch", "cache"})


class LazyGroup(LaterGroup):
    """Knows its commands by name, and imports only the one that is called."""

    later = LATER

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        place = COMMANDS.get(cmd_name)
        if place is None:
            return super().get_command(ctx, cmd_name)
        command: click.Command = getattr(importlib.import_module(f"contentapp.cli.{place.module}"), place.name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, place.help) for name, place in COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option(
    "--config",
    "file",
    type=click.Path(dir_okay=False),
    metavar="FILE",
    help=f"Configuration file; or {CONFIG_VARIABLE}. Without: embedded defaults. May stand behind the command too.",
)
@click.version_option(__version__, prog_name="contentapp", message="%(prog)s %(version)s")
def cli(file: str | None) -> None:
    """One proxy for all the content of a fleet: container images and files.

    \b
    Examples:
      contentapp serve
      contentapp --config contentapp.yaml serve
      contentapp cooldown list --help
    """
    if file is not None:
        # Commands read it from there, as they do without it; one behind the command's name comes first.
        os.environ[CONFIG_VARIABLE] = file


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """The program. Exit code 0: done, 1: failed, 2: wrong usage; an error is one plain line on stderr."""
    try:
        # A command that ends by ctx.exit or Exit gives its code here.
        status = cli.main(arguments, prog_name="contentapp", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        status = error.exit_code
    except click.UsageError as error:
        path = error.ctx.command_path if error.ctx is not None else "contentapp"
        click.echo(f"error: {_one_line(error)} (see {path} --help)", err=True)
        status = error.exit_code
    except click.ClickException as error:
        click.echo(f"error: {_one_line(error)}", err=True)
        status = error.exit_code
    except click.Abort:
        click.echo("aborted", err=True)
        status = 1
    sys.exit(status if isinstance(status, int) else 0)


def _one_line(error: click.ClickException) -> str:
    text = " ".join(error.format_message().split())
    return f"{text[:1].lower()}{text[1:]}".removesuffix(".")

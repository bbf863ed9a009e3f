"""``contentapp cooldown``: which sources are not asked now, and why."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from contentapp.cli.option import config_option, configuration, format_option


@click.group("cooldown")
def cooldown_group() -> None:
    """Which sources are not asked now, and why.

    \b
    Examples:
      contentapp cooldown list
      contentapp cooldown clear quay
    """


@cooldown_group.command("list")
@click.option("--remote", help="Only those of this remote.")
@config_option
@format_option
def list_command(remote: str | None, file: Path | None, output: str) -> None:
    """List what cools down or waits for its trial, the longest first.

    \b
    Examples:
      contentapp cooldown list
      contentapp cooldown list --remote quay --format json
    """
    from contentapp.cli.client import AdminClient
    from contentapp.cli.output import print_json, print_table

    filters = {} if remote is None else {"remote": remote}
    found = list(AdminClient(configuration(file)).list("cooldowns/", **filters))
    if output == "json":
        print_json(found)
    else:
        columns = ("Remote", "What", "For", "Times", "Reason")
        print_table(columns, map(_row, found), empty="nothing is cooling down")


def _row(cooldown: dict[str, Any]) -> tuple[object, ...]:
    what = " ".join(filter(None, (cooldown["scope"], cooldown["subject"])))
    return cooldown["remote"], what, waiting(cooldown), cooldown["level"], cooldown["reason"]


def waiting(cooldown: dict[str, Any]) -> str:
    """How long it is not asked."""
    from contentapp.cli.output import human_seconds

    if cooldown["trial"]:
        return "on trial"
    return human_seconds(cooldown["retry_after"]) if cooldown["retry_after"] else "trial is next"


@cooldown_group.command("clear")
@click.argument("remote", required=False)
@config_option
@format_option
def clear_command(remote: str | None, file: Path | None, output: str) -> None:
    """Ask the sources of REMOTE, or without it all sources, again at once.

    \b
    Examples:
      contentapp cooldown clear
      contentapp cooldown clear quay
    """
    from contentapp.cli.client import AdminClient
    from contentapp.cli.output import counted, print_json

    body = {} if remote is None else {"remote": remote}
    answer = AdminClient(configuration(file)).post("cooldowns/clear/", body)
    if output == "json":
        print_json(answer)
    else:
        click.echo(f"cleared {counted(answer['cleared'], 'cooldown')}")

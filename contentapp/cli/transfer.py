"""``contentapp transfer``: what is being fetched now."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from contentapp.cli.option import LaterGroup, config_option, configuration, format_option


class TransferGroup(LaterGroup):
    """Its later commands."""

    later = frozenset({"cancel"})


@click.group("transfer", cls=TransferGroup)
def transfer_group() -> None:
    """What is being fetched now.

    \b
    Examples:
      contentapp transfer list
    """


@transfer_group.command("list")
@click.option("--remote", help="Only those from this remote.")
@config_option
@format_option
def list_command(remote: str | None, file: Path | None, output: str) -> None:
    """List the transfers under way, the oldest first.

    \b
    Examples:
      contentapp transfer list
      contentapp transfer list --remote quay --format json
    """
    from contentapp.cli.client import AdminClient
    from contentapp.cli.output import print_json, print_table

    filters = {} if remote is None else {"remote": remote}
    found = list(AdminClient(configuration(file)).list("transfers/", **filters))
    if output == "json":
        print_json(found)
    else:
        columns = ("Content", "Remote", "State", "Arrived", "Size", "Age", "Followers", "Kept")
        print_table(columns, map(_row, found), empty="nothing is being fetched")


def _row(transfer: dict[str, Any]) -> tuple[object, ...]:
    from contentapp.cli.output import human_seconds, human_size

    kept = "in memory" if transfer["windowed"] else "yes" if transfer["keep"] else "no"
    return (
        transfer["key"],
        transfer["remote"],
        transfer["state"],
        human_size(transfer["arrived"]),
        human_size(transfer["size"]),
        human_seconds(transfer["age"]),
        transfer["followers"],
        kept,
    )

"""``contentapp transfer``: what is being fetched now, and what waits to go on."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import click

from contentapp.cli.option import Failed, config_option, configuration, format_option

MOST_NAMED = 10


@click.group("transfer")
def transfer_group() -> None:
    """What is being fetched now, and what waits to go on.

    \b
    Examples:
      contentapp transfer list
      contentapp transfer cancel sha256:9f86d0
    """


@transfer_group.command("list")
@click.option("--remote", help="Only those from this remote.")
@config_option
@format_option
def list_command(remote: str | None, file: Path | None, output: str) -> None:
    """List the transfers under way and the suspended ones, the oldest first.

    A suspended one was interrupted; it goes on when a device asks for its content, or by itself.

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
        columns = ("Key", "Remote", "State", "Arrived", "Size", "Age", "Followers", "Kept")
        print_table(columns, map(_row, found), empty="nothing is being fetched")


def _row(transfer: dict[str, Any]) -> tuple[object, ...]:
    from contentapp.cli.output import human_seconds, human_size

    kept = "in memory" if transfer["windowed"] else "yes" if transfer["keep"] else "no"
    return (
        transfer["key"],
        "?" if transfer["remote"] is None else transfer["remote"],
        transfer["state"],
        human_size(transfer["arrived"]),
        human_size(transfer["size"]),
        human_seconds(transfer["age"]),
        transfer["followers"],
        kept,
    )


def _full(ctx: click.Context, _parameter: click.Parameter, beginnings: tuple[str, ...]) -> tuple[str, ...]:
    """Nothing is the beginning of everything, and not what a script meant whose variable is empty."""
    if "" in beginnings:
        raise click.UsageError("a KEY is empty", ctx)
    return beginnings


@transfer_group.command("cancel")
@click.argument("beginnings", nargs=-1, required=True, metavar="KEY...", callback=_full)
@config_option
@format_option
def cancel_command(beginnings: tuple[str, ...], file: Path | None, output: str) -> None:
    """End transfers, under way or suspended, by their KEY or as much of it as no other begins with.

    Devices that are fed from one are cut off, and nothing of it is kept: whoever asks again begins anew.

    \b
    Examples:
      contentapp transfer cancel sha256:9f86d0
      contentapp transfer cancel 1/disk.qcow2 1/disk.raw
    """
    from contentapp.cli.client import AdminClient
    from contentapp.cli.output import counted, print_json

    client = AdminClient(configuration(file))
    known = {transfer["key"] for transfer in client.list("transfers/")}
    # All are found before the first is ended: a wrong one leaves everything as it is.
    keys = dict.fromkeys(_chosen(beginning, known) for beginning in beginnings)
    cancelled = sum(client.post("transfers/cancel/", {"key": key})["cancelled"] for key in keys)
    if output == "json":
        print_json({"cancelled": cancelled})
    else:
        click.echo(f"cancelled {counted(cancelled, 'transfer')}")


def _chosen(beginning: str, known: Collection[str]) -> str:
    """The key that is this, or the only one that begins so; Failed."""
    from contentapp.cli.output import printable

    if beginning in known:
        return beginning
    found = sorted(key for key in known if key.startswith(beginning))
    if not found:
        raise Failed(f"no transfer has a key that begins with {printable(beginning)}")
    if len(found) > 1:
        more = f" and {len(found) - MOST_NAMED} more" if len(found) > MOST_NAMED else ""
        named = ", ".join(map(printable, found[:MOST_NAMED]))
        raise Failed(f"{len(found)} transfers have a key that begins with {printable(beginning)}: {named}{more}")
    return found[0]

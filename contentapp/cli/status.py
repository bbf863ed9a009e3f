"""``contentapp status``: whether all is well."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from contentapp.cli.option import config_option, configuration, format_option

if TYPE_CHECKING:
    from contentapp.cli.client import AdminClient

MAX_SHOWN = 10


@click.command("status")
@config_option
@format_option
def status_command(file: Path | None, output: str) -> None:
    """Show whether it is ready, what is stored, and what cools down. Exit code 1 when it is not ready.

    \b
    Examples:
      contentapp status
      contentapp status --format json
    """
    from contentapp.cli.client import AdminClient
    from contentapp.cli.output import print_json

    client = AdminClient(configuration(file))
    reason = client.readiness()
    status = client.get("status/")
    if output == "json":
        print_json({"ready": not reason, "reason": reason, **status})
    else:
        for line in _lines(client, status, reason):
            click.echo(line)
    raise click.exceptions.Exit(1 if reason else 0)


def _lines(client: AdminClient, status: dict[str, Any], reason: str) -> Iterator[str]:
    from contentapp.cli.output import counted

    version = status["versions"][0]["version"]
    yield f"contentapp {version} at {client.url}: {'not ready: ' + reason if reason else 'ready'}"
    yield f"storage: {_storage(status['storage'])}"
    artifacts = (
        "the catalog does not answer" if status["artifacts"] is None else counted(status["artifacts"], "artifact")
    )
    yield f"catalog: {artifacts}"
    yield f"transfers: {status['transfers']}"
    yield f"cooldowns: {status['cooldowns']}"
    if status["cooldowns"]:
        yield from _cooldowns(client)


def _storage(use: dict[str, int] | None) -> str:
    from contentapp.cli.output import human_size

    if use is None:
        return "can't be used"
    share = use["used"] * 100 // max(1, use["total"])
    free = human_size(use["disk_free"])
    return f"{human_size(use['used'])} of {human_size(use['total'])} used ({share} %), {free} free on the disk"


def _cooldowns(client: AdminClient) -> Iterator[str]:
    from contentapp.cli.cooldown import waiting
    from contentapp.cli.output import printable

    found = client.get(f"cooldowns/?limit={MAX_SHOWN}")
    for cooldown in found["results"]:
        what = f" ({cooldown['scope']} {cooldown['subject']})" if cooldown["subject"] else ""
        text = f"remote {cooldown['remote']}{what}: {waiting(cooldown)}: {cooldown['reason']}"
        yield f"  {printable(text)}"
    if found["count"] > MAX_SHOWN:
        yield f"  and {found['count'] - MAX_SHOWN} more; see contentapp cooldown list"

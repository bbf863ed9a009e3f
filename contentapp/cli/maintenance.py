"""``contentapp verify`` and ``contentapp gc``: work that the running proxy does, waited for here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from contentapp.cli.option import Decorated, config_option, configuration, format_option


def no_wait_option(function: Decorated) -> Decorated:
    """``--no-wait``, given to the function as a keyword."""
    return click.option("--no-wait", is_flag=True, help="Print the task and return at once.")(function)


@click.command("verify")
@no_wait_option
@config_option
@format_option
def verify_command(*, no_wait: bool, file: Path | None, output: str) -> None:
    """Read everything that is stored again. What is damaged goes, and is fetched again when it is next asked for.

    \b
    Examples:
      contentapp verify
      contentapp verify --no-wait
    """
    from contentapp.cli.output import counted, human_size

    def summary(result: dict[str, Any]) -> str:
        verified = f"{counted(result['verified'], 'artifact')} verified ({human_size(result['size'])})"
        return f"{verified}, {result['damaged']} damaged, {result['missing']} missing"

    _run(file, "repair/", {}, output, summary, no_wait=no_wait)


@click.command("gc")
@click.option("--force", is_flag=True, help="Evict down to the low watermark even if there is room.")
@no_wait_option
@config_option
@format_option
def gc_command(*, force: bool, no_wait: bool, file: Path | None, output: str) -> None:
    """Remove what crashes left behind and what nothing refers to; evict if the cache is too full.

    \b
    Examples:
      contentapp gc
      contentapp gc --force
    """
    from contentapp.cli.output import counted, human_size

    def summary(result: dict[str, Any]) -> str:
        return ", ".join(
            [
                f"{human_size(result['evicted_size'])} evicted",
                f"{counted(result['partials'], 'partial')} removed",
                f"{counted(result['adopted'], 'artifact')} adopted",
                f"{result['damaged']} damaged",
                f"{counted(result['swept'], 'row')} swept",
            ]
        )

    _run(file, "orphans/cleanup/", {"force": force}, output, summary, no_wait=no_wait)


def _run(file: Path | None, path: str, body: dict[str, Any], output: str, summary: Any, *, no_wait: bool) -> None:
    from contentapp.cli.client import AdminClient
    from contentapp.cli.output import print_json
    from contentapp.cli.task import wait_for

    client = AdminClient(configuration(file))
    href = client.post(path, body)["task"]
    if no_wait:
        print_json({"task": href}) if output == "json" else click.echo(href)
        return
    task = wait_for(client, href)
    print_json(task) if output == "json" else click.echo(summary(task["result"]))

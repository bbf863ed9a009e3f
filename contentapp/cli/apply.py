"""``contentapp apply``: make remotes and distributions what files say."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from contentapp.cli.option import Failed, config_option, configuration, format_option

if TYPE_CHECKING:
    from contentapp.config import DeclaredResources

SECRETS = ("password", "client_key", "proxy_password")


@click.command("apply")
@click.option(
    "-f",
    "--file",
    "sources",
    type=click.Path(dir_okay=False, path_type=Path),
    multiple=True,
    required=True,
    metavar="FILE",
    help="YAML file with remotes and distributions; may be given several times.",
)
@click.option("--prune", is_flag=True, help="Remove all remotes and distributions that are in none of the files.")
@click.option("--dry-run", is_flag=True, help="Only show what would change.")
@config_option
@format_option
def apply_command(*, sources: tuple[Path, ...], prune: bool, dry_run: bool, file: Path | None, output: str) -> None:
    """Create, update, and with --prune remove remotes and distributions, so that they are as the files say.

    Doing it again changes nothing. Secrets given as {env: …} or {file: …} are read by the proxy, on its host. What the
    proxy's own configuration file declares comes back when it is started again.

    \b
    Examples:
      contentapp apply -f remotes.yaml
      contentapp apply -f remotes.yaml -f distributions.yaml --prune --dry-run
    """
    from contentapp.cli.client import AdminClient
    from contentapp.cli.output import print_json

    client = AdminClient(configuration(file))
    declared = [_load(source) for source in sources]
    resources = {
        "remotes": [_plain(remote) for part in declared for remote in part.remotes],
        "distributions": [dict(distribution) for part in declared for distribution in part.distributions],
    }
    answer = client.post("apply/", {"resources": resources, "prune": prune, "dry_run": dry_run})
    local = [warning for part in declared for warning in part.warnings if not _is_of_resource(warning.key)]
    for warning in [*map(str, local), *answer["warnings"]]:
        click.echo(f"warning: {warning}", err=True)
    if output == "json":
        print_json({"changes": answer["changes"], "dry_run": dry_run})
    else:
        _show(answer["changes"], dry_run=dry_run)


def _load(source: Path) -> DeclaredResources:
    from contentapp.config import ConfigError, load_resources

    try:
        return load_resources(source, os.environ)
    except ConfigError as error:
        for problem in error.problems[:-1]:
            click.echo(f"error: {problem}", err=True)
        raise Failed(str(error.problems[-1])) from None


def _plain(remote: Mapping[str, Any]) -> dict[str, Any]:
    """As it may be declared again: a secret that was given literally is text."""
    return {name: value["literal"] if _is_literal(name, value) else value for name, value in remote.items()}


def _is_literal(name: str, value: Any) -> bool:
    return name in SECRETS and isinstance(value, Mapping) and "literal" in value


def _is_of_resource(key: str) -> bool:
    """The proxy warns of these itself: it knows its own environment and files."""
    return key.startswith(("remotes", "distributions"))


def _show(changes: list[dict[str, Any]], *, dry_run: bool) -> None:
    from contentapp.cli.output import print_table

    verb = "would be " if dry_run else ""
    rows = [
        (
            "unchanged" if change["action"] == "unchanged" else verb + change["action"],
            change["kind"],
            change["name"],
            ", ".join(change["fields"]),
        )
        for change in changes
    ]
    print_table(("Change", "Kind", "Name", "Fields"), rows, empty="nothing is declared")

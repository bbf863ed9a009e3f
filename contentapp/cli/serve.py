"""``contentapp serve``: the proxy itself."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import click

from contentapp.cli.option import Failed, config_option, configuration

if TYPE_CHECKING:
    from contentapp.config import Config


@click.command("serve")
@config_option
def serve_command(file: Path | None) -> None:
    """Run the proxy until SIGTERM or Ctrl-C.

    Without a configuration file it serves docker.io, quay.io, ghcr.io, registry.k8s.io and mcr.microsoft.com on port
    8080, and keeps what it has fetched in ./data.

    \b
    Examples:
      contentapp serve
      contentapp serve --config contentapp.yaml
      CONTENTAPP_CONTENT__LISTEN=127.0.0.1:9000 contentapp serve
    """
    raise click.exceptions.Exit(_serve(configuration(file)))


def _serve(config: Config) -> int:
    from contentapp.core.errors import ContentAppError
    from contentapp.logs import configure_logs
    from contentapp.processes.supervisor import StartFailed, Supervisor, hold_signals

    class Announcing(Supervisor):
        """Says how to use it once all sockets listen."""

        def _watch(self) -> None:
            _announce(self.config)
            super()._watch()

    hold_signals()
    configure_logs(config.log.format, config.log.level)
    _warn(config)
    try:
        return Announcing(config).run()
    except (StartFailed, ContentAppError) as error:
        raise Failed(str(error)) from None


def _warn(config: Config) -> None:
    import logging

    import structlog

    logging.getLogger("alembic").setLevel(logging.WARNING)  # it tells of each of its plugins
    log = structlog.get_logger("contentapp.config")
    for warning in config.warnings:
        log.warning("configuration", warning=str(warning))


def _announce(config: Config) -> None:
    from contentapp.cli.announce import announcement

    with suppress(OSError):  # nobody reads it: no reason not to serve
        click.echo(announcement(config))

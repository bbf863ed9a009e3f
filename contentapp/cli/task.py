"""Waiting for a task: a progress bar on a terminal, plain lines elsewhere, both on stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import click

from contentapp.cli.client import AdminClient
from contentapp.cli.option import Failed

FIRST_POLL_SECONDS = 0.05
LAST_POLL_SECONDS = 1.0
STEPS = 10

Report = Callable[[dict[str, Any]], None]


def wait_for(client: AdminClient, href: str) -> dict[str, Any]:
    """The task once it has completed; Failed with its error if it has not."""
    try:
        with _progress() as report:
            task = _follow(client, href, report)
    except KeyboardInterrupt:
        raise Failed(f"not waited for any longer; the task goes on: {href}") from None
    if task["state"] != "completed":
        reason = (task["error"] or {}).get("description", "no reason is given")
        raise Failed(f"{task['name']} {task['state']}: {reason}")
    return task


def _follow(client: AdminClient, href: str, report: Report) -> dict[str, Any]:
    pause = FIRST_POLL_SECONDS
    while True:
        task: dict[str, Any] = client.get(href)
        for progress in task["progress_reports"]:
            report(progress)
        if task["finished_at"] is not None:
            return task
        time.sleep(pause)
        pause = min(2 * pause, LAST_POLL_SECONDS)


@contextmanager
def _progress() -> Iterator[Report]:
    """What to call with each progress report."""
    if not sys.stderr.isatty():
        yield _Lines().report
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        shown = bar.add_task("waiting", total=None)
        yield lambda progress: bar.update(
            shown, description=progress["message"], completed=progress["done"], total=progress["total"]
        )


class _Lines:
    """At most one line for each tenth of the work."""

    def __init__(self) -> None:
        self.step = -1

    def report(self, progress: dict[str, Any]) -> None:
        done, total = progress["done"], progress["total"]
        if total and (step := done * STEPS // total) > self.step:
            self.step = step
            click.echo(f"{progress['message']}: {done} of {total}", err=True)

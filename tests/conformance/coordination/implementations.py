"""The implementations of Coordination that the suite runs against; a new one is one more entry."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from contentapp.coordination.base import Coordination
from contentapp.coordination.local import LocalCoordination


@dataclass(frozen=True, slots=True)
class Implementation:
    """place: where instances meet, from an empty folder of the test's; open: one instance there, with a clock;
    leftovers: what is still there after all were closed, and should not."""

    place: Callable[[Path], str]
    open: Callable[[str, Callable[[], float]], Coordination]
    leftovers: Callable[[str], list[str]]


def _local_leftovers(place: str) -> list[str]:
    return [str(path) for name in ("sockets", "events", "leases") for path in (Path(place) / name).glob("*")]


IMPLEMENTATIONS = {
    "local": Implementation(
        place=lambda folder: str(folder / "run"),
        open=lambda place, clock: LocalCoordination(Path(place), clock=clock),
        leftovers=_local_leftovers,
    ),
}

"""The background scrub: spread over the interval, going on after a restart."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from contentapp.core.errors import CatalogUnavailable
from contentapp.core.settings import DAY, EngineSettings
from contentapp.tasks.scrub import Scrub
from tests.unit.tasks.conftest import Installation

NOW = 1_700_000_000.0


class Clock:
    """Time that passes only in sleep. `until`: a sleep beyond it does not end."""

    def __init__(self, until: float = float("inf")) -> None:
        self.now = NOW
        self.until = NOW + until
        self.pauses: list[float] = []

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        if self.now + seconds > self.until:
            raise CatalogUnavailable("the test has seen enough")
        self.pauses.append(seconds)
        self.now += seconds


def scrub(installation: Installation, clock: Clock, *, days: float = 30.0) -> Scrub:
    settings = EngineSettings(scrub_interval_days=days)
    file = installation.folder / "scrub-position"
    return Scrub(installation.verifier(), installation.upkeep, settings, file, clock=clock, sleep=clock.sleep)


async def add(installation: Installation, count: int) -> None:
    for number in range(count):
        await installation.add(bytes([number]) * 10)


async def run_on(scrub: Scrub) -> None:
    """Run until the clock stops."""
    with pytest.raises(CatalogUnavailable):
        while True:
            await scrub.run()


async def test_all_are_read_in_half_the_interval_evenly(installation: Installation) -> None:
    await add(installation, 4)
    clock = Clock()
    scrubbing = scrub(installation, clock, days=8)
    await scrubbing.run()
    assert scrubbing.found.verified == 4
    assert clock.now == NOW + 4 * DAY
    assert max(clock.pauses) <= 3600


@pytest.mark.parametrize(("days", "verified"), [(0.5, 1), (1.5, 2), (3.5, 4), (4.5, 5)])
async def test_each_at_its_time(installation: Installation, days: float, verified: int) -> None:
    await add(installation, 4)
    scrubbing = scrub(installation, Clock(days * DAY), days=8)
    await run_on(scrubbing)
    assert scrubbing.found.verified == verified


async def test_it_goes_on_after_a_restart_and_catches_up(installation: Installation) -> None:
    await add(installation, 4)
    first = scrub(installation, Clock(1.5 * DAY), days=8)
    await run_on(first)
    clock = Clock(3.1 * DAY)
    clock.now += 2.2 * DAY
    second = scrub(installation, clock, days=8)
    await run_on(second)
    assert (first.found.verified, second.found.verified) == (2, 2), "the third at once, the fourth in time"


async def test_damage_is_found(installation: Installation) -> None:
    digest = await installation.add(b"soon damaged")
    installation.path(digest).write_bytes(b"soon damageD")
    scrubbing = scrub(installation, Clock())
    await scrubbing.run()
    assert scrubbing.found.damaged == 1
    assert not await installation.is_stored(digest)


@pytest.mark.parametrize(
    "position", ["", "[]", "{}", "nonsense", json.dumps({"began": "x", "after": "", "done": 0}), "[" * 100_000]
)
async def test_a_position_that_cannot_be_read_means_from_the_start(installation: Installation, position: str) -> None:
    await add(installation, 2)
    (installation.folder / "scrub-position").write_text(position)
    scrubbing = scrub(installation, Clock())
    await scrubbing.run()
    assert scrubbing.found.verified == 2


async def test_a_clock_that_was_set_back_makes_nobody_wait_for_years(installation: Installation) -> None:
    await add(installation, 1)
    position = {"began": NOW + 1000 * DAY, "after": "", "done": 0}
    (installation.folder / "scrub-position").write_text(json.dumps(position))
    scrubbing = scrub(installation, Clock(16 * DAY))
    await run_on(scrubbing)
    assert scrubbing.found.verified == 2


async def test_a_position_that_cannot_be_kept_stops_nothing(installation: Installation, tmp_path: Path) -> None:
    await add(installation, 2)
    (installation.folder / "scrub-position.new").mkdir()
    scrubbing = scrub(installation, Clock())
    await scrubbing.run()
    assert scrubbing.found.verified == 2


@pytest.mark.parametrize(("days", "is_wanted"), [(0.0, False), (30.0, True)])
async def test_no_interval_no_scrub(installation: Installation, days: float, is_wanted: bool) -> None:
    assert scrub(installation, Clock(), days=days).is_wanted is is_wanted

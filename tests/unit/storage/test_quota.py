"""The ledger by itself: P9's arithmetic, over several processes' slots and the disk's own limits."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from contentapp.core.errors import NoSpace, StorageUnavailable
from contentapp.core.settings import GIB, MIB
from contentapp.storage.intake import rest_of
from contentapp.storage.quota import DiskSpace, HostLedger, Ledger, MemoryLedger, disk_space
from contentapp.storage.reservation import STEP, Reservation
from tests.conformance.storage.kit import note_of

LIMIT = 1000
PLENTY = DiskSpace(1 << 50, 1 << 50)

MakeLedger = Callable[[DiskSpace], Ledger]


@pytest.fixture(params=["host", "memory"])
def make_ledger(request: pytest.FixtureRequest, tmp_path: Path) -> MakeLedger:
    if request.param == "host":
        return lambda disk: HostLedger(tmp_path / "space", LIMIT, lambda: disk)
    return lambda disk: MemoryLedger(LIMIT, lambda: disk)


def test_limit(make_ledger: MakeLedger) -> None:
    ledger = make_ledger(PLENTY)
    assert ledger.try_reserve(LIMIT)
    assert not ledger.try_reserve(1)
    assert ledger.try_reserve(0)
    ledger.move(reserved=-1, unwritten=-1)
    assert ledger.try_reserve(1)
    ledger.close()


def test_the_disk_bounds_what_is_not_written_yet(make_ledger: MakeLedger) -> None:
    ledger = make_ledger(DiskSpace(0, 100))
    assert not ledger.try_reserve(101)
    assert ledger.try_reserve(60)
    assert not ledger.try_reserve(41)
    ledger.wrote(60)  # the disk's 100 are what is free after that
    assert ledger.try_reserve(100)
    ledger.close()


def test_the_disk_bounds_over_all_processes(tmp_path: Path) -> None:
    one, other = (HostLedger(tmp_path / "space", LIMIT, lambda: DiskSpace(0, 100)) for _ in range(2))
    assert one.try_reserve(60)
    assert not other.try_reserve(41)
    one.wrote(30)
    assert not other.try_reserve(71)
    assert other.try_reserve(70)
    one.close()
    other.close()


@pytest.mark.parametrize(
    ("disk", "usable"),
    [
        (DiskSpace(100, 50), 49),
        (DiskSpace(GIB, GIB), GIB - GIB // 100),
        (DiskSpace(1000 * GIB, 10 * GIB), 10 * GIB - 64 * MIB),
        (DiskSpace(1000 * GIB, 0), -64 * MIB),
    ],
)
def test_margin(disk: DiskSpace, usable: int) -> None:
    assert disk.usable == usable


def test_a_vanished_disk(tmp_path: Path) -> None:
    ledger = HostLedger(tmp_path / "space", LIMIT, lambda: disk_space(tmp_path / "absent"))
    for call in (lambda: ledger.try_reserve(1), ledger.use):
        with pytest.raises(StorageUnavailable, match="No such file"):
            call()
    ledger.close()


def test_after_close(tmp_path: Path) -> None:
    ledger = HostLedger(tmp_path / "space", LIMIT, lambda: PLENTY)
    assert ledger.try_reserve(10)
    ledger.close()
    ledger.close()
    ledger.move(reserved=-10)
    with pytest.raises(StorageUnavailable):
        ledger.try_reserve(1)
    assert sorted(path.name for path in (tmp_path / "space").iterdir()) == ["ledger"]


@pytest.mark.parametrize("content", [b"", b"short", b"\xff" * 16, b"\xff" * 100])
def test_a_damaged_ledger_counts_from_nothing(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "ledger").write_bytes(content)
    ledger = HostLedger(tmp_path, LIMIT, lambda: PLENTY)
    assert ledger.use().used == 0
    ledger.set_stored(7)
    assert ledger.use().stored == 7
    ledger.close()


def test_counters_never_go_below_nothing(make_ledger: MakeLedger) -> None:
    ledger = make_ledger(PLENTY)
    ledger.move(stored=-5)
    ledger.move(stored=3)
    assert ledger.use().stored == 3
    ledger.close()


def test_both_sides_of_a_fork_are_refused(tmp_path: Path) -> None:
    """In a process of its own, as forking this one would take its threads' locks along."""
    script = """
import os, sys
from pathlib import Path
from contentapp.storage.quota import DiskSpace, HostLedger
before = HostLedger(Path(sys.argv[1]), 100, lambda: DiskSpace(1 << 40, 1 << 40))
used = HostLedger(Path(sys.argv[1]), 100, lambda: DiskSpace(1 << 40, 1 << 40))
assert used.try_reserve(10)
if child := os.fork():
    _, status = os.waitpid(child, 0)
    assert before.use().reserved == 10
    sys.exit(os.waitstatus_to_exitcode(status))
assert before.try_reserve(90)
assert not before.try_reserve(1)
try:
    used.try_reserve(1)
except RuntimeError:
    os._exit(0)
os._exit(1)
"""
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True)


def test_a_suspended_partial_is_resumed(make_ledger: MakeLedger) -> None:
    ledger = make_ledger(PLENTY)
    ledger.set_suspended(400)
    assert ledger.try_reserve(300)
    assert not ledger.try_resume(size=400, rest=301)
    assert ledger.use().reserved == 700
    assert ledger.try_resume(size=400, rest=300)
    assert ledger.use().reserved == LIMIT
    ledger.move(reserved=-700, unwritten=-300)
    assert ledger.use().reserved == 300
    ledger.close()


def test_the_disk_bounds_what_is_resumed(make_ledger: MakeLedger) -> None:
    """What is there already has its room on the disk."""
    ledger = make_ledger(DiskSpace(0, 100))
    ledger.set_suspended(400)
    assert not ledger.try_resume(size=400, rest=101)
    assert ledger.try_resume(size=400, rest=60)
    assert not ledger.try_reserve(41)
    ledger.close()


def test_what_is_discarded_is_given_back(make_ledger: MakeLedger) -> None:
    ledger = make_ledger(PLENTY)
    ledger.set_suspended(400)
    ledger.discard(300)
    assert ledger.use().reserved == 100
    ledger.discard(300)
    assert ledger.use().reserved == 0
    ledger.close()
    ledger.discard(1)


def die(ledger: HostLedger) -> None:
    """What the kernel does with a process that is killed."""
    os.close(ledger._slot)
    ledger._slot = -1
    ledger.close()


@pytest.mark.parametrize("look", ["use", "try_reserve", "try_resume", "discard", "set_suspended"])
def test_what_the_dead_had_written_is_suspended(tmp_path: Path, look: str) -> None:
    """It may be resumed; until it is counted, it counts as what they had written."""
    dead, living = (HostLedger(tmp_path / "space", LIMIT, lambda: PLENTY) for _ in range(2))
    assert dead.try_reserve(500)
    dead.wrote(200)
    die(dead)
    if look == "try_reserve":
        assert not living.try_reserve(LIMIT - 199)
    elif look == "try_resume":
        assert living.try_resume(size=200, rest=0)
    elif look == "discard":
        living.discard(150)
    elif look == "set_suspended":
        living.set_suspended(70)
    assert living.use().reserved == {"discard": 50, "set_suspended": 70}.get(look, 200)
    assert len(list((tmp_path / "space").glob("*.slot"))) == 1
    living.close()


def test_what_has_ended_properly_left_nothing(tmp_path: Path) -> None:
    """Its slot may be open in another process that is about to look at it."""
    ended, living = (HostLedger(tmp_path / "space", LIMIT, lambda: PLENTY) for _ in range(2))
    assert ended.try_reserve(500)
    ended.wrote(200)
    path = ended._slot_path
    opened = os.open(path, os.O_RDONLY)
    ended.close()
    real = os.open
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(living, "_other_slots", lambda: iter([path]))
        patch.setattr(os, "open", lambda name, *args: os.dup(opened) if name == path else real(name, *args))
        assert living.use().reserved == 0
    os.close(opened)
    living.close()


def test_reservation_grows_in_steps() -> None:
    reservation = Reservation(MemoryLedger(GIB, lambda: PLENTY), 10)
    assert [reservation.missing(size) for size in (0, 10, 11, 10 + STEP, 11 + STEP)] == [0, 0, STEP, STEP, STEP + 1]


def test_a_bounded_reservation_grows_to_its_bound() -> None:
    reservation = Reservation(MemoryLedger(GIB, lambda: PLENTY), 10, most=STEP + 20)
    assert [reservation.missing(size) for size in (10, 11, STEP + 20)] == [0, STEP, STEP + 10]
    with pytest.raises(NoSpace):
        reservation.missing(STEP + 21)
    assert reservation.try_grow(STEP)
    reservation.wrote(STEP + 10)
    assert reservation.missing(10) == 10
    with pytest.raises(NoSpace):
        reservation.missing(11)


@pytest.mark.parametrize(
    ("size", "offset", "limit", "rest"),
    [
        (100, 30, GIB, 70),
        (100, 100, 0, 0),
        (None, 30, GIB, STEP),
        (None, 30, 400, 70),
        (None, 100, 400, 0),
        (None, 130, 400, 0),  # the quota has become smaller
    ],
)
def test_what_is_reserved_for_the_rest(size: int | None, offset: int, limit: int, rest: int) -> None:
    assert rest_of(note_of("key", bytes(offset), size=size), limit) == rest


class Ledgers(RuleBasedStateMachine):
    """Processes come, reserve, write, store, and go or die: then their slot is closed, as by the kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.stored = 0
        self.suspended = 0
        self.living: list[tuple[HostLedger, list[tuple[Reservation, list[int]]]]] = []

    @property
    def space(self) -> Path:
        return Path(self.folder.name) / "space"

    def reserved(self) -> int:
        return sum(sizes[0] for _, reservations in self.living for _, sizes in reservations)

    @precondition(lambda self: len(self.living) < 4)
    @rule()
    def start(self) -> None:
        self.living.append((HostLedger(self.space, LIMIT, lambda: PLENTY), []))

    @precondition(lambda self: self.living)
    @rule(data=st.data(), size=st.integers(0, LIMIT + 100))
    def reserve(self, data: st.DataObject, size: int) -> None:
        ledger, reservations = data.draw(st.sampled_from(self.living))
        fits = self.stored + self.suspended + self.reserved() + size <= LIMIT
        assert ledger.try_reserve(size) == fits
        if fits:
            reservations.append((Reservation(ledger, size), [size, 0]))

    @precondition(lambda self: any(reservations for _, reservations in self.living))
    @rule(data=st.data(), end=st.sampled_from(["release", "store", "suspend"]), share=st.integers(0, 100))
    def end(self, data: st.DataObject, end: str, share: int) -> None:
        _, reservations = data.draw(st.sampled_from([living for living in self.living if living[1]]))
        reservation, sizes = reservations.pop(data.draw(st.integers(0, len(reservations) - 1)))
        written = sizes[1] + (sizes[0] - sizes[1]) * share // 100
        reservation.wrote(written - sizes[1])
        getattr(reservation, end)()
        self.stored += written if end == "store" else 0
        self.suspended += written if end == "suspend" else 0

    @precondition(lambda self: self.living and self.suspended)
    @rule(data=st.data(), share=st.integers(0, 100), rest=st.integers(0, LIMIT))
    def resume(self, data: st.DataObject, share: int, rest: int) -> None:
        ledger, reservations = data.draw(st.sampled_from(self.living))
        size = self.suspended * share // 100
        fits = self.stored + self.suspended + self.reserved() + rest <= LIMIT
        assert ledger.try_resume(size=size, rest=rest) == fits
        if fits:
            self.suspended -= size
            reservations.append((Reservation(ledger, size + rest, written=size), [size + rest, size]))

    @precondition(lambda self: self.living)
    @rule(data=st.data(), size=st.integers(0, LIMIT))
    def discard(self, data: st.DataObject, size: int) -> None:
        ledger, _ = data.draw(st.sampled_from(self.living))
        ledger.discard(size)
        self.suspended = max(0, self.suspended - size)

    @precondition(lambda self: self.living)
    @rule(data=st.data(), size=st.integers(0, LIMIT))
    def correct(self, data: st.DataObject, size: int) -> None:
        ledger, _ = data.draw(st.sampled_from(self.living))
        ledger.set_stored(size)
        self.stored = size

    @precondition(lambda self: self.living)
    @rule(data=st.data(), size=st.integers(0, LIMIT))
    def delete(self, data: st.DataObject, size: int) -> None:
        ledger, _ = data.draw(st.sampled_from(self.living))
        ledger.move(stored=-size)
        self.stored = max(0, self.stored - size)

    @precondition(lambda self: self.living)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        self.living.pop(data.draw(st.integers(0, len(self.living) - 1)))[0].close()

    @precondition(lambda self: self.living)
    @rule(data=st.data())
    def die(self, data: st.DataObject) -> None:
        ledger, reservations = self.living.pop(data.draw(st.integers(0, len(self.living) - 1)))
        self.suspended += sum(sizes[1] for _, sizes in reservations)
        if ledger._slot >= 0:
            os.close(ledger._slot)
            ledger._slot = -1
        ledger.close()

    @invariant()
    def all_agree(self) -> None:
        for ledger, _ in self.living:
            use = ledger.use()
            assert (use.stored, use.reserved) == (self.stored, self.suspended + self.reserved())

    @invariant()
    def nothing_piles_up(self) -> None:
        if self.living:
            assert len(list(self.space.glob("*.slot"))) <= len(self.living)

    def teardown(self) -> None:
        for ledger, _ in self.living:
            ledger.close()
        self.folder.cleanup()


TestLedgers = Ledgers.TestCase
TestLedgers.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)

"""Lock files: one holder, whatever dies or is removed meanwhile."""

from __future__ import annotations

import fcntl
import os
import threading
from pathlib import Path

import pytest

from contentapp.coordination.lease_file import DRAFT, HeldFile, LeaseFolder


def acquired(folder: LeaseFolder, key: str = "key", owner: str = "me") -> HeldFile:
    found = folder.acquire(key, owner)
    assert isinstance(found, HeldFile)
    return found


def test_the_second_learns_who_holds_it(tmp_path: Path) -> None:
    one, two = LeaseFolder(tmp_path), LeaseFolder(tmp_path)
    held = acquired(one, owner="1-abc.sock")
    assert two.acquire("key", "2-def.sock") == "1-abc.sock"
    assert one.acquire("key", "1-abc.sock") == "1-abc.sock"
    held.release()
    acquired(two).release()
    assert list(tmp_path.iterdir()) == []


def test_descriptors_are_not_inherited(tmp_path: Path) -> None:
    held = acquired(LeaseFolder(tmp_path))
    assert not os.get_inheritable(held.fileno)
    held.release()


def test_what_a_dead_holder_left_is_taken_over(tmp_path: Path) -> None:
    folder = LeaseFolder(tmp_path)
    os.close(acquired(folder, owner="dead").fileno)
    held = acquired(folder, owner="alive")
    assert folder.acquire("key", "third") == "alive"
    held.release()


def test_who_opened_it_before_its_release_does_not_remove_anothers_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One opens the file; its holder releases it; another creates it anew; the first locks what it had opened."""
    folder = LeaseFolder(tmp_path)
    held = acquired(folder, owner="first")
    second: list[HeldFile] = []

    def flock_after_another_took_it(fileno: int, operation: int) -> None:
        monkeypatch.undo()
        held.release()
        second.append(acquired(folder, owner="second"))
        fcntl.flock(fileno, operation)

    monkeypatch.setattr(fcntl, "flock", flock_after_another_took_it)
    assert folder.acquire("key", "third") == "second"
    assert second[0].path.exists()
    second[0].release()


def test_reaping_takes_only_what_nobody_holds(tmp_path: Path) -> None:
    folder = LeaseFolder(tmp_path)
    alive = acquired(folder, "alive", "alive")
    for number in range(3):
        os.close(acquired(folder, f"dead {number}").fileno)
    (tmp_path / f"{DRAFT}123").touch()
    assert folder.reap() == 4
    assert list(tmp_path.iterdir()) == [alive.path]
    assert folder.acquire("alive", "other") == "alive"
    alive.release()


def test_a_folder_that_is_gone_is_an_error(tmp_path: Path) -> None:
    folder = LeaseFolder(tmp_path / "leases")
    (tmp_path / "leases").rmdir()
    with pytest.raises(OSError, match="No such file"):
        folder.acquire("key", "me")
    assert not list(tmp_path.iterdir())


def test_never_two_holders_among_threads_that_release_die_and_reap(tmp_path: Path) -> None:
    """flock belongs to the open file, so threads contend as processes do."""
    folder = LeaseFolder(tmp_path / "leases")
    inside: list[int] = []
    violations: list[int] = []
    before = len(list(Path("/proc/self/fd").iterdir()))

    def contend(number: int) -> None:
        rounds = 0
        while rounds < 100:
            found = folder.acquire("key", str(number))
            if not isinstance(found, HeldFile):
                continue
            inside.append(number)
            violations.extend([number] * (len(inside) != 1))
            inside.remove(number)
            rounds += 1
            if rounds % 3:
                found.release()
            else:
                os.close(found.fileno)
            if rounds % 10 == 0:
                folder.reap()

    threads = [threading.Thread(target=contend, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert violations == []
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    folder.reap()
    assert list((tmp_path / "leases").iterdir()) == []

"""What only the implementation for one host can meet: folders that can't be used, holders that hang."""

from __future__ import annotations

import asyncio
import logging
import socket
import sys
from pathlib import Path

import pytest

from contentapp.coordination.base import FlightProgress, FlightState, Following, Lease
from contentapp.coordination.local import LocalCoordination
from contentapp.core.cooldown import CooldownRule, Scope, ScopeKind

HOLD_AND_HANG = """
import asyncio, sys, os, signal
from pathlib import Path
from contentapp.coordination.local import LocalCoordination

async def main():
    coordination = LocalCoordination(Path(sys.argv[1]))
    await coordination.start()
    await coordination.lease("key")
    print("held", flush=True)
    os.kill(os.getpid(), signal.SIGSTOP)

asyncio.run(main())
"""


async def test_a_holder_that_hangs_is_waited_for_but_not_for_ever(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", HOLD_AND_HANG, str(tmp_path), stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    assert await process.stdout.readline() == b"held\n"
    coordination = LocalCoordination(tmp_path, holder_wait_seconds=0.3)
    await coordination.start()
    one, two = await asyncio.gather(coordination.lease("key"), coordination.lease("key"))
    assert isinstance(one, Lease) != isinstance(two, Lease), "one goes on, the other follows it"
    process.kill()
    await process.wait()
    await coordination.close()
    assert "does not answer" in caplog.text


async def test_without_a_folder_one_process_still_has_one_flight(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    coordination = LocalCoordination(tmp_path / "file" / "run")
    await coordination.start()
    lease, following = await coordination.lease("key"), await coordination.lease("key")
    assert isinstance(lease, Lease)
    assert isinstance(following, Following)
    lease.publish(FlightProgress(key="key", attempt="1", state=FlightState.VERIFIED))
    await lease.release()
    seen = [item.progress.attempt async for item in following.updates()]
    assert seen == ["1"]
    await following.close()
    heard: list[str] = []
    coordination.subscribe("t", heard.append)
    coordination.publish("t", "x")
    await asyncio.sleep(0)
    assert heard == ["x"]
    scope = Scope(ScopeKind.HOST, 1, "quay", "x")
    await coordination.record_failure(scope, CooldownRule(), "x")
    assert not (await coordination.admit([scope])).is_admitted
    assert await coordination.reserve("x", 1, 1, 0) == pytest.approx(1, abs=1e-3)
    assert await coordination.transfers() == []
    await coordination.close()
    assert len([r for r in caplog.records if r.levelno >= logging.WARNING]) == 3  # folder, and two databases


async def test_a_lease_folder_that_vanished_costs_only_the_sharing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    coordination = LocalCoordination(tmp_path)
    await coordination.start()
    (tmp_path / "leases").rmdir()
    lease = await coordination.lease("key")
    assert isinstance(lease, Lease)
    assert isinstance(await coordination.lease("key"), Following)
    await lease.release()
    await coordination.close()
    assert "can't lock" in caplog.text


async def test_starting_removes_what_dead_processes_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, kind in (("sockets", socket.SOCK_SEQPACKET), ("events", socket.SOCK_DGRAM)):
        (tmp_path / name).mkdir()
        with socket.socket(socket.AF_UNIX, kind) as sock:
            monkeypatch.chdir(tmp_path / name)  # an address is short
            sock.bind("1-dead.sock")
    (tmp_path / "leases").mkdir()
    (tmp_path / "leases" / "dead").touch()
    coordination = LocalCoordination(tmp_path)
    await coordination.start()
    names = [path.name for folder in ("sockets", "events", "leases") for path in (tmp_path / folder).iterdir()]
    assert len(names) == 2
    assert not {"1-dead.sock", "dead"} & set(names)
    await coordination.close()


async def test_folders_are_private(tmp_path: Path) -> None:
    coordination = LocalCoordination(tmp_path / "run")
    await coordination.start()
    for name in ("sockets", "events", "leases"):
        assert (tmp_path / "run" / name).stat().st_mode & 0o777 == 0o700
    await coordination.close()
    await coordination.close()


async def test_closing_one_that_was_never_started(tmp_path: Path) -> None:
    await LocalCoordination(tmp_path).close()


async def test_the_loop_is_never_held_up_by_publishing(tmp_path: Path) -> None:
    """Ten thousand publishes to followers who do not read take no longer than they take by themselves."""
    coordination = LocalCoordination(tmp_path)
    await coordination.start()
    lease = await coordination.lease("key")
    assert isinstance(lease, Lease)
    followings = [await coordination.lease("key") for _ in range(10)]
    started = asyncio.get_running_loop().time()
    for arrived in range(10_000):
        lease.publish(FlightProgress(key="key", attempt="1", arrived=arrived))
    assert asyncio.get_running_loop().time() - started < 2
    assert lease.followers() == 10
    for following in followings:
        assert isinstance(following, Following)
        await following.close()
    await coordination.close()

"""A process that does to a coordination what its parent tells it, one JSON object a line."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from contentapp.coordination.base import Coordination, FlightProgress, FlightState, Following, Lease
from contentapp.core.cooldown import CooldownRule, Scope, ScopeKind
from contentapp.core.errors import LeaderLost
from tests.conformance.coordination.implementations import IMPLEMENTATIONS


class Program:
    """Its operations are its methods; they take and give JSON."""

    def __init__(self) -> None:
        self.now = 0.0
        self.coordination: Coordination
        self.leases: dict[str, Lease] = {}
        self.events: list[list[str]] = []

    async def open(self, implementation: str, place: str, now: float) -> None:
        self.now = now
        self.coordination = IMPLEMENTATIONS[implementation].open(place, lambda: self.now)
        await self.coordination.start()

    async def close(self) -> None:
        await self.coordination.close()

    async def lease(self, key: str) -> str:
        """Whether it leads or follows."""
        found = await self.coordination.lease(key)
        if isinstance(found, Following):
            await found.close()
            return "follows"
        self.leases[key] = found
        return "leads"

    async def spool(self, key: str, attempt: str, size: int) -> str:
        """Publish an attempt with this much in its spool; the digest of it."""
        data = os.urandom(size)
        with tempfile.TemporaryFile() as file:
            file.write(data)
            file.flush()
            progress = FlightProgress(key=key, attempt=attempt, state=FlightState.RUNNING, arrived=size)
            self.leases[key].publish(progress, file.fileno())
        return hashlib.sha256(data).hexdigest()

    async def publish(self, key: str, attempt: str, state: str, arrived: int) -> None:
        self.leases[key].publish(FlightProgress(key=key, attempt=attempt, state=FlightState(state), arrived=arrived))

    async def followers(self, key: str) -> int:
        return self.leases[key].followers()

    async def release(self, key: str) -> None:
        await self.leases.pop(key).release()

    async def follow(self, key: str) -> dict[str, Any]:
        """Follow to the end: the states seen, the digests of the spools so far, and how it ended."""
        found = await self.coordination.lease(key)
        assert isinstance(found, Following)
        states, spools, end = [], {}, "released"
        try:
            async for followed in found.updates():
                states.append([followed.progress.attempt, str(followed.progress.state)])
                if followed.fileno is not None:
                    data = os.pread(followed.fileno, followed.progress.arrived, 0)
                    spools[followed.progress.attempt] = hashlib.sha256(data).hexdigest()
                    os.close(followed.fileno)
        except LeaderLost:
            end = "lost"
        await found.close()
        return {"states": states, "spools": spools, "end": end}

    async def contend(self, key: str, folder: str, tasks: int, rounds: int) -> int:
        """Tasks that each get the lease so many times; how often there were two holders."""
        return sum(await asyncio.gather(*(contend(self.coordination, key, folder, rounds) for _ in range(tasks))))

    async def fail(self, scope: list[Any], rule: dict[str, Any], now: float) -> float:
        self.now = now
        return (await self.coordination.record_failure(_scope(scope), CooldownRule(**rule), "from a child")).until

    async def admit(self, scopes: list[list[Any]], now: float, times: int = 1) -> int:
        """How many of so many requests at once are let through."""
        self.now = now
        asked = (self.coordination.admit([_scope(scope) for scope in scopes]) for _ in range(times))
        return sum(admission.is_admitted for admission in await asyncio.gather(*asked))

    async def reserve(self, name: str, times: int, rate: float, now: float) -> float:
        """The longest wait of so many reservations of one."""
        self.now = now
        return max(await asyncio.gather(*(self.coordination.reserve(name, 1, rate, 0) for _ in range(times))))

    async def subscribe(self, topic: str) -> None:
        self.coordination.subscribe(topic, lambda message: self.events.append([topic, message]))

    async def publish_event(self, topic: str, message: str) -> None:
        self.coordination.publish(topic, message)

    async def heard(self) -> list[list[str]]:
        return self.events


async def contend(coordination: Coordination, key: str, folder: str, rounds: int) -> int:
    """Get the lease `rounds` times, following others meanwhile; how often another held it at the same time."""
    marker, violations = Path(folder) / "held", 0
    while rounds:
        found = await coordination.lease(key)
        if isinstance(found, Lease):
            violations += marker.exists()
            marker.touch()
            await asyncio.sleep(0)
            marker.unlink(missing_ok=True)
            await found.release()
            rounds -= 1
            continue
        try:
            async for _ in found.updates():
                pass
        except LeaderLost:
            violations += 1  # all of them release
        await found.close()
    return violations


def _scope(values: list[Any]) -> Scope:
    kind, remote_id, name, subject = values
    return Scope(ScopeKind(kind), remote_id, name, subject)


async def main() -> None:
    """Answer each line by {"result": …}; end with the input."""
    reader = asyncio.StreamReader()
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    program = Program()
    while line := await reader.readline():
        request = json.loads(line)
        result = await getattr(program, request.pop("do"))(**request)
        print(json.dumps({"result": result}), flush=True)
    transport.close()


if __name__ == "__main__":
    asyncio.run(main())

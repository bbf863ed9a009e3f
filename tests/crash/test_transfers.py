"""P5, P6: the whole proxy killed at a named step of a transfer, between write, fsync, rename and record.

CONTENTAPP_CRASH_POINTS: how many kills, the first ones of POINTS or all of them in turn.

Run as a module it is the program under test, ``contentapp`` with crash points: the first argument is a folder. While
there is a file ``armed`` in it (a step's name, and the how-manieth of that name), each step that is reached is written
to ``journal``, and the armed one kills all processes of the proxy at once.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import signal
import sys
import threading
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pytest
from sqlalchemy import Connection

from contentapp.catalog.engine import CatalogEngine
from contentapp.storage.base import Note
from contentapp.storage.filesystem import FilesystemStorage
from contentapp.storage.layout import partial_of
from contentapp.storage.note import decode
from contentapp.storage.spool import Spool
from tests.programs import accepts_connections
from tests.proxy import Proxy, pull_through
from tests.remotes.content import Synthetic, digest_of
from tests.remotes.faults import Gate, Slow, Stall
from tests.remotes.files import FileRemote
from tests.remotes.registry import RegistryRemote
from tests.remotes.scripted import ScriptedRemote
from tests.scenarios.device import Answer, ask
from tests.scenarios.stage import PATIENT, fresh, merged, until
from tests.scenarios.test_p5_crash import BROKEN, is_idle, partials, recorded, sound

TREE = Path(__file__).parents[2]
MIB = 1024 * 1024
LEAST, MOST = 3 * MIB, 6 * MIB
QUICK = {"progress_interval_seconds": 0.05, "grace_seconds": 0, "resume_concurrency": 0}
DEATH_SECONDS = 30.0
T = TypeVar("T")


# -- the program under test


@dataclass
class Crash:
    """The crash point of all processes of one proxy."""

    folder: Path
    seen: Counter[str] = field(default_factory=Counter)
    mutex: threading.Lock = field(default_factory=threading.Lock)

    def __call__(self, step: str) -> None:
        with self.mutex:
            try:
                wanted, which = (self.folder / "armed").read_text().split()
            except FileNotFoundError:
                return
            with (self.folder / "journal").open("a") as journal:
                journal.write(f"{step}\n")
            self.seen[step] += 1
            if step == wanted and self.seen[step] == int(which):
                os.killpg(0, signal.SIGKILL)

    def writing(self, append: Callable[[Spool, Sequence[memoryview]], None]) -> Callable[..., None]:
        """A Spool's `append` with a step behind it."""

        def appended(spool: Spool, views: Sequence[memoryview]) -> None:
            append(spool, views)
            self("written")

        return appended

    def recording(self, write: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        """A catalog's `write` with a step inside the transaction, and one behind it."""

        async def written(engine: CatalogEngine, work: Callable[[Connection], T]) -> T:
            def worked(connection: Connection) -> T:
                result = work(connection)
                self("recording")
                return result

            result: T = await write(engine, worked)
            self("recorded")
            return result

        return written

    def install(self) -> None:
        """Be called at each step of whatever this process and its children do."""
        defaults = FilesystemStorage.__init__.__kwdefaults__
        assert defaults is not None
        defaults["crash_point"] = self
        for owner, name, wrap in ((Spool, "append", self.writing), (CatalogEngine, "write", self.recording)):
            setattr(owner, name, wrap(getattr(owner, name)))


class CrashingProxy(Proxy):
    """A proxy that dies at a step once it is armed."""

    def __init__(self, folder: Path, config: dict[str, Any]) -> None:
        super().__init__(folder, config)
        self.service.argv[:1] = [sys.executable, "-m", "tests.crash.test_transfers", str(folder)]
        self.service.env["PYTHONPATH"] = str(TREE)

    def arm(self, step: str, which: int) -> None:
        """Die at the which-th `step` from now on."""
        (self.folder / "journal").write_text("")
        (self.folder / "armed").write_text(f"{step} {which}")

    def passed(self) -> list[str]:
        """The steps since it was armed."""
        return (self.folder / "journal").read_text().split()

    async def death(self) -> None:
        """Return when it has died at the step, which disarms it, and its workers with it."""
        async with asyncio.timeout(DEATH_SECONDS):
            assert await self.service.process.wait() == -signal.SIGKILL, "the step was never reached"
        (self.folder / "armed").unlink()
        await until(self.is_gone)

    async def is_gone(self) -> bool:
        """Whether nobody listens any more: a process that was killed may take a while to end."""
        return not await accepts_connections(self.port)


# -- what is asked for


@dataclass
class Kind:
    """One way to ask for content of a remote. `paths` are those of the remote and of the device."""

    remote: ScriptedRemote
    put: Callable[[Synthetic], tuple[str, str]]
    is_digested: bool = True


@asynccontextmanager
async def kinds() -> AsyncIterator[tuple[list[Kind], dict[str, Any]]]:
    """Blobs of a registry, listed files, and files of which no digest is known; the configuration for them."""
    numbers = itertools.count()
    async with AsyncExitStack() as stack:
        registry = await stack.enter_async_context(RegistryRemote())
        listed = await stack.enter_async_context(FileRemote())
        plain = await stack.enter_async_context(FileRemote(manifest=False))

        def blob(content: Synthetic) -> tuple[str, str]:
            digest = registry.push_blob("app", content)
            return f"/v2/app/blobs/{digest}", f"/v2/reg/app/blobs/{digest}"

        def file(remote: FileRemote, base_path: str, content: Synthetic) -> tuple[str, str]:
            name = f"f{next(numbers)}"
            remote.put(name, content)
            return f"/{name}", f"/pulp/content/{base_path}/{name}"

        config = merged(
            pull_through("container", "reg", {"r": registry.url}, remote=PATIENT),
            pull_through("file", "listed", {"l": f"{listed.url}/"}, remote=PATIENT),
            pull_through("file", "plain", {"p": f"{plain.url}/"}, remote=PATIENT),
            **QUICK,
        )
        yield (
            [
                Kind(registry, blob),
                Kind(listed, lambda content: file(listed, "listed", content)),
                Kind(plain, lambda content: file(plain, "plain", content), is_digested=False),
            ],
            config,
        )


# -- where it is killed


@dataclass(frozen=True)
class Point:
    """Killed at one of the first `most` of a step: during a transfer, going on with one ("resume"), or in a "stop"."""

    step: str
    most: int = 1
    during: str = "transfer"
    seconds: float = 0.3


NOTING = ("flushed", "note-written", "note-synced", "note-renamed", "note-durable", "note-opened")
COMMITTING = ("synced", "counted", "renamed", "unnoted", "durable", "verified", "sharded")
POINTS = [
    Point("begun"),
    Point("written", 8),
    *(Point(step, 3, seconds=0.8) for step in NOTING[:5]),
    *(Point(step) for step in COMMITTING[:5]),
    Point("recording", 2),
    Point("recorded", 2),
    *(Point(step, during="resume", seconds=0.8) for step in ("claimed", "cut", "resumed")),
    *(Point(step, during="stop") for step in ("cut", "note-synced", "suspended")),
    # In the long form only: hardly different from one of those before.
    Point("opened"),
    Point(NOTING[5], 3, seconds=0.8),
    *(Point(step) for step in COMMITTING[5:]),
    *(Point(step, during="resume", seconds=0.8) for step in ("written", "synced", "renamed", "recorded")),
    *(Point(step, during="stop") for step in ("synced", "note-renamed", "counted")),
]
ROUND = 20  # kills of one proxy, all of whose artifacts are read again after each
COUNT = int(os.environ.get("CONTENTAPP_CRASH_POINTS", "20"))


@dataclass
class Pull:
    """One content, how it is asked for, and at the which-th step of a point the proxy is killed meanwhile."""

    proxy: CrashingProxy
    kind: Kind
    content: Synthetic
    path: str
    device_path: str
    point: Point
    which: int

    async def ask(self) -> Answer | None:
        """The answer, None if there was none; a complete one is right."""
        try:
            answer = await ask(self.proxy.url + self.device_path)
        except BROKEN:
            return None
        assert not answer.is_complete or answer.sha256 == digest_of(self.content)
        return answer

    async def killed(self, *points: tuple[str, int]) -> None:
        """Ask, and die at the step; start again and ask until all of them were reached."""
        for number, point in enumerate(points):
            if number:
                await self.proxy.start()
            self.proxy.arm(*point)
            asking = asyncio.create_task(self.ask())
            await self.proxy.death()
            await asking

    async def killed_in_stop(self, step: str) -> None:
        """SIGTERM in the middle, and die at the step."""
        gate = Gate()
        at = self.content.size // 2
        self.kind.remote.script(self.path, Stall(at, gate), method="GET", times=1)
        asking = asyncio.create_task(self.ask())

        async def has_arrived() -> bool:
            found = (await self.proxy.admin("/pulp/api/v3/transfers/"))["results"]
            return any(each["arrived"] == at for each in found)

        await until(has_arrived)
        self.proxy.arm(step, 1)
        self.proxy.service.process.terminate()
        await self.proxy.death()
        await asking
        gate.release()

    def note(self) -> Note | None:
        """The last valid note on disk, temporary or not, which must tell of bytes that are there; None: none."""
        found = []
        for path in (self.proxy.data_dir / "partials").glob("*.progress.json*"):
            with suppress(ValueError, FileNotFoundError):
                note = decode(path.read_bytes())
                if partial_of(path).exists():
                    assert partial_of(path).stat().st_size >= note.offset
                    found.append(note)
        return max(found, key=lambda note: note.offset, default=None)

    def asked(self) -> list[str]:
        """The ranges that upstream was asked for."""
        return [each or "" for each in self.kind.remote.asked_ranges(self.path)]


@pytest.mark.timeout(60 + 10 * ROUND)
@pytest.mark.parametrize("first", range(0, COUNT, ROUND))
async def test_p5_p6_killed_at_a_step_of_a_transfer(tmp_path: Path, first: int) -> None:
    """What is there is whole, what is not goes on behind its last note, and the device gets the right bytes."""
    async with kinds() as (ways, config):
        proxy = CrashingProxy(tmp_path, config)
        pulls = planned(proxy, ways, first)  # before it starts: a list is read once
        try:
            await proxy.start()
            for number, pull in enumerate(pulls, first):
                try:
                    await kill(pull)
                    await check(pull)
                except (AssertionError, TimeoutError) as error:
                    what = f"{pull.point}, the {pull.which}., {pull.device_path}"
                    raise AssertionError(f"kill {number}: {what}: {proxy.passed()}: {error}") from error
        finally:
            if proxy.service.is_running:
                await proxy.kill()


def planned(proxy: CrashingProxy, ways: list[Kind], first: int) -> list[Pull]:
    """As many as one round has, of each point in turn; the remotes have their contents."""
    chance = random.Random(first)
    pulls = []
    for point in itertools.islice(itertools.cycle(POINTS), first, min(COUNT, first + ROUND)):
        kind, content = chance.choice(ways), fresh(chance.randint(LEAST, MOST))
        pulls.append(Pull(proxy, kind, content, *kind.put(content), point, chance.randint(1, point.most)))
    return pulls


async def kill(pull: Pull) -> None:
    """Die as the point says; the proxy does not run thereafter."""
    point = pull.point
    if point.during == "stop":
        await pull.killed_in_stop(point.step)
        return
    rate = pull.content.size / point.seconds
    pull.kind.remote.script(pull.path, Slow(rate), method="GET", times=1)
    # At its second flush there is a note, and more bytes than it tells of.
    before = [("flushed", 2)] if point.during == "resume" else []
    await pull.killed(*before, (point.step, pull.which))


async def check(pull: Pull) -> None:
    """What has to hold after a kill, and what the next device gets."""
    proxy = pull.proxy
    stored, note = sound(proxy), pull.note()
    assert recorded(proxy) <= stored
    is_stored = digest_of(pull.content) in stored
    check_passed(proxy.passed(), is_stored=is_stored, is_noted=note is not None)
    pull.kind.remote.clear()
    pull.kind.remote.forget()
    await proxy.start()
    await until(lambda: is_adopted(proxy))
    answer = await pull.ask()
    assert answer is not None and (answer.status, answer.is_complete) == (200, True)
    assert pull.asked() in expected_ranges(pull, note, is_stored=is_stored)
    await until(lambda: is_idle(proxy))
    await until(lambda: is_adopted(proxy))
    assert digest_of(pull.content) in sound(proxy)
    assert partials(proxy) == []
    await check_space(proxy)


def check_passed(steps: list[str], *, is_stored: bool, is_noted: bool) -> None:
    """What was done is there; what was not begun isn't."""
    assert is_stored or "renamed" not in steps
    assert not is_stored or "counted" in steps
    assert is_stored or is_noted or "note-durable" not in steps


def expected_ranges(pull: Pull, note: Note | None, *, is_stored: bool) -> list[list[str]]:
    """What upstream may be asked for after a kill: nothing of what is stored, and nothing that a note tells of."""
    if is_stored:
        # Without a digest it is found by its path, whose record may be missing though the artifact is adopted.
        return [[]] if pull.kind.is_digested else [[], [""]]
    if note is None:
        return [[""]]
    return [[f"bytes={note.offset}-"] if note.offset < pull.content.size else []]


async def is_adopted(proxy: Proxy) -> bool:
    """Whether all that is on disk is recorded."""
    return recorded(proxy) == sound(proxy)


async def check_space(proxy: Proxy) -> None:
    """What is counted is what is on disk."""
    on_disk = sum(path.stat().st_size for path in proxy.artifacts())

    async def is_counted() -> bool:
        found = await proxy.metrics()
        used, held = (found.total(f"contentapp_storage_{name}_bytes") for name in ("used", "reserved"))
        return (used, held) == (on_disk, 0)

    await until(is_counted)


def main() -> None:
    """``contentapp``, with crash points."""
    from contentapp.cli.main import main as contentapp

    folder, *arguments = sys.argv[1:]
    Crash(Path(folder)).install()
    contentapp(arguments)


if __name__ == "__main__":
    main()

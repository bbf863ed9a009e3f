"""P1, P2, P5: whatever remotes, devices, disk and power do, at random.

CONTENTAPP_SEED: where to begin; a failure names it, with the step. CONTENTAPP_SOAK_SECONDS: how long to go on, from a
seed of its own unless one is given.
"""

from __future__ import annotations

import asyncio
import os
import random
import re
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from contentapp.core.digest import Digest
from tests.proxy import Proxy, pull_through, start_proxy
from tests.remotes.content import Synthetic, digest_of
from tests.remotes.faults import (
    Cut,
    Drop,
    Fault,
    Flip,
    IgnoreIfRange,
    IgnoreRange,
    Portion,
    Shorten,
    Slow,
    Stall,
    Status,
    Unsized,
    WrongRange,
    changed_etag,
)
from tests.remotes.files import FileRemote
from tests.remotes.registry import RegistryRemote
from tests.remotes.scripted import ScriptedRemote
from tests.scenarios.device import Answer, ask, asking
from tests.scenarios.stage import PATIENT, at_rest, merged, until, until_hit
from tests.scenarios.test_p5_crash import BROKEN, recorded, sound

KIB = 1024
MIB = 1024 * KIB
SOAK = os.environ.get("CONTENTAPP_SOAK_SECONDS", "")
SECONDS = float(SOAK or 20)
SEED = int(os.environ.get("CONTENTAPP_SEED") or (random.SystemRandom().randrange(1 << 32) if SOAK else 1))
DEADLINE_SECONDS = 30.0
SIZES = (0, 1, 1000, 64 * KIB, 64 * KIB + 1, MIB, MIB + 1, *4 * (3 * MIB,), 6 * MIB, 12 * MIB)
POOL = 8  # contents of each kind that are asked for again and again
EXCHANGES = 3  # of one item with one remote that go wrong in one step
CONTENT_RANGE = re.compile(r"bytes (?:(\d+)-(\d+)|\*)/(\d+)")
REMOTE = {
    **PATIENT,
    "sock_read_timeout": 0.6,
    "cooldown_initial_seconds": 0.05,
    "cooldown_max_seconds": 0.1,
    "max_retries": 2,
}
DISTRIBUTION = {
    "range_wait_size": MIB,
    "content_ttl_seconds": 0.2,
    "first_byte_deadline_seconds": 8,
    "resume_deadline_seconds": 8,
}
ENGINE = {
    "content": {"workers": 2},
    "progress_interval_seconds": 0.05,
    "resume_interval_seconds": 0.5,
    "grace_seconds": 0.3,
    "cache": {"max_size": 96 * MIB},
}
STRICT = ("kept", "listed")  # where a range is held until the whole is verified
RESUMABLE = (Cut, Slow, Stall, Drop, Status)  # that bytes without a digest survive
SPOILING = (Flip, Shorten)


# -- what there is


@dataclass(eq=False, repr=False)
class Item:
    """One content as devices know it, and its remotes, which have it under `path`.

    versions: all that a complete answer may be: what its digest says, or what any of its remotes ever had.
    """

    kind: str
    path: str
    device_path: str
    remotes: Sequence[ScriptedRemote]
    versions: list[Synthetic]

    def __repr__(self) -> str:
        return f"<{self.kind} …{self.path[-6:]} {[version.size for version in self.versions]}>"

    @property
    def is_digested(self) -> bool:
        return self.kind != "plain"

    @property
    def size(self) -> int:
        return self.versions[-1].size

    @property
    def rate(self) -> float:
        """At which a transfer lasts a moment, so that what happens meanwhile happens in the middle."""
        return max(20, *(version.size for version in self.versions)) / 0.3

    def is_like(self, other: Item) -> bool:
        """Whether it has the same digest, and so is on the way together with it."""
        return self is other or (self.is_digested and other.is_digested and self.digest == other.digest)

    @property
    def digest(self) -> str:
        return digest_of(self.versions[-1])


@dataclass
class World:
    """The remotes, and what they have."""

    chance: random.Random
    registries: list[RegistryRemote]
    listed: list[FileRemote]
    plain: list[FileRemote]
    items: list[Item] = field(default_factory=list)
    made: int = 0

    @property
    def remotes(self) -> list[ScriptedRemote]:
        return [*self.registries, *self.listed, *self.plain]

    def config(self) -> dict[str, Any]:
        """Blobs that are kept and that are not, listed files, and files of which no digest is known."""

        def distribution(kind: str, name: str, remotes: Sequence[ScriptedRemote], **more: Any) -> dict[str, Any]:
            slash = "/" if kind == "file" else ""
            urls = {f"{name}{number}": f"{remote.url}{slash}" for number, remote in enumerate(remotes)}
            held = {"cold_range": "strict" if name in STRICT else "stream"}
            return pull_through(kind, name, urls, remote={**REMOTE, **more}, distribution={**DISTRIBUTION, **held})

        return merged(
            distribution("container", "kept", self.registries),
            distribution("container", "streamed", self.registries, policy="streamed"),
            distribution("file", "listed", self.listed),
            distribution("file", "plain", self.plain),
            **ENGINE,
        )

    def fill(self) -> None:
        """The first contents. A list is read once, so that all listed files must be there."""
        for number in range(POOL):
            self.add_blob("kept")
            self.add_blob("streamed")
            content = self.content()
            for remote in self.listed:
                remote.put(f"f{number}", content)
            self.items.append(Item("listed", f"/f{number}", f"/pulp/content/listed/f{number}", self.listed, [content]))
            plain = Item("plain", f"/u{number}", f"/pulp/content/plain/u{number}", self.plain, [])
            self.items.append(plain)
            self.change(plain)

    def content(self, size: int | None = None) -> Synthetic:
        """A body that nothing else has, but for the smallest; of any size if none is given."""
        self.made += 1
        if size is None:
            size = self.chance.choice(SIZES)
            size = size if size <= MIB + 1 else self.chance.randint(MIB, size)
        return Synthetic(size, seed=self.made)

    def add_blob(self, kind: str) -> None:
        """One more blob, in the place of the first of its kind when there are many."""
        content = self.content()
        (digest, _) = [remote.push_blob("app", content) for remote in self.registries]
        item = Item(kind, f"/v2/app/blobs/{digest}", f"/v2/{kind}/app/blobs/{digest}", self.registries, [content])
        self.items.append(item)
        blobs = [item for item in self.items if item.kind == kind]
        if len(blobs) > POOL:
            self.items.remove(blobs[0])

    def change(self, item: Item) -> None:
        """Another version on each of its remotes, none like the other, but often as long as the one before."""
        is_as_long = bool(item.versions) and self.chance.random() < 0.6
        for remote in self.plain:
            content = self.content(item.size if is_as_long else None)
            remote.put(item.path.lstrip("/"), content)
            item.versions.append(content)

    def calm(self) -> None:
        """Nothing goes wrong any more."""
        for remote in self.remotes:
            remote.clear()
            remote.forget()


@asynccontextmanager
async def made_world() -> AsyncIterator[World]:
    """Two remotes of each kind, and their contents."""
    async with AsyncExitStack() as stack:
        registries = [await stack.enter_async_context(RegistryRemote()) for _ in range(2)]
        listed = [await stack.enter_async_context(FileRemote()) for _ in range(2)]
        plain = [await stack.enter_async_context(FileRemote(manifest=False)) for _ in range(2)]
        world = World(random.Random(SEED), registries, listed, plain)
        world.fill()
        yield world


# -- what happens at once


@dataclass(frozen=True)
class Wish:
    """What one device asks for, and when: a Range or "" for the whole. It leaves after so many bytes, or at the end."""

    item: Item
    range: str
    after_seconds: float
    leaves_at: int | None


@dataclass(frozen=True)
class Trouble:
    """What goes wrong with an item at its remotes: the faults of one exchange after the other, for each remote."""

    item: Item
    plans: list[list[list[Fault]]]

    def faults(self) -> Iterator[Fault]:
        yield from (fault for plan in self.plans for faults in plan for fault in faults)

    @property
    def is_spoiling(self) -> bool:
        """Whether wrong bytes come."""
        return any(isinstance(fault, SPOILING) for fault in self.faults())

    @property
    def leaves_a_source(self) -> bool:
        """Whether one source is good for every byte (P2)."""
        is_survived = self.item.is_digested or all(isinstance(fault, RESUMABLE) for fault in self.faults())
        return is_survived and not self.is_spoiling and not all(self.plans)

    def begin(self) -> None:
        for remote, plan in zip(self.item.remotes, self.plans, strict=True):
            for faults in plan:
                remote.script(self.item.path, *faults, method="GET", times=1)

    def end(self) -> None:
        for fault in self.faults():
            if isinstance(fault, Stall):
                fault.gate.release()


@dataclass(frozen=True)
class Step:
    """changed: before the step, and again after `at_seconds`. disaster: "kill" or "term" then, or "".

    evicted: the part of the artifacts that is deleted before.
    """

    wishes: list[Wish]
    troubles: list[Trouble]
    changed: list[Item]
    disaster: str
    at_seconds: float
    evicted: float

    def is_spoiled(self, item: Item) -> bool:
        """Whether wrong bytes of it come."""
        return any(trouble.is_spoiling and trouble.item.is_like(item) for trouble in self.troubles)

    def must_work(self, wish: Wish) -> bool:
        """Whether P2 says that the device gets it.

        A range without a digest may be cut: fetched apart, it is of no use when the whole then comes from elsewhere.
        """
        item = wish.item
        mine = [trouble for trouble in self.troubles if trouble.item is item]
        if self.disaster or item in self.changed or (mine and wish.range and not item.is_digested):
            return False
        has_twin = any(trouble.item.is_like(item) for trouble in self.troubles if trouble not in mine)
        return not has_twin and all(trouble.leaves_a_source for trouble in mine)


def any_step(world: World) -> Step:
    """A step, made up."""
    chance = world.chance
    for kind in ("kept", "streamed"):
        if chance.random() < 0.3:
            world.add_blob(kind)
    items = chance.sample(world.items, chance.randint(1, 3))
    wishes = [any_wish(chance, item) for item in (*items, *chance.choices(items, k=chance.randint(0, 5)))]
    troubled = [item for item in items if chance.random() < 0.7]
    is_spoiling = chance.random() < 0.35  # of one item at most: more of them cool the whole remote
    troubles = [
        any_trouble(chance, item, is_spoiling=is_spoiling and number == 0) for number, item in enumerate(troubled)
    ]
    changed = [item for item in items if not item.is_digested and chance.random() < 0.4]
    troubles += [change_unseen(item) for item in changed if item not in troubled]
    return Step(
        wishes,
        troubles,
        changed,
        chance.choices(["", "kill", "term"], [85, 10, 5])[0],
        chance.uniform(0, chance.choice([0.12, 0.4])),
        chance.choice([0, 0, 0, 0.3, 1]),
    )


def any_wish(chance: random.Random, item: Item) -> Wish:
    start, length = chance.randint(0, item.size + 1), chance.choice([1, 1000, MIB, max(1, item.size // 2)])
    asked = chance.choice(["", "", f"bytes={start}-", f"bytes={start}-{start + length - 1}", f"bytes=-{length}"])
    leaves_at = chance.randint(0, item.size) if chance.random() < 0.2 else None
    return Wish(item, asked, chance.choice([0, 0, chance.uniform(0, 0.2)]), leaves_at)


def any_trouble(chance: random.Random, item: Item, *, is_spoiling: bool) -> Trouble:
    """At each remote, or at all but one."""
    spared = chance.choice([None, *range(len(item.remotes))])
    return Trouble(
        item,
        [
            []
            if number == spared
            else [any_faults(chance, item, is_spoiling=is_spoiling) for _ in range(chance.randint(1, EXCHANGES))]
            for number in range(len(item.remotes))
        ],
    )


def change_unseen(item: Item) -> Trouble:
    """It is cut in the middle, and gone on with whatever If-Range says."""
    slow = Slow(item.rate)
    return Trouble(item, [[[slow, Cut(item.size // 2)], [IgnoreIfRange()], [IgnoreIfRange()]] for _ in item.remotes])


def any_faults(chance: random.Random, item: Item, *, is_spoiling: bool) -> list[Fault]:
    at = chance.choice([-1, 0, chance.randint(0, item.size), chance.randint(0, item.size)])
    slow = Slow(item.rate)
    choices: list[list[Fault]] = [
        [slow],
        [slow, Cut(at)],
        [Cut(at, reset=chance.random() < 0.5)],
        [Stall(at)],
        [Drop()],
        [Status(chance.choice([500, 502, 503]))],
        [IgnoreRange(), Cut(at)],
        [IgnoreRange()],
        [WrongRange(shift=chance.choice([-1, 1]))],
        [WrongRange(total=str(item.size + 1))],
        [Portion(max(1, item.size // 3))],
        [Unsized(), Cut(at, reset=False)],
    ]
    if item.is_digested:
        choices.append([changed_etag(), Cut(at)])
    else:
        choices.append([IgnoreIfRange(), slow])
    if is_spoiling and item.is_digested:
        anywhere = chance.randint(0, max(0, item.size - 1))
        choices = [[Flip(anywhere)], [slow, Flip(anywhere)], [Flip(anywhere), Cut(at)], [Shorten(anywhere)], [Cut(at)]]
    return chance.choice(choices)


# -- what a device gets


async def wished(proxy: Proxy, wish: Wish, *, must_work: bool, is_spoiled: bool) -> str:
    """Do as the wish says; what came of it, in a word. AssertionError when it is not what it has to be."""
    await asyncio.sleep(wish.after_seconds)
    headers = {"Range": wish.range} if wish.range else {}
    url = proxy.url + wish.item.device_path
    try:
        async with asyncio.timeout(DEADLINE_SECONDS):
            if wish.leaves_at is not None:
                return await left(url, headers, wish.leaves_at, must_work=must_work)
            answer = await ask(url, headers=headers)
    except BROKEN as error:
        assert not isinstance(error, TimeoutError), f"no outcome: {wish}"
        assert not must_work, f"{error!r}: {wish}"
        return "refused"
    outcome = f"{answer.status}{'' if answer.is_complete else ' cut'}, {len(answer.body)} bytes, {answer.cache}: {wish}"
    outcome += f" {answer.body[:500]!r}" if answer.status >= 400 else ""
    assert not must_work or (answer.is_complete and answer.status < 400) or answer.status == 416, outcome
    assert wish.item.kind in {"listed", "plain"} or answer.status != 404, outcome
    if not answer.is_complete:
        return "cut"
    if answer.status == 416:
        # Of a remote that lies about the size, the size is believed before the bytes are verified.
        assert is_unsatisfiable(wish, answer), f"wrong: {outcome}"
    elif answer.status < 400 and not (is_spoiled and is_sent_early(wish, answer)):
        assert is_right(wish, answer), f"wrong: {outcome}"
    return str(answer.status)


async def left(url: str, headers: dict[str, str], size: int, *, must_work: bool) -> str:
    """Read so many bytes, or to the end, and leave."""
    async with asking(url, headers=headers) as response:
        with suppress(asyncio.IncompleteReadError):  # the end
            await response.content.readexactly(size)
        assert not must_work or response.status < 400 or response.status == 416, f"{response.status}: {url}"
    return "left"


def is_sent_early(wish: Wish, answer: Answer) -> bool:
    """Whether it is a range that need not wait until the whole is verified."""
    if answer.status != 206 or wish.item.kind in STRICT:
        return False
    _, last, size = content_range(answer)
    return last is not None and last + 1 < size


def is_right(wish: Wish, answer: Answer) -> bool:
    """Whether a complete answer has exactly the bytes of its range, of one version (P1)."""
    if answer.status == 200:
        return any(is_part(version, 0, version.size, answer.body) for version in wish.item.versions)
    start, last, size = content_range(answer)
    if start is None or last is None or (start, last + 1) != span(wish.range, size):
        return False
    return any(
        version.size == size and is_part(version, start, last + 1, answer.body) for version in wish.item.versions
    )


def is_unsatisfiable(wish: Wish, answer: Answer) -> bool:
    """Whether a 416 is true."""
    size = content_range(answer)[2]
    return span(wish.range, size) is None and any(version.size == size for version in wish.item.versions)


def content_range(answer: Answer) -> tuple[int | None, int | None, int]:
    match = CONTENT_RANGE.fullmatch(answer.headers.get("Content-Range", ""))
    assert match is not None, dict(answer.headers)
    return (int(match[1]), int(match[2]), int(match[3])) if match[1] else (None, None, int(match[3]))


def span(asked: str, size: int) -> tuple[int, int] | None:
    """The half-open range that a Range of ours means; None when it can't be satisfied (RFC 9110, 14.1.2)."""
    first, _, last = asked.removeprefix("bytes=").partition("-")
    if not first:
        return (max(0, size - int(last)), size) if size else None
    return (int(first), min(int(last) + 1, size) if last else size) if int(first) < size else None


def is_part(version: Synthetic, start: int, end: int, body: bytes) -> bool:
    return end - start == len(body) and b"".join(version.pieces(start, end)) == body


# -- what has to hold after each step


class Keeper:
    """Watches what is stored. A file that has not changed since is not read again."""

    def __init__(self, proxy: Proxy) -> None:
        self.proxy = proxy
        self.deleted: set[str] = set()
        self._seen: set[tuple[str, int, int]] = set()

    def delete(self, part: float) -> None:
        """Take a part of the artifacts off the disk; which, their names decide."""
        for path in self.proxy.artifacts():
            if int(path.name[:4], 16) < part * 0x10000:
                with suppress(FileNotFoundError):
                    path.unlink()
                    self.deleted.add(digest_in(path))

    def present(self) -> set[str]:
        """The digests of all artifacts; each of them that is new is what its name says (P5)."""
        found = set()
        for path in self.proxy.artifacts():
            with suppress(FileNotFoundError):  # evicted meanwhile
                status = path.stat()
                mark = (str(path), status.st_ino, status.st_mtime_ns)
                if mark not in self._seen:
                    digest = Digest.parse(digest_in(path))
                    assert Digest.of(path.read_bytes(), digest.algorithm) == digest, f"{path} is not what its name says"
                    self._seen.add(mark)
                found.add(digest_in(path))
        return found

    async def check(self) -> None:
        """What is recorded is there, unless it was deleted behind the proxy's back; eviction takes both."""

        async def holds() -> bool:
            listed, found = recorded(self.proxy), self.present()
            self.deleted -= found
            return listed <= found | self.deleted

        await until(holds)

    def check_stopped(self) -> None:
        """The same of a proxy that does not run, all of it read again."""
        found = sound(self.proxy)
        assert recorded(self.proxy) <= found | self.deleted


def digest_in(path: Path) -> str:
    """What the name of an artifact says."""
    return ":".join([path.parts[-3], path.parts[-2] + path.parts[-1]])


async def take(step: Step, proxy: Proxy, keeper: Keeper, world: World) -> list[str]:
    """Do it, and check; what became of the devices."""
    keeper.delete(step.evicted)
    for item in step.changed:
        world.change(item)
    for trouble in step.troubles:
        trouble.begin()
    wishing = [
        asyncio.create_task(wished(proxy, wish, must_work=step.must_work(wish), is_spoiled=step.is_spoiled(wish.item)))
        for wish in step.wishes
    ]
    try:
        if step.changed or step.disaster:
            await asyncio.sleep(step.at_seconds)
        for item in step.changed:
            world.change(item)
        if step.disaster:
            await (proxy.kill() if step.disaster == "kill" else proxy.stop())
        outcomes = await asyncio.gather(*wishing)
    finally:
        for task in wishing:
            task.cancel()
        await asyncio.gather(*wishing, return_exceptions=True)
        for trouble in step.troubles:
            trouble.end()
        world.calm()
    if step.disaster:
        keeper.check_stopped()
        await proxy.start()
    await at_rest(proxy)
    await keeper.check()
    for trouble in step.troubles:
        if trouble.is_spoiling:
            await heal(proxy, trouble.item)
    return [*outcomes, *([step.disaster] if step.disaster else [])]


async def heal(proxy: Proxy, item: Item) -> None:
    """Wrong bytes are forgotten: the next ones are right. Then nobody is left alone any more."""
    clear = "/pulp/api/v3/cooldowns/clear/"
    await proxy.admin(clear, method="POST", json={})

    async def is_healed() -> bool:
        answer = await ask(proxy.url + item.device_path)
        assert not answer.is_complete or answer.status != 200 or answer.sha256 == item.digest, "wrong"
        return answer.is_complete and answer.status == 200

    await until(is_healed)
    await at_rest(proxy)
    await proxy.admin(clear, method="POST", json={})


@pytest.mark.timeout(SECONDS + 120)
async def test_p1_p2_p5_at_random(tmp_path: Path) -> None:
    """Steps of many things at once; then all that is there is asked for, and right."""
    loop, counts = asyncio.get_running_loop(), Counter[str]()
    print(f"CONTENTAPP_SEED={SEED}")
    async with made_world() as world:
        proxy = await start_proxy(tmp_path, world.config())
        keeper = Keeper(proxy)
        try:
            await until_hit(proxy.url + next(item for item in world.items if item.kind == "listed").device_path)
            end = loop.time() + SECONDS
            while loop.time() < end:
                step = any_step(world)
                try:
                    counts.update(await take(step, proxy, keeper, world))
                except (AssertionError, TimeoutError, *BROKEN) as error:
                    number = counts["steps"]
                    raise AssertionError(f"CONTENTAPP_SEED={SEED}, step {number}: {error}\n{step}") from error
                counts.update(["steps", *("promised" for wish in step.wishes if step.must_work(wish))])
            for item in world.items:
                answer = await ask(proxy.url + item.device_path)
                assert (answer.status, answer.is_complete) == (200, True), item
                assert any(is_part(version, 0, version.size, answer.body) for version in item.versions), item
            print(dict(counts))
            assert counts["promised"] and counts["200"] and counts["206"]
        finally:
            if proxy.service.is_running:
                await proxy.stop()

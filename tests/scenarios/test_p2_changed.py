"""P2, after the first byte, digest unknown or its file changed: two files are never put together into one.

Without a digest only the same URL goes on, and only with a validator that says it is still the same; whatever else
happens, an open response is reset, and a transfer that is to be stored starts again from 0 by itself, once.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.proxy import Proxy, pull_through
from tests.remotes.content import Stored, Synthetic, read_all
from tests.remotes.faults import (
    Cut,
    Drop,
    Fault,
    Gate,
    Headers,
    IgnoreIfRange,
    IgnoreRange,
    Replace,
    Stall,
    Status,
    WrongRange,
    changed_etag,
)
from tests.remotes.files import LONG_AGO, FileRemote, etag_of
from tests.scenarios.device import Answer, ask
from tests.scenarios.slow_device import slow_device
from tests.scenarios.stage import PATIENT, fresh, merged, staged, until_hit
from tests.scenarios.test_p2_inside import at_rest

pytestmark = pytest.mark.asyncio(loop_scope="module")

KIB = 1024
MIB = 1024 * KIB
SIZE = 2 * MIB + 5
MIDDLE = SIZE // 2
TAIL = 64 * KIB
TRYING = {**PATIENT, "max_retries": 1}
LATER = LONG_AGO + timedelta(days=1)
REST = f"bytes={MIDDLE}-"

VALIDATORS: dict[str, dict[str, Any]] = {
    "strong": {},
    "dated": {"etag": None},
    "weak": {"etag": "weak"},
    "bare": {"etag": None, "last_modified": None},
    "frail": {"etag": "weak", "last_modified": None},
    "young": {"etag": None, "last_modified": datetime(2999, 1, 1, tzinfo=UTC)},
}
"""What the answers of a pair of servers say of their files. A date beside a weak ETag is no validator for If-Range
(RFC 9110, 13.1.5).
"""
USABLE, USELESS = ["strong", "dated"], ["weak", "bare", "frail", "young"]
LISTED = {f"listed{seed}": Synthetic(SIZE, seed=seed) for seed in range(20)}


@dataclass
class Case:
    """A file that nothing has asked for yet, on the first of two servers; `old` is what it is at first."""

    proxy: Proxy
    url: str
    path: str
    one: FileRemote
    two: FileRemote
    old: Synthetic
    gate: Gate = field(default_factory=Gate)

    def become(self, content: Synthetic | Stored) -> None:
        """The file is another one on the first server from now on."""
        self.one.put(self.path[1:], content)

    def break_off(self, at: int, *, is_reset: bool = False) -> None:
        """The first server's next answer to a GET of the whole breaks at `at`, once the gate is released."""
        stall = Stall(at)
        self.gate = stall.gate
        self.one.script(self.path, stall, Cut(at, reset=is_reset), method="GET", times=1, ranged=False)

    async def pull(self, at: int = MIDDLE, *, change: Callable[[], None] | None = None) -> tuple[bytes, bool]:
        """What a device has, and whether it was all, whose transfer breaks at `at`, just after a change."""
        async with slow_device(self.url) as device:
            await device.read(min(at, SIZE - TAIL))
            if change is not None:
                change()
            self.gate.release()
            is_complete = await device.finish()
            assert (device.status, device.length) == (200, SIZE)
            return bytes(device.body), is_complete

    def is_torn(self, pulled: tuple[bytes, bool]) -> bool:
        """Whether a device had the beginning of the old file, nothing of another one, and saw that this is not all."""
        body, is_complete = pulled
        return not is_complete and len(body) >= MIDDLE and read_all(self.old).startswith(body)

    @property
    def asked(self) -> tuple[list[str | None], list[str | None]]:
        """The ranges that each of the servers was asked for."""
        return self.one.asked_ranges(self.path), self.two.asked_ranges(self.path)

    def is_now(self, answer: Answer, content: Synthetic | Stored) -> bool:
        """Whether a device got this file."""
        return (answer.status, answer.is_complete, answer.body) == (200, True, read_all(content))


@dataclass
class World:
    """A proxy, and a pair of servers for each kind of validators."""

    proxy: Proxy
    pairs: dict[str, tuple[FileRemote, FileRemote]]
    names: Iterator[str] = field(default_factory=lambda: iter(LISTED))

    def case(self, pair: str, base: str = "on_demand") -> Case:
        """Another file of a pair; the second server has something else of the same size under its name."""
        one, two = self.pairs[pair]
        if pair == "listed":
            name = next(self.names)
            return Case(
                self.proxy, f"{self.proxy.url}/pulp/content/{pair}-{base}/{name}", f"/{name}", one, two, LISTED[name]
            )
        old, other = fresh(SIZE), fresh(SIZE)
        name = f"f{old.seed}"
        one.put(name, old)
        two.put(name, other)
        return Case(self.proxy, f"{self.proxy.url}/pulp/content/{pair}-{base}/{name}", f"/{name}", one, two, old)


def over(pair: str, base: str, remote: dict[str, Any], **distribution: Any) -> dict[str, Any]:
    """A distribution over a pair of servers, or over the first one alone."""
    names = ("one",) if base == "alone" else ("one", "two")
    urls = {f"{pair}-{base}-{name}": f"{{{pair}-{name}}}" for name in names}
    settings = {"resume_deadline_seconds": 5, **distribution}
    return pull_through("file", f"{pair}-{base}", urls, remote=remote, distribution=settings)


CONFIGS = [
    *(over(pair, "on_demand", TRYING) for pair in VALIDATORS),
    *(over(pair, "streamed", {**TRYING, "policy": "streamed"}) for pair in VALIDATORS),
    *(over(pair, "alone", TRYING) for pair in ("strong", "bare")),
    over("strong", "quick", {**TRYING, "sock_read_timeout": 0.5}, resume_deadline_seconds=0.8),
    over("strong", "brief", TRYING, resume_deadline_seconds=0.5),
    over("listed", "on_demand", {**TRYING, "cooldown_seconds": 300}),
]


@asynccontextmanager
async def a_world(folder: Path, **more: Any) -> AsyncIterator[World]:
    """The servers, and the proxy in front of them."""
    pairs = {name: (remote(**said), remote(**said)) for name, said in VALIDATORS.items()}
    pairs["listed"] = (FileRemote(LISTED), FileRemote(LISTED))
    async with AsyncExitStack() as stack:
        urls = {}
        for pair, servers in pairs.items():
            for name, server in zip(("one", "two"), servers, strict=True):
                server.keeps_alive = False
                urls[f"{{{pair}-{name}}}"] = f"{(await stack.enter_async_context(server)).url}/"
        config = merged(*CONFIGS)
        remotes = [{**found, "url": urls[found["url"]]} for found in config["remotes"]]
        proxy = await stack.enter_async_context(staged(folder, {**config, "remotes": remotes}, **more))
        for distribution in config["distributions"]:
            await ask(f"{proxy.url}/pulp/content/{distribution['base_path']}/none")  # so that manifests are known
        yield World(proxy, pairs)
    assert "Traceback" not in proxy.output()


def remote(**said: Any) -> FileRemote:
    """A server whose files have no digest."""
    return FileRemote(manifest=False, **said)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def on_disk(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    async with a_world(tmp_path_factory.mktemp("changed")) as started:
        yield started


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def in_memory(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    """One whose quota no body fits in, so that each flight has a window in memory."""
    async with a_world(tmp_path_factory.mktemp("full"), cache={"max_size": "1 MiB"}, window_size=MIB) as started:
        yield started


@pytest_asyncio.fixture(loop_scope="module")
async def world(on_disk: World) -> World:
    return await forgiven(on_disk)


@pytest_asyncio.fixture(loop_scope="module")
async def full(in_memory: World) -> World:
    return await forgiven(in_memory)


async def forgiven(world: World) -> World:
    """With nothing held against anybody any more."""
    await at_rest(world.proxy)
    await world.proxy.admin("/pulp/api/v3/cooldowns/clear/", method="POST", json={})
    return world


@pytest.fixture(params=["disk", "memory"])
def either(request: pytest.FixtureRequest, world: World, full: World) -> World:
    return {"disk": world, "memory": full}[request.param]


def validator_of(pair: str, content: Synthetic) -> str:
    """What If-Range has to say: the strong ETag, else the date."""
    return f'"{etag_of(content)}"' if pair == "strong" else format_datetime(LONG_AGO, usegmt=True)


# It is still the same


@pytest.mark.parametrize("pair", USABLE)
@pytest.mark.parametrize("policy", ["on_demand", "streamed"])
@pytest.mark.parametrize("is_reset", [False, True], ids=["FIN", "RST"])
@pytest.mark.parametrize("at", [1, 65536, MIDDLE, SIZE - TAIL])
async def test_same_file_goes_on(world: World, pair: str, policy: str, at: int, is_reset: bool) -> None:
    case = world.case(pair, policy)
    case.break_off(at, is_reset=is_reset)
    assert await case.pull(at) == (read_all(case.old), True)
    assert case.one.asked_ranges(case.path) == [None, f"bytes={at}-"]
    assert case.one.asked(case.path)[1].headers["If-Range"] == validator_of(pair, case.old)
    assert case.one.sent(case.path) == SIZE
    assert case.two.count(case.path) == 0


@pytest.mark.parametrize("pair", USABLE)
async def test_same_file_goes_on_in_memory(full: World, pair: str) -> None:
    case = full.case(pair)
    case.break_off(MIDDLE)
    assert await case.pull() == (read_all(case.old), True)
    assert case.one.asked(case.path)[1].headers["If-Range"] == validator_of(pair, case.old)
    assert case.two.count(case.path) == 0


async def test_break_before_the_first_byte(world: World) -> None:
    """Nothing has to fit to anything yet, so that any remote may begin."""
    case = world.case("strong")
    case.two.put(case.path[1:], case.old)
    case.one.script(case.path, Cut(0, reset=False), method="GET", times=1)
    assert case.is_now(await ask(case.url), case.old)
    assert [*case.one.asked_ranges(case.path), *case.two.asked_ranges(case.path)] == [None, None]


async def test_break_behind_all_but_what_is_held_back(world: World) -> None:
    case = world.case("strong")
    case.break_off(SIZE - 1)
    case.gate.release()
    assert case.is_now(await ask(case.url), case.old)
    assert case.one.count(case.path) == 2
    assert case.two.count(case.path) == 0


async def test_same_file_goes_on_after_a_stall(world: World) -> None:
    case = world.case("strong", "quick")
    case.one.script(case.path, Stall(MIDDLE), method="GET", times=1)
    assert case.is_now(await ask(case.url), case.old)
    assert case.one.asked_ranges(case.path) == [None, REST]
    assert case.two.count(case.path) == 0


@pytest.mark.parametrize(("seconds", "is_usable"), [(0, False), (1, True)])
async def test_date_must_be_older_than_the_answer(world: World, seconds: int, is_usable: bool) -> None:
    """Within the same second the file may have changed once more (RFC 9110, 8.8.2.2)."""
    case = world.case("dated", "streamed")
    date = format_datetime(LATER + timedelta(seconds=seconds), usegmt=True)
    said = Headers({"Date": date, "Last-Modified": format_datetime(LATER, usegmt=True)})
    case.one.script(case.path, said, method="GET", ranged=True)
    stall = Stall(MIDDLE)
    case.gate = stall.gate
    case.one.script(case.path, said, stall, Cut(MIDDLE, reset=False), method="GET", times=1)
    pulled = await case.pull()
    assert pulled == (read_all(case.old), True) if is_usable else case.is_torn(pulled)
    assert case.one.asked_ranges(case.path) == ([None, REST] if is_usable else [None])


# Nothing says that it is


@pytest.mark.parametrize("pair", USELESS)
@pytest.mark.parametrize("has_changed", [False, True])
async def test_without_a_usable_validator(either: World, pair: str, has_changed: bool) -> None:
    """The file may be another one of the same size: no device could tell."""
    case, new = either.case(pair), fresh(SIZE)
    case.break_off(MIDDLE)
    assert case.is_torn(await case.pull(change=lambda: case.become(new) if has_changed else None)), case.asked
    await at_rest(case.proxy)
    assert case.is_now(await ask(case.url), new if has_changed else case.old)
    assert set(case.one.asked_ranges(case.path)) == {None}
    assert case.two.count(case.path) == 0


@pytest.mark.parametrize("pair", USELESS)
async def test_stored_transfer_starts_again_by_itself(world: World, pair: str) -> None:
    """With no device there, so that the next one finds it stored."""
    case = world.case(pair)
    case.break_off(MIDDLE)
    assert case.is_torn(await case.pull()), case.asked
    await case.one.seen(case.path, 2)
    await at_rest(case.proxy)
    answer = await ask(case.url)
    assert case.is_now(answer, case.old)
    assert answer.cache == "hit"
    assert case.one.asked_ranges(case.path) == [None, None]
    assert case.two.count(case.path) == 0


async def test_streamed_transfer_does_not_start_again(world: World) -> None:
    case = world.case("bare", "streamed")
    case.break_off(MIDDLE)
    assert case.is_torn(await case.pull()), case.asked
    await at_rest(case.proxy)
    assert (case.one.count(case.path), case.two.count(case.path)) == (1, 0)


async def test_starts_again_only_once(world: World) -> None:
    """What breaks again in the same way waits for the next request."""
    case = world.case("bare", "alone")
    case.one.script(case.path, Cut(MIDDLE, reset=False), method="GET", first=2, times=1)
    case.break_off(MIDDLE)
    assert case.is_torn(await case.pull()), case.asked
    await case.one.seen(case.path, 2)
    await at_rest(case.proxy)
    assert case.one.asked_ranges(case.path) == [None, None]
    assert case.is_now(await ask(case.url), case.old)
    assert case.one.asked_ranges(case.path) == [None, None, None]


# It has changed

OLD, NEW = fresh(SIZE), fresh(SIZE)
SHORTER, LONGER = fresh(SIZE - 1000), fresh(SIZE + 1000)


@dataclass(frozen=True)
class Change:
    """What becomes of the file between the two halves, and what is odd about the answer to the range."""

    pair: str
    new: Synthetic | Stored = NEW
    is_dated_later: bool = False
    faults: tuple[Fault, ...] = ()


CHANGES = {
    "etag": Change("strong"),
    "size": Change("strong", LONGER),
    "shorter than what is held": Change("strong", fresh(MIDDLE // 2)),
    "date": Change("dated", is_dated_later=True),
    "206 with another etag": Change("strong", faults=(IgnoreIfRange(),)),
    "206 with a weak etag": Change("strong", faults=(IgnoreIfRange(), changed_etag('W/"other"'))),
    "206 with another date": Change("dated", is_dated_later=True, faults=(IgnoreIfRange(),)),
    "206 with another total": Change("dated", LONGER, faults=(IgnoreIfRange(),)),
    "206 with a smaller total": Change("dated", SHORTER, faults=(IgnoreIfRange(),)),
    "416": Change("dated", fresh(MIDDLE // 2), faults=(IgnoreIfRange(),)),
    "200": Change("dated", faults=(IgnoreRange(),)),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
async def test_changed_file(either: World, change: Change) -> None:
    """The response is reset; the next one is the new file, whole. No other remote is asked for it."""
    case = either.case(change.pair)
    later = Headers({"Last-Modified": format_datetime(LATER, usegmt=True)} if change.is_dated_later else {})
    case.one.script(case.path, later, *change.faults, method="GET", ranged=True)
    case.break_off(MIDDLE)
    case.one.script(case.path, later, method="GET", ranged=False)
    assert case.is_torn(await case.pull(change=lambda: case.become(change.new))), case.asked
    await at_rest(case.proxy)
    assert case.is_now(await ask(case.url), change.new)
    assert case.two.count(case.path) == 0
    whole, rest, *again = case.one.asked_ranges(case.path)
    assert (whole, rest, set(again)) == (None, REST, {None})


async def test_changed_file_is_fetched_once_more_and_stored(world: World) -> None:
    """By itself: the next device finds it."""
    case = world.case("strong")
    case.break_off(MIDDLE)
    assert case.is_torn(await case.pull(change=lambda: case.become(NEW))), case.asked
    await case.one.seen(case.path, 3)
    await at_rest(case.proxy)
    answer = await ask(case.url)
    assert case.is_now(answer, NEW)
    assert answer.cache == "hit"
    assert case.one.asked_ranges(case.path) == [None, REST, None]


@pytest.mark.parametrize("pair", USABLE)
async def test_whole_although_nothing_has_changed(either: World, pair: str) -> None:
    """A server that does not do ranges: its 200 is no answer to a response that is open."""
    case = either.case(pair)
    case.one.script(case.path, IgnoreRange(), method="GET", ranged=True)
    case.break_off(MIDDLE)
    assert case.is_torn(await case.pull()), case.asked
    await at_rest(case.proxy)
    assert case.is_now(await ask(case.url), case.old)
    assert case.two.count(case.path) == 0


@pytest.mark.parametrize("policy", ["on_demand", "streamed"])
async def test_every_device_of_a_changed_file_is_reset(world: World, policy: str) -> None:
    case = world.case("strong", policy)
    case.break_off(MIDDLE)
    async with AsyncExitStack() as stack:
        devices = [await stack.enter_async_context(slow_device(case.url)) for _ in range(20)]
        for device in devices:
            await device.read(1000)
        case.become(NEW)
        case.gate.release()
        assert not any(await asyncio.gather(*(device.finish() for device in devices)))
        assert all(read_all(case.old).startswith(device.body) for device in devices)
    await at_rest(case.proxy)
    assert case.is_now(await ask(case.url), NEW)
    assert case.two.count(case.path) == 0


async def test_file_that_changes_twice(world: World) -> None:
    """The transfer that has started again breaks as well, over a third file: it is not started a third time."""
    case, third = world.case("strong", "alone"), fresh(SIZE)
    again = Stall(MIDDLE)
    case.one.script(case.path, again, Cut(MIDDLE, reset=False), method="GET", ranged=False, first=2, times=1)
    case.break_off(MIDDLE)
    assert case.is_torn(await case.pull(change=lambda: case.become(NEW))), case.asked
    await again.gate.reached()
    case.become(third)
    again.gate.release()
    await at_rest(case.proxy)
    assert case.one.asked_ranges(case.path).count(None) == 2
    assert case.is_now(await until_hit(case.url), third)
    assert case.two.count(case.path) == 0


async def test_vanished_file(either: World) -> None:
    """The other remote has another file under this name: it may not end what the first one has begun."""
    case = either.case("strong")
    case.break_off(MIDDLE)
    assert case.is_torn(await case.pull(change=lambda: case.one.files.__delitem__(case.path[1:]))), case.asked
    await at_rest(case.proxy)
    assert case.is_now(await ask(case.url), Synthetic(SIZE, seed=case.old.seed + 1))
    assert set(case.two.asked_ranges(case.path)) == {None}


@pytest.mark.parametrize(
    "refusal",
    [Status(503), Drop(), Cut(0, reset=False), WrongRange(shift=1), WrongRange(shift=-1)],
    ids=["503", "dropped", "nothing", "another start", "another start before"],
)
async def test_no_other_remote_goes_on(either: World, refusal: Fault) -> None:
    """Not even one that has the same file, as far as its validators tell."""
    case = either.case("strong", "brief")
    case.two.put(case.path[1:], case.old)
    rule = case.one.script(case.path, refusal, method="GET", ranged=True)
    case.break_off(MIDDLE)
    assert case.is_torn(await case.pull()), case.asked
    rule.times = rule.hits
    assert rule.hits >= 1
    await at_rest(case.proxy)
    assert case.is_now(await ask(case.url), case.old)
    assert set(case.two.asked_ranges(case.path)) <= {None}


# The digest is known, but the file is another one


@pytest.mark.parametrize("is_same_size", [True, False])
async def test_listed_file_changes_unseen(world: World, is_same_size: bool) -> None:
    """Its validators are what they were. One size: the whole is wrong, and got anew; else the range is refused."""
    case = world.case("listed")
    new = Replace(NEW if is_same_size else LONGER)
    same = Headers({"ETag": f'"{etag_of(case.old)}"'})
    case.one.script(case.path, new, same, method="GET", ranged=True)
    case.break_off(MIDDLE)
    body, is_complete = await case.pull()
    if is_same_size:
        assert not is_complete
        assert body[:MIDDLE] == read_all(case.old)[:MIDDLE]
    else:
        assert (body, is_complete) == (read_all(case.old), True)
    await at_rest(case.proxy)
    assert case.is_now(await ask(case.url), case.old)
    assert set(case.two.asked_ranges(case.path)) <= ({None} if is_same_size else {REST})


async def test_listed_file_is_another_one_on_the_next_remote(world: World) -> None:
    """The whole is wrong, and two have made it: the first is right alone, and the other cools."""
    case = world.case("listed")
    case.one.script(case.path, Status(500), method="GET", ranged=True)
    case.two.script(case.path, Replace(NEW), method="GET")
    case.break_off(MIDDLE)
    body, is_complete = await case.pull()
    assert not is_complete
    assert body[:MIDDLE] == read_all(case.old)[:MIDDLE]
    await at_rest(case.proxy)
    assert case.is_now(await ask(case.url), case.old)
    cooling = (await case.proxy.admin("/pulp/api/v3/cooldowns/?scope=artifact"))["results"]
    assert [item["remote"] for item in cooling if item["retry_after"] > 0] == ["listed-on_demand-two"]
    assert case.two.asked_ranges(case.path) in ([REST], [REST, None])


@pytest.mark.parametrize("at", [10, MIDDLE])
async def test_listed_file_vanishes(world: World, at: int) -> None:
    """Its digest is known, so that any other remote may go on."""
    case = world.case("listed")
    case.one.script(case.path, Status(404), method="GET", ranged=True)
    case.two.script(case.path, changed_etag(), method="GET")
    case.break_off(at)
    assert await case.pull(at) == (read_all(case.old), True)
    assert case.two.asked_ranges(case.path) == [f"bytes={at}-"]

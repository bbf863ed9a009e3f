"""Bodies whose chunks are held against a list before they are passed on."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass, field, replace
from itertools import cycle
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contentapp.core.byterange import ByteRange
from contentapp.core.chunks import ChunkHasher, ChunkList
from contentapp.core.digest import Digest
from contentapp.core.errors import ContentAppError
from contentapp.core.settings import KIB, MIB
from contentapp.pipeline.chunked import LARGEST_CHECKED, Checked, ChunkMemory, KnownChunks, Repair
from contentapp.pipeline.fetch import Refusal, Refusals
from contentapp.pipeline.resume import Terms, Transfer
from contentapp.pipeline.wrong import WrongChunk
from contentapp.upstream.base import UpstreamRequest
from tests.unit.pipeline.scripted import A, Answer, B, C, Reply, ScriptedFetcher

CHUNK = 64 * KIB
RIGHT = b"".join(number.to_bytes(4) for number in range(3 * CHUNK // 4)) + b"the last one"
COUNT = 4
DIGEST = Digest.of(RIGHT)
ALL = range(COUNT)


def list_of(body: bytes) -> ChunkList:
    hasher = ChunkHasher(CHUNK)
    hasher.update(body)
    return hasher.finish()


CHUNKS = list_of(RIGHT)


def wrong_in(*indexes: int, by: int = 1) -> bytes:
    """The body with a wrong byte in these chunks; another wrong one for another `by`."""
    body = bytearray(RIGHT)
    for index in indexes:
        body[CHUNKS.span(index).end - 1] ^= by
    return bytes(body)


def lying_about(*indexes: int) -> ChunkList:
    """A list in which these digests are nobody's."""
    digests = bytearray(CHUNKS.digests)
    for index in indexes:
        digests[index * 32] ^= 1
    return replace(CHUNKS, digests=bytes(digests))


@dataclass
class Cut(Answer):
    """One whose body comes in pieces of these sizes, over and over."""

    pieces: Sequence[int] = (CHUNK,)

    async def chunks(self) -> AsyncIterator[bytes]:
        start, sizes = self.offset, cycle(self.pieces)
        while start < len(self.body):
            stop = start + next(sizes)
            yield self.body[start:stop]
            start = stop


Body = bytes | Refusal | Answer


@dataclass
class Serving(ScriptedFetcher):
    """Sources that serve bodies, a new one with each request until the last, at any range."""

    bodies: Mapping[str, Sequence[Body]]
    pieces: Sequence[int] = (CHUNK,)
    size: int | None = len(RIGHT)
    spans: list[tuple[str, int, int | None]] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__({})
        self._left = {name: list(bodies) for name, bodies in self.bodies.items()}

    def reply(self, name: str, wanted: UpstreamRequest) -> Reply:
        self.spans.append((name, wanted.offset, wanted.end))
        left = self._left.get(name, [])
        if not left:
            return Refusal(name, "absent", "answered 404", status=404)
        body = left.pop(0) if len(left) > 1 else left[0]
        if not isinstance(body, bytes):
            return body
        status = 206 if wanted.offset or wanted.end is not None else 200
        return Cut(offset=wanted.offset, body=body[: wanted.end], size=self.size, pieces=self.pieces, status=status)

    @property
    def repairs(self) -> list[str]:
        """Who was asked for chunks, in order."""
        return [name for name, _, end in self.spans if end is not None]


@dataclass
class Run:
    """What came out, and what came of it."""

    fetcher: Serving
    checked: Checked
    body: bytes = b""
    error: ContentAppError | None = None
    contributors: tuple[str, ...] = ()
    is_composed: bool = False
    distrusted: int = 0
    most_buffered: int = 0

    @property
    def wrong(self) -> list[str]:
        return [name for name, _ in self.fetcher.wrong]


async def begun(fetcher: Serving, exchange: AsyncExitStack, terms: Terms, offset: int) -> Transfer:
    """A transfer that A has answered; in the middle as after a restart."""
    if offset:
        transfer = Transfer(fetcher, exchange, A, terms, offset)  # type: ignore[arg-type]
        assert await transfer.reopen(Refusals())
        return transfer
    opened = fetcher.open([A], lambda each: UpstreamRequest(source=each), refusals=Refusals())
    fetched = await exchange.enter_async_context(opened)
    return Transfer.begun(fetcher, exchange, fetched, terms)  # type: ignore[arg-type]


async def run(
    fetcher: Serving,
    *,
    chunks: ChunkList = CHUNKS,
    is_proven: bool = True,
    is_learned: bool = True,
    offset: int = 0,
    memory: ChunkMemory | None = None,
    **terms: Any,
) -> Run:
    """Have a transfer from A, B and C checked to its end."""
    defaults: dict[str, Any] = {
        "sources": (A, B, C),
        "digest": DIGEST,
        "size": fetcher.size,
        "deadline_seconds": 5.0,
        "first_byte_deadline_seconds": 5.0,
    }
    async with AsyncExitStack() as exchange:
        transfer = await begun(fetcher, exchange, Terms(**(defaults | terms)), offset)
        repair = Repair(fetcher=fetcher, sources=(A, B, C), digest=DIGEST, deadline_seconds=5.0)  # type: ignore[arg-type]
        buffered: list[bytes] = []
        known = KnownChunks(chunks, is_proven, is_learned and is_proven)
        distrusted: list[None] = []
        checked = Checked(transfer, known, repair, memory or ChunkMemory(), buffered, lambda: distrusted.append(None))
        found = Run(fetcher, checked)
        try:
            async for piece in checked.chunks():
                assert piece
                found.body += piece
                found.most_buffered = max(found.most_buffered, sum(map(len, buffered)))
                assert found.most_buffered <= max(CHUNK, len(piece))
        except ContentAppError as error:
            found.error = error
        found.contributors = tuple(fetched.source.remote.name for fetched in transfer.exchanges.values())
        found.is_composed, found.distrusted = transfer.is_composed, len(distrusted)
    assert fetcher.opened == 0
    return found


@pytest.mark.parametrize(
    ("changes", "fits"),
    [
        ({}, True),
        ({"size": None}, False),
        ({"size": len(RIGHT) - 1}, False),
        ({"digest": Digest.of(b"another")}, False),
        ({"digest": Digest.of(RIGHT, "sha512")}, False),
    ],
)
def test_a_list_fits_what_it_speaks_of(changes: dict[str, Any], fits: bool) -> None:
    asked: dict[str, Any] = {"digest": DIGEST, "size": len(RIGHT)} | changes
    assert KnownChunks(CHUNKS, is_proven=True).fits(**asked) == fits


@pytest.mark.parametrize(("chunk_size", "fits"), [(LARGEST_CHECKED, True), (LARGEST_CHECKED + 1, False)])
def test_a_list_of_too_large_chunks_does_not_fit(chunk_size: int, fits: bool) -> None:
    large = ChunkList(MIB, chunk_size, DIGEST, bytes(32))
    assert KnownChunks(large, is_proven=True).fits(DIGEST, MIB) == fits


# A proven list

pieces = st.lists(st.integers(1, 3 * CHUNK), max_size=4).map(lambda sizes: [*sizes, CHUNK // 3])  # never all tiny
wrong_chunks = st.sets(st.sampled_from(list(ALL)))


@given(
    first=wrong_chunks,
    second=wrong_chunks,
    others=st.tuples(wrong_chunks, wrong_chunks),
    pieces=pieces,
    offset=st.one_of(st.integers(0, len(RIGHT) - 1), st.sampled_from([0, CHUNK, 3 * CHUNK])),
    is_learned=st.booleans(),
)
@settings(max_examples=60, deadline=None)
async def test_a_wrong_chunk_is_passed_on_only_when_every_source_has_it_wrong(
    first: set[int],
    second: set[int],
    others: tuple[set[int], set[int]],
    pieces: list[int],
    offset: int,
    is_learned: bool,
) -> None:
    """And then never, if the list is beyond doubt; else nothing is checked any more.

    first, second: the chunks that A has wrong at first, and when it is asked again; others: B's and C's.
    """
    bodies = {"a": [wrong_in(*first), wrong_in(*second)], "b": [wrong_in(*others[0])], "c": [wrong_in(*others[1])]}
    asked = {"b": others[0], "c": others[1], "a": second}
    begun = -(-offset // CHUNK)  # of the chunk in whose middle it begins only the whole digest can tell
    expected, convicted, is_stopped, is_trusted = wrong_in(*first)[offset : begun * CHUNK], set[str](), False, True
    for index in range(begun, COUNT):
        span = CHUNKS.span(index)
        wrong = ["a"]
        for name, theirs in asked.items():
            if index not in theirs:
                break
            wrong.append(name)
        is_found = len(wrong) <= len(asked)
        if index in first and is_trusted:
            if is_found:
                convicted.update(set(wrong) - {list(asked)[len(wrong) - 1]})
            elif is_learned:
                convicted.update(asked)
                is_stopped = True
                break
            is_trusted = is_found
        is_right = index not in first or (is_trusted and is_found)
        expected += (RIGHT if is_right else wrong_in(*first))[span.start : span.end]
    found = await run(Serving(bodies, pieces=pieces), offset=offset, is_learned=is_learned)
    assert found.body == expected
    assert isinstance(found.error, WrongChunk) == is_stopped
    assert {source.remote.name for source in (A, B, C) if source.url in found.checked.convicted} == convicted
    assert set(found.wrong) == convicted
    assert {digest for _, digest in found.fetcher.wrong} <= {DIGEST}
    assert found.distrusted == (not is_trusted)


async def test_a_right_body_asks_nobody_else() -> None:
    found = await run(Serving({"a": [RIGHT]}, pieces=[1000]))
    assert (found.body, found.error, found.fetcher.repairs) == (RIGHT, None, [])
    assert (found.contributors, found.is_composed, found.checked.buffered) == (("a",), False, [])


async def test_only_the_wrong_chunk_is_fetched_and_who_has_it_contributes() -> None:
    found = await run(Serving({"a": [wrong_in(2)], "b": [RIGHT]}))
    assert found.body == RIGHT
    assert found.fetcher.spans == [("a", 0, None), ("b", 2 * CHUNK, 3 * CHUNK)]
    assert (found.contributors, found.is_composed) == (("a", "b"), True)
    assert (found.wrong, found.checked.convicted) == (["a"], {A.url})


async def test_the_last_chunk_is_fetched_to_its_end() -> None:
    found = await run(Serving({"a": [wrong_in(3)], "b": [RIGHT]}))
    assert found.body == RIGHT
    assert found.fetcher.spans[1:] == [("b", 3 * CHUNK, len(RIGHT))]


async def test_a_source_that_is_right_the_second_time_is_not_convicted() -> None:
    """It was the way there, not the source."""
    found = await run(Serving({"a": [wrong_in(1), RIGHT]}))
    assert (found.body, found.wrong, found.checked.convicted) == (RIGHT, [], set())
    assert found.fetcher.repairs == ["b", "c", "a"]


async def test_without_a_right_source_it_ends_before_the_wrong_chunk() -> None:
    found = await run(Serving({"a": [wrong_in(1)], "b": [wrong_in(1)], "c": [wrong_in(1)]}))
    assert found.body == RIGHT[:CHUNK]
    assert isinstance(found.error, WrongChunk)
    assert (found.wrong, found.distrusted) == (["a", "b", "c"], 0)


async def test_nobody_answers_for_a_wrong_chunk() -> None:
    found = await run(Serving({"a": [wrong_in(1), Refusal("a", "failed", "refused")]}))
    assert found.body == RIGHT[:CHUNK]
    assert isinstance(found.error, WrongChunk)
    assert found.wrong == ["a"]


async def test_a_listed_list_that_nobody_agrees_with_is_dropped() -> None:
    """Whoever wrote it is not believed: nobody is blamed, and the digest of the whole has the last word."""
    found = await run(Serving({name: [RIGHT] for name in "abc"}), chunks=lying_about(1, 2), is_learned=False)
    assert (found.body, found.error, found.wrong, found.distrusted) == (RIGHT, None, [], 1)
    assert found.fetcher.repairs == ["b", "c", "a"]
    assert (found.contributors, found.is_composed) == (("a",), False)


async def test_whoever_was_wrong_before_the_right_one_is_convicted_once() -> None:
    found = await run(Serving({"a": [wrong_in(1), wrong_in(1)], "b": [wrong_in(1)], "c": [RIGHT]}))
    assert (found.body, found.wrong) == (RIGHT, ["a", "b"])


def part(end: int, *, start: int = CHUNK, status: int = 206, count: int | None = None) -> Answer:
    return Answer(offset=start, body=RIGHT[:end], status=status, count=count)


@dataclass
class Stalled(Answer):
    """One that sends some bytes, and no more."""

    async def chunks(self) -> AsyncIterator[bytes]:
        yield self.body[self.offset : self.offset + 100]
        await asyncio.Event().wait()


@pytest.mark.parametrize(
    ("answer", "failures"),
    [
        (Refusal("b", "failed", "refused"), []),
        (Refusal("b", "absent", "answered 404", status=404), []),
        (Refusal("b", "denied", "no"), []),
        (Answer(), []),
        (part(2 * CHUNK, count=CHUNK - 1), [("b", "cut")]),
        (part(2 * CHUNK - 1), []),
        (part(2 * CHUNK + 1), [("b", "too long")]),
        (part(CHUNK), []),
        (part(2 * CHUNK - 1, start=CHUNK - 1), []),
        (part(2 * CHUNK, status=200), []),
    ],
    ids=["refused", "absent", "denied", "whole", "cut", "short", "long", "empty", "another range", "no range"],
)
async def test_a_source_that_does_not_deliver_the_chunk_is_passed_over(
    answer: Answer | Refusal, failures: list[tuple[str, str]]
) -> None:
    found = await run(Serving({"a": [wrong_in(1)], "b": [answer], "c": [RIGHT]}))
    assert (found.body, found.error) == (RIGHT, None)
    assert found.contributors == ("a", "c")
    assert (found.wrong, found.fetcher.failures) == (["a"], failures)


async def test_each_source_has_its_time_for_the_chunk() -> None:
    deadlines: list[float] = []

    class Watched(Serving):
        def open(self, sources: Any, request: Any, **options: Any) -> Any:
            if "deadline" in options:
                deadlines.append(options["deadline"])
                assert options["must_exist"] and options["digest"] == DIGEST
            return super().open(sources, request, **options)

    before = asyncio.get_running_loop().time()
    fetcher = Watched({"a": [wrong_in(0)], "b": [wrong_in(0)], "c": [RIGHT]})
    assert (await run(fetcher)).body == RIGHT
    assert len(deadlines) == 2
    assert all(deadline >= before + 5.0 for deadline in deadlines)


async def test_a_source_that_stalls_within_the_chunk_is_left_at_its_deadline() -> None:
    fetcher = Serving({"a": [RIGHT], "b": [Stalled(offset=CHUNK, body=RIGHT, status=206)]})
    repair = Repair(fetcher=fetcher, sources=(B,), digest=DIGEST, deadline_seconds=0.05)  # type: ignore[arg-type]
    async with asyncio.timeout(10):
        names = [fetched.source.remote.name async for fetched, _ in repair.fetch(ByteRange(CHUNK, 2 * CHUNK), A)]
    assert (names, fetcher.repairs, fetcher.opened) == (["a"], ["b", "a"], 0)


async def test_the_same_source_is_asked_again_as_the_last() -> None:
    fetcher = Serving({"a": [RIGHT], "b": [RIGHT], "c": [RIGHT]})
    repair = Repair(fetcher=fetcher, sources=(A, B, C), digest=DIGEST, deadline_seconds=5.0)  # type: ignore[arg-type]
    names = [fetched.source.remote.name async for fetched, _ in repair.fetch(ByteRange(0, CHUNK), B)]
    assert names == ["a", "c", "b"]


# Beginning in the middle, other lengths


@pytest.mark.parametrize("offset", [1, CHUNK - 1, CHUNK + 1, 3 * CHUNK + 1])
async def test_a_chunk_that_began_in_the_middle_is_passed_on_as_it_is(offset: int) -> None:
    found = await run(Serving({"a": [wrong_in(*ALL)], "b": [RIGHT]}), offset=offset)
    border = min(-(-offset // CHUNK) * CHUNK, len(RIGHT))
    assert found.body == wrong_in(*ALL)[offset:border] + RIGHT[border:]


@pytest.mark.parametrize("offset", [CHUNK, 3 * CHUNK])
async def test_one_that_begins_at_a_border_is_checked_from_there(offset: int) -> None:
    found = await run(Serving({"a": [wrong_in(*ALL)], "b": [RIGHT]}), offset=offset)
    assert found.body == RIGHT[offset:]


@given(length=st.integers(0, len(RIGHT) - 1), pieces=pieces, is_proven=st.booleans())
@settings(max_examples=30, deadline=None)
async def test_a_body_that_ends_early_is_passed_on_whole(length: int, pieces: list[int], is_proven: bool) -> None:
    """That it is too short the caller sees."""
    fetcher = Serving({"a": [wrong_in(0)[:length]], "b": [RIGHT]}, pieces=pieces, size=None)
    found = await run(fetcher, is_proven=is_proven)
    assert found.body == (RIGHT if length >= CHUNK else wrong_in(0))[:length]
    assert found.error is None


@given(extra=st.integers(1, 2 * CHUNK), pieces=pieces, last=st.booleans())
@settings(max_examples=30, deadline=None)
async def test_what_comes_behind_the_lists_end_is_passed_on(extra: int, pieces: list[int], last: bool) -> None:
    """That it is too long the caller sees; also when the last chunk was replaced."""
    behind = bytes(extra)
    fetcher = Serving({"a": [wrong_in(*[3] * last) + behind], "b": [RIGHT]}, pieces=pieces, size=None)
    found = await run(fetcher)
    assert (found.body, found.error) == (RIGHT + behind, None)


async def test_the_error_of_the_transfer_comes_behind_whole_chunks() -> None:
    """Nothing of a chunk that did not become whole is passed on; it is in `buffered` meanwhile."""
    broken = Answer(body=RIGHT, count=CHUNK + 10, step=CHUNK + 10, size=len(RIGHT))
    found = await run(Serving({"a": [broken, Refusal("a", "denied", "no")]}))
    assert found.body == RIGHT[:CHUNK]
    assert found.error is not None
    assert found.checked.buffered == [RIGHT[CHUNK : CHUNK + 10]]


async def test_a_transfer_that_goes_on_elsewhere_completes_its_chunk() -> None:
    """A chunk's bytes of two sources are one chunk all the same."""
    broken = Answer(body=RIGHT, count=CHUNK + 10, step=999, size=len(RIGHT))
    found = await run(Serving({"a": [broken, Refusal("a", "failed", "refused")], "b": [RIGHT]}))
    assert (found.body, found.error, found.contributors) == (RIGHT, None, ("a", "b"))
    assert found.fetcher.repairs == []


# A hint


@given(
    bodies=st.tuples(*[st.tuples(wrong_chunks, st.sampled_from([1, 2]))] * 4),
    lies=wrong_chunks,
    pieces=pieces,
    offset=st.integers(0, len(RIGHT) - 1),
)
@settings(max_examples=60, deadline=None)
async def test_a_hint_never_fails_or_blames(
    bodies: tuple[tuple[set[int], int], ...], lies: set[int], pieces: list[int], offset: int
) -> None:
    """Each chunk is the transfer's own, or one that the hint confirms."""
    first, second, b, c = (wrong_in(*indexes, by=by) for indexes, by in bodies)
    hint = lying_about(*lies)
    found = await run(
        Serving({"a": [first, second], "b": [b], "c": [c]}, pieces=pieces), chunks=hint, is_proven=False, offset=offset
    )
    assert (found.error, found.wrong, found.checked.convicted) == (None, [], set())
    assert found.distrusted <= 1
    assert len(found.body) == len(RIGHT) - offset
    for index in range(-(-offset // CHUNK), COUNT):
        span = CHUNKS.span(index)
        passed = found.body[span.start - offset : span.end - offset]
        assert passed == first[span.start : span.end] or hint.matches(index, hashlib.sha256(passed).digest())


async def test_a_confirmed_hint_replaces_without_blame() -> None:
    found = await run(Serving({"a": [wrong_in(1, 3)], "b": [RIGHT]}), is_proven=False)
    assert (found.body, found.wrong, found.checked.convicted) == (RIGHT, [], set())
    assert found.fetcher.repairs == ["b", "b"]
    assert (found.contributors, found.is_composed) == (("a", "b"), True)


async def test_a_hint_that_two_answers_contradict_is_dropped() -> None:
    """The first other one that agrees is enough, and the rest is not looked at any more."""
    body = wrong_in(3)
    found = await run(Serving({"a": [body], "b": [body], "c": [body]}), chunks=lying_about(1), is_proven=False)
    assert (found.body, found.fetcher.repairs, found.distrusted) == (body, ["b"], 1)
    assert (found.contributors, found.is_composed) == (("a",), False)


async def test_a_hint_that_nobody_confirms_or_contradicts_is_dropped() -> None:
    """All have other bytes, and the whole digest has the last word."""
    fetcher = Serving({"a": [wrong_in(0), wrong_in(0, by=2)], "b": [wrong_in(0, by=4)], "c": [wrong_in(0, by=8)]})
    found = await run(fetcher, is_proven=False)
    assert (found.body, found.fetcher.repairs, found.wrong) == (wrong_in(0), ["b", "c", "a"], [])


async def test_a_hint_is_confirmed_by_the_second_other_one() -> None:
    fetcher = Serving({"a": [wrong_in(0)], "b": [wrong_in(0, by=2)], "c": [RIGHT]})
    found = await run(fetcher, is_proven=False)
    assert (found.body, found.fetcher.repairs, found.contributors) == (RIGHT, ["b", "c"], ("a", "c"))


async def test_a_hint_of_the_only_source_is_asked_of_it_again() -> None:
    found = await run(Serving({"a": [wrong_in(0)]}), is_proven=False)
    assert (found.body, found.error, found.fetcher.repairs[-1]) == (wrong_in(0), None, "a")


# Memory


def has_room(memory: ChunkMemory, size: int) -> bool:
    with memory.room(size) as is_there:
        return is_there


def test_room_is_held_and_given_back() -> None:
    memory = ChunkMemory(10)
    with memory.room(6) as first, memory.room(5) as second, memory.room(4) as third:
        assert (first, second, third) == (True, False, True)
        assert not has_room(memory, 1)
    assert has_room(memory, 10)
    assert not has_room(memory, 11)


def test_room_is_given_back_after_an_error() -> None:
    memory = ChunkMemory(10)
    with pytest.raises(ValueError, match="a bug"), memory.room(10), memory.room(10):
        raise ValueError("a bug")
    assert has_room(memory, 10)
    assert not has_room(memory, 11)


@given(st.lists(st.integers(1, 10), max_size=12))
def test_no_more_is_held_than_there_is(sizes: list[int]) -> None:
    memory, used = ChunkMemory(10), 0
    with ExitStack() as held:
        for size in sizes:
            is_there = held.enter_context(memory.room(size))
            assert is_there == (used + size <= 10)
            used += size if is_there else 0
    assert has_room(memory, 10)
    assert not has_room(memory, 11)


@pytest.mark.parametrize("is_proven", [True, False])
async def test_without_room_nothing_is_checked_or_held(is_proven: bool) -> None:
    memory = ChunkMemory(CHUNK - 1)
    found = await run(Serving({"a": [wrong_in(1)], "b": [RIGHT]}, pieces=[1000]), memory=memory, is_proven=is_proven)
    assert (found.body, found.error, found.fetcher.repairs) == (wrong_in(1), None, [])
    assert (found.distrusted, found.checked.buffered, found.most_buffered) == (1, [], 1000)
    assert has_room(memory, CHUNK - 1)


@pytest.mark.parametrize(
    "bodies",
    [
        {"a": [RIGHT]},
        {"a": [wrong_in(1)], "b": [wrong_in(1)]},
        {"a": [Answer(count=0)]},
        {"a": [Answer(body=RIGHT, count=CHUNK + 10, size=len(RIGHT)), Refusal("a", "denied", "no")]},
    ],
    ids=["right", "wrong", "broken", "broken later"],
)
async def test_every_body_gives_its_room_back(bodies: dict[str, list[Body]]) -> None:
    memory = ChunkMemory(CHUNK)
    await run(Serving(bodies), memory=memory)
    assert has_room(memory, CHUNK)


async def test_a_body_that_is_left_gives_its_room_back() -> None:
    memory = ChunkMemory(CHUNK)
    task = asyncio.create_task(run(Serving({"a": [Stalled(body=RIGHT)]}), memory=memory))
    async with asyncio.timeout(10):
        while has_room(memory, CHUNK):
            await asyncio.sleep(0.001)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert has_room(memory, CHUNK)

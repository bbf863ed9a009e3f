"""Who is to blame for a failed attempt, and what comes next."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from contentapp.core.digest import Digest
from contentapp.core.errors import ContentAppError, ContentUnavailable, TransferInterrupted, UpstreamStatusError
from contentapp.core.records import Source
from contentapp.pipeline.blame import Blame
from contentapp.pipeline.course import Course
from contentapp.pipeline.fetch import Fetcher, Refusal, Refusals
from contentapp.pipeline.flight import Flight
from contentapp.pipeline.load import Load
from contentapp.pipeline.progress import Attempt
from contentapp.pipeline.resume import CannotGoOn, Changed
from contentapp.pipeline.wrong import ExpectationOutdated, WrongBytes, WrongChunk, WrongSize
from tests.unit.pipeline.scripted import BODY, A, B, C, ScriptedFetcher, plan

DIGEST = Digest.of(BODY)
REFUSED = Refusals([Refusal("a", "failed", "refused", "connection refused", 7.0)])


@dataclass
class World:
    """An attempt that began with `began` and came last from `last`, and all there is to blame."""

    began: Source = A
    last: Source = A
    contributors: tuple[Source, ...] = (A,)
    earlier: tuple[Source, ...] = ()
    is_composed: bool = False
    digest: Digest | None = DIGEST
    is_outdated: bool = False
    fetcher: ScriptedFetcher = field(default_factory=lambda: ScriptedFetcher({}))
    course: Course = field(default_factory=lambda: Course([A, B, C]))
    asked: int = 0

    async def revalidate(self) -> bool:
        self.asked += 1
        return self.is_outdated

    @property
    def flight(self) -> Flight:
        return Flight("key", plan(digest=self.digest, revalidate=self.revalidate), Attempt())

    async def blame(self, error: ContentAppError) -> Refusal:
        @dataclass
        class Came:
            source: Source = self.last
            is_composed: bool = self.is_composed

        load = Load(
            flight=self.flight,
            attempt=Attempt(),
            writer=None,
            transfer=cast(Any, Came()),
            hasher=cast(Any, None),
            if_range="",
            earlier=tuple(source.url for source in self.earlier),
        )
        cast(Any, load.transfer).exchanges = {source.url: None for source in self.contributors}
        return await Blame(cast(Fetcher, self.fetcher)).attempt(load, self.course, self.began, error)

    @property
    def booked(self) -> tuple[list[str], list[str]]:
        """Whose exchange was held to have failed, and whose bytes to be wrong."""
        return [name for name, _ in self.fetcher.failures], [name for name, _ in self.fetcher.wrong]


async def test_what_has_changed_is_nobodys_fault_and_begun_anew() -> None:
    world = World(began=B)
    refusal = await world.blame(Changed("it has changed"))
    assert (refusal.remote, refusal.kind, refusal.reason, refusal.phrase) == (
        "b",
        "failed",
        "it has changed",
        "unexpected EOF",
    )
    assert (world.course.sources, world.booked, world.asked) == ([B, C], ([], []), 0)


@pytest.mark.parametrize(
    ("digest", "may_begin_anew", "is_alone", "is_over"),
    [
        (DIGEST, False, False, True),
        (DIGEST, True, False, False),
        (DIGEST, False, True, False),
        (None, False, False, False),
        (None, True, True, False),
    ],
)
async def test_when_nobody_goes_on(digest: Digest | None, may_begin_anew: bool, is_alone: bool, is_over: bool) -> None:
    """All have been asked for the rest: unless only some may, none of them is begun with."""
    world = World(digest=digest)
    if is_alone:
        world.course.mixed([A, B])
    error = CannotGoOn(REFUSED, may_begin_anew=may_begin_anew)
    if is_over:
        with pytest.raises(ContentUnavailable) as raised:
            await world.blame(error)
        assert (raised.value.reason, raised.value.retry_after_seconds) == ("remote a: refused", 7.0)
    else:
        refusal = await world.blame(error)
        assert (refusal.remote, refusal.kind, refusal.phrase) == ("a", "failed", "unexpected EOF")
        assert world.course.sources == ([B] if is_alone else [B, C])
    assert (world.booked, world.asked) == (([], []), 0)


async def test_a_wrong_chunk_has_been_blamed_already() -> None:
    world = World(is_composed=True, contributors=(A, B))
    refusal = await world.blame(WrongChunk("wrong at every source"))
    assert (refusal.remote, refusal.kind, refusal.reason) == ("a", "failed", "wrong at every source")
    assert (world.course.sources, world.booked, world.asked) == ([B, C], ([], []), 0)


async def test_wrong_bytes_of_one_answer_are_its_sources() -> None:
    world = World()
    refusal = await world.blame(WrongBytes("digest mismatch"))
    assert (refusal.remote, refusal.kind, refusal.reason) == ("a", "failed", "digest mismatch")
    assert refusal.phrase == "unexpected EOF"
    assert (world.course.sources, world.booked, world.asked) == ([B, C], ([], ["a"]), 1)
    assert world.fetcher.wrong == [("a", DIGEST)]


async def test_wrong_bytes_that_have_no_digest_are_not_booked() -> None:
    world = World(digest=None)
    refusal = await world.blame(WrongBytes("an HTML page"))
    assert (refusal.kind, world.booked, world.course.sources) == ("failed", ([], []), [B, C])


async def test_wrong_bytes_of_several_answers_make_suspects() -> None:
    world = World(is_composed=True, contributors=(C, A), last=C)
    refusal = await world.blame(WrongBytes("digest mismatch"))
    assert (refusal.remote, refusal.kind) == ("c", "failed")
    assert refusal.reason == "digest mismatch, to which several answers contributed"
    assert (world.course.is_alone, world.course.sources, world.course.suspects) == (True, [A], [A.url, C.url])
    assert (world.booked, world.asked) == (([], []), 1)


async def test_wrong_bytes_that_had_all_come_before_a_restart_make_suspects() -> None:
    """Nobody has answered since, so who gave which of them is not known."""
    world = World(contributors=(), earlier=(B, A))
    await world.blame(WrongBytes("digest mismatch"))
    assert (world.course.is_alone, world.course.suspects) == (True, [A.url, B.url])
    assert world.booked == ([], [])


async def test_several_answers_of_a_source_that_is_tried_alone_are_its_own() -> None:
    world = World(began=B, last=B, is_composed=True, contributors=(B,))
    world.course.mixed([B, C])
    await world.blame(WrongBytes("digest mismatch"))
    assert (world.booked, world.course.sources) == (([], ["b"]), [C])


async def test_a_wrong_size_cools_no_artifact() -> None:
    """Even when several contributed: whoever publishes a manifest could have it so."""
    world = World(is_composed=True, contributors=(A, B))
    refusal = await world.blame(WrongSize("size mismatch"))
    assert (refusal.reason, world.booked, world.course.sources) == ("size mismatch", (["a"], []), [B, C])
    assert world.course.is_alone is False


@pytest.mark.parametrize("error", [WrongBytes("digest mismatch"), WrongSize("size mismatch")])
@pytest.mark.parametrize("is_composed", [False, True])
async def test_nobody_is_blamed_for_what_our_metadata_had_wrong(error: WrongBytes, is_composed: bool) -> None:
    world = World(is_outdated=True, is_composed=is_composed)
    with pytest.raises(ExpectationOutdated):
        await world.blame(error)
    assert (world.booked, world.asked, world.course.is_alone) == (([], []), 1, False)


async def test_a_broken_exchange_is_its_last_sources() -> None:
    """The attempt began with another one, which is what the next attempt leaves out."""
    world = World(began=A, last=B)
    refusal = await world.blame(TransferInterrupted("reset", host="b:80"))
    assert (refusal.remote, refusal.kind, refusal.reason, refusal.phrase) == ("b", "failed", "reset", "unexpected EOF")
    assert (world.course.sources, world.booked, world.asked) == ([B, C], (["b"], []), 0)


async def test_a_broken_exchange_of_several_suspects_nobody() -> None:
    world = World(last=B, is_composed=True, contributors=(A, B))
    refusal = await world.blame(TransferInterrupted("reset", host="b:80"))
    assert (refusal.remote, refusal.reason, world.course.is_alone) == ("b", "reset", False)
    assert (world.course.sources, world.booked, world.asked) == ([B, C], (["b"], []), 0)


async def test_an_answer_says_what_it_is() -> None:
    world = World()
    refusal = await world.blame(UpstreamStatusError(404, "answered 404"))
    assert (refusal.kind, refusal.status, world.booked) == ("absent", 404, (["a"], []))

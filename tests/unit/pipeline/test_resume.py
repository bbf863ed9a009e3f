"""Transfers that go on where an exchange broke off."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contentapp.core.digest import Digest, Hasher
from contentapp.core.errors import ContentAppError, TransferInterrupted
from contentapp.pipeline import resume
from contentapp.pipeline.fetch import Fetched, Refusal, Refusals
from contentapp.pipeline.resume import CannotGoOn, Changed, Terms, Transfer, resume_validator
from tests.unit.pipeline.scripted import BODY, A, Answer, B, C, Reply, ScriptedFetcher

DIGEST = Digest.of(BODY)


@dataclass
class Run:
    """What a transfer came to."""

    fetcher: ScriptedFetcher
    body: bytes = b""
    error: ContentAppError | None = None
    contributors: tuple[str, ...] = ()


async def run(
    first: Answer, replies: Mapping[str, Sequence[Reply]] | None = None, *, held: bool = True, **terms: Any
) -> Run:
    fetcher = ScriptedFetcher(replies or {})
    found = Run(fetcher)
    taken = hashlib.sha256()

    async def all_held(offset: int) -> Hasher | None:
        assert offset == len(found.body)
        return taken.copy() if held else None

    defaults: dict[str, Any] = {
        "sources": [A, B, C],
        "digest": DIGEST,
        "size": len(BODY),
        "deadline_seconds": 5.0,
        "first_byte_deadline_seconds": 5.0,
        "held": all_held,
    }
    async with AsyncExitStack() as exchange:
        transfer = Transfer.begun(
            fetcher,  # type: ignore[arg-type]
            exchange,
            Fetched(A, first),
            Terms(**(defaults | terms)),
        )
        try:
            async for chunk in transfer.chunks():
                taken.update(chunk)
                found.body += chunk
                assert fetcher.opened <= 1
        except ContentAppError as error:
            found.error = error
        found.contributors = tuple(fetched.source.remote.name for fetched in transfer.exchanges.values())
    assert fetcher.opened == 0
    return found


async def test_an_unbroken_transfer() -> None:
    found = await run(Answer())
    assert (found.body, found.error, found.fetcher.asked) == (BODY, None, [])


@pytest.mark.parametrize("count", [1, 999, 1000, 1001, len(BODY) - 1])
async def test_it_goes_on_at_its_offset_with_the_same_source(count: int) -> None:
    found = await run(Answer(count=count), {"a": [Answer(offset=count)]})
    assert (found.body, found.error) == (BODY, None)
    assert found.fetcher.asked == [("a", count, "")]
    assert found.contributors == ("a",)


async def test_nothing_at_all_is_the_callers_affair() -> None:
    found = await run(Answer(count=0))
    assert isinstance(found.error, TransferInterrupted)
    assert (found.fetcher.asked, found.fetcher.failures) == ([], [])


async def test_it_goes_over_to_the_others_in_their_order() -> None:
    found = await run(
        Answer(count=100),
        {"a": [Refusal("a", "failed", "refused")], "b": [Answer(offset=100, count=50)], "c": [Answer(offset=150)]},
        sources=[B, A, C],
    )
    assert found.body == BODY
    assert found.fetcher.asked == [("a", 100, ""), ("b", 100, ""), ("b", 150, ""), ("a", 150, ""), ("c", 150, "")]
    assert found.contributors == ("a", "b", "c")


async def test_a_short_end_is_no_end() -> None:
    short = Answer(body=BODY[:500])
    found = await run(short, {"a": [Answer(offset=500)]})
    assert found.body == BODY
    assert "ended at 500" in found.fetcher.failures[0][1]


async def test_without_a_known_size_the_sources_end_is_the_end() -> None:
    found = await run(Answer(body=BODY[:500], size=None), size=None)
    assert (found.body, found.error) == (BODY[:500], None)


async def test_a_source_that_brought_much_is_not_blamed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resume, "PROGRESS_SIZE", 500)
    found = await run(Answer(count=500), {"a": [Answer(offset=500, count=499), Answer(offset=999)]})
    assert found.body == BODY
    assert found.fetcher.failures == [("a", "cut")]


@given(count=st.integers(1, len(BODY) - 1), step=st.integers(1, 3000))
@settings(max_examples=40, deadline=None)
async def test_a_whole_for_a_range_is_used_behind_what_is_held(count: int, step: int) -> None:
    found = await run(Answer(count=count), {"a": [Answer(step=step)]})
    assert (found.body, found.error, found.fetcher.failures) == (BODY, None, [("a", "cut")])


@pytest.mark.parametrize("wrong", [b"x" + BODY[1:], BODY[:99] + b"x" + BODY[100:], BODY[:50]])
async def test_a_whole_that_starts_otherwise_is_left_without_blame(wrong: bytes) -> None:
    found = await run(Answer(count=100), {"a": [Answer(body=wrong)], "b": [Answer(offset=100)]})
    assert (found.body, found.error) == (BODY, None)
    assert found.fetcher.failures == [("a", "cut")]
    assert found.contributors == ("a", "b")


async def test_a_whole_that_starts_otherwise_is_not_asked_again() -> None:
    later = Refusal("b", "failed", "busy", retry_after_seconds=0.01, is_cooling=True)
    found = await run(Answer(count=100), {"a": [Answer(body=b"x" * 200)], "b": [later, Answer(offset=100)]})
    assert found.body == BODY
    assert [name for name, _, _ in found.fetcher.asked] == ["a", "b", "c", "b"]


async def test_a_whole_can_not_be_used_when_nothing_is_held() -> None:
    found = await run(Answer(count=100), {"a": [Answer()], "b": [Answer(offset=100)]}, held=False)
    assert (found.body, found.contributors) == (BODY, ("a", "b"))


async def test_a_whole_can_not_be_used_for_a_part() -> None:
    found = await run(Answer(offset=50, count=100), {"a": [Answer()]}, start=50)
    assert isinstance(found.error, CannotGoOn)
    assert found.error.may_begin_anew


async def test_a_range_of_another_size_is_refused() -> None:
    found = await run(Answer(count=100), {"a": [Answer(offset=100, size=len(BODY) + 1)], "b": [Answer(offset=100)]})
    assert found.body == BODY
    assert ("a", "a range of another size") in found.fetcher.failures


async def test_it_waits_for_the_end_of_a_cooldown() -> None:
    cooling = Refusal("a", "failed", "cooling down", retry_after_seconds=0.05, is_cooling=True)
    found = await run(Answer(count=100), {"a": [cooling, cooling, Answer(offset=100)]}, sources=[A])
    assert found.body == BODY


async def test_it_gives_up_when_the_cooldown_lasts_too_long() -> None:
    cooling = Refusal("a", "failed", "cooling down", retry_after_seconds=60.0, is_cooling=True)
    found = await run(Answer(count=100), {"a": [cooling]}, sources=[A])
    assert isinstance(found.error, CannotGoOn)
    assert not found.error.may_begin_anew
    assert len(found.fetcher.asked) == 1


async def test_it_gives_up_after_the_deadline() -> None:
    refused = [Refusal("a", "failed", "connection refused")] * 1000
    found = await run(Answer(count=100), {"a": refused}, sources=[A], deadline_seconds=0.05)
    assert isinstance(found.error, CannotGoOn)
    assert 1 < len(found.fetcher.asked) < 1000


@pytest.mark.parametrize("kind", ["absent", "denied"])
async def test_it_gives_up_at_once_when_waiting_is_of_no_use(kind: str) -> None:
    found = await run(Answer(count=100), {"a": [Refusal("a", kind, "no")]}, sources=[A])
    assert isinstance(found.error, CannotGoOn)
    assert len(found.fetcher.asked) == 1


async def test_a_part_is_not_the_end_of_a_whole_of_unknown_size() -> None:
    """A part may be shorter than was asked for (RFC 9110, 15.3.7); its total says what is to come."""
    portion = Answer(offset=100, body=BODY[:300])
    found = await run(Answer(count=100, size=None), {"a": [portion, Answer(offset=300)]}, size=None)
    assert (found.body, found.error) == (BODY, None)


@pytest.mark.parametrize("digest", [DIGEST, None])
async def test_a_part_of_a_whole_of_unknown_size_is_refused(digest: Digest | None) -> None:
    found = await run(
        Answer(count=100, size=None), {"a": [Answer(offset=100, size=None)]}, size=None, digest=digest, if_range=TAG
    )
    assert isinstance(found.error, Changed if digest is None else CannotGoOn)
    assert found.body == BODY[:100]


# Beginning in the middle


async def begin_at(
    offset: int, replies: Mapping[str, Sequence[Reply]], **terms: Any
) -> tuple[bool, bytes, ScriptedFetcher]:
    """Whether a source goes on, and what comes then."""
    fetcher, body = ScriptedFetcher(replies), b""
    defaults: dict[str, Any] = {"sources": [A, B], "digest": DIGEST, "size": len(BODY), "deadline_seconds": 5.0}
    async with AsyncExitStack() as exchange:
        wanted = Terms(**({"first_byte_deadline_seconds": 5.0} | defaults | terms))
        transfer = Transfer(fetcher, exchange, A, wanted, offset)  # type: ignore[arg-type]
        is_open = await transfer.reopen(Refusals())
        if is_open:
            body = b"".join([chunk async for chunk in transfer.chunks()])
    return is_open, body, fetcher


@pytest.mark.parametrize("size", [len(BODY), None])
async def test_one_that_begins_in_the_middle(size: int | None) -> None:
    """Of unknown size too: that nothing has come from this exchange does not mean that nothing is to come."""
    is_open, body, fetcher = await begin_at(100, {"a": [Answer(offset=100)]}, size=size)
    assert (is_open, body, fetcher.asked) == (True, BODY[100:], [("a", 100, "")])


async def test_one_that_has_all_asks_nobody() -> None:
    is_open, body, fetcher = await begin_at(len(BODY), {})
    assert (is_open, body, fetcher.asked) == (True, b"", [])


@pytest.mark.parametrize("size", [len(BODY), None])
async def test_one_that_nobody_goes_on_with(size: int | None) -> None:
    is_open, body, _ = await begin_at(100, {"b": [Answer(offset=100, size=1)]}, size=size, sources=[A])
    assert (is_open, body) == (False, b"")


# Without a digest

TAG = '"one"'


async def test_undigested_bytes_go_on_from_the_same_url_by_their_validator() -> None:
    found = await run(
        Answer(count=100, etag=TAG), {"a": [Answer(offset=100, etag=TAG)]}, digest=None, if_range=TAG, etag=TAG
    )
    assert (found.body, found.fetcher.asked) == (BODY, [("a", 100, TAG)])


@pytest.mark.parametrize(
    "answer",
    [
        Answer(etag='"two"'),
        Answer(etag=TAG),
        Answer(offset=100, etag='"two"'),
        Answer(offset=100, last_modified="Fri, 20 Nov 2026 10:00:00 GMT"),
        Answer(offset=100, size=len(BODY) + 1, etag=TAG),
        Refusal("a", "failed", "answered 416", status=416),
    ],
    ids=["whole", "whole, same tag", "part of another", "part of another time", "part of another size", "no such part"],
)
async def test_undigested_bytes_that_have_changed(answer: Reply) -> None:
    found = await run(
        Answer(count=100), {"a": [answer], "b": [Answer(offset=100)]}, digest=None, if_range=TAG, etag=TAG
    )
    assert isinstance(found.error, Changed)
    assert found.body == BODY[:100]
    assert [name for name, _, _ in found.fetcher.asked] == ["a"]


async def test_undigested_bytes_without_a_validator_are_not_resumed() -> None:
    found = await run(Answer(count=100), {"a": [Answer(offset=100)]}, digest=None)
    assert isinstance(found.error, Changed)
    assert found.fetcher.asked == []


async def test_an_error_that_is_none_of_the_transfers_passes_through() -> None:
    class Broken(Answer):
        async def chunks(self) -> AsyncIterator[bytes]:
            yield BODY[:10]
            raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        await run(Broken())


DATE = "Fri, 20 Nov 2026 10:00:00 GMT"
SECOND_BEFORE = "Fri, 20 Nov 2026 09:59:59 GMT"


@pytest.mark.parametrize(
    ("etag", "last_modified", "date", "validator"),
    [
        (TAG, SECOND_BEFORE, DATE, TAG),
        ('W/"one"', SECOND_BEFORE, DATE, ""),
        ("", SECOND_BEFORE, DATE, SECOND_BEFORE),
        ("", DATE, DATE, ""),
        ("", SECOND_BEFORE, "", ""),
        ("", SECOND_BEFORE, "yesterday", ""),
        ("", "", DATE, ""),
        ("one", SECOND_BEFORE, DATE, SECOND_BEFORE),
    ],
)
def test_resume_validator(etag: str, last_modified: str, date: str, validator: str) -> None:
    answer = Answer(etag=etag, last_modified=last_modified, headers={"Date": date} if date else {})
    assert resume_validator(answer) == validator

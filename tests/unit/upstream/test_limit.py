from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from contentapp.core.settings import KIB
from contentapp.upstream.base import RemoteBusy, UpstreamRequest, UpstreamResponse
from contentapp.upstream.limit import LimitUpstream
from tests.unit.upstream.asking import make_remote, make_request


@dataclass
class Fixed:
    """An answer with the given chunks."""

    given: list[bytes]
    status: int = 200
    offset: int = 3
    size: int | None = 10
    length: int | None = 7
    etag: str = '"e"'
    last_modified: str = "d"
    headers: Mapping[str, str] = field(default_factory=lambda: {"A": "b"})
    host: str = "h:80"
    url: str = "http://h/"

    async def chunks(self) -> AsyncIterator[bytes]:
        for chunk in self.given:
            yield chunk

    async def read(self, max_size: int) -> bytes:
        return b"".join(self.given)


class Inner:
    def __init__(self, *given: bytes) -> None:
        self.response = Fixed(list(given))
        self.opened = 0
        self.is_closed = False

    @asynccontextmanager
    async def open(self, request: UpstreamRequest) -> AsyncIterator[UpstreamResponse]:
        self.opened += 1
        yield self.response

    async def close(self) -> None:
        self.is_closed = True


class Reservations:
    """Notes what is reserved and slept; each reservation costs `wait` seconds."""

    def __init__(self, wait: float = 0.0) -> None:
        self.wait = wait
        self.made: list[tuple[str, float, float, float]] = []
        self.slept: list[float] = []

    async def reserve(self, name: str, amount: float, rate: float, burst: float) -> float:
        self.made.append((name, amount, rate, burst))
        return self.wait

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)

    def amounts(self) -> list[float]:
        return [made[1] for made in self.made]


def limited(inner: Inner, reservations: Reservations) -> LimitUpstream:
    return LimitUpstream(inner, reservations.reserve, sleep=reservations.sleep)


def request(**settings: Any) -> UpstreamRequest:
    return make_request(make_remote("http://h", id=7, **settings))


async def test_without_limits_the_answer_is_passed_on_untouched() -> None:
    inner, reservations = Inner(b"x"), Reservations()
    async with limited(inner, reservations).open(request()) as response:
        assert response is inner.response
    assert reservations.made == []


async def test_the_request_rate() -> None:
    reservations = Reservations(wait=2.5)
    upstream = limited(Inner(), reservations)
    for rate in (0.5, 20.0):
        async with upstream.open(request(rate_limit=rate)):
            pass
    assert reservations.made == [("requests:7", 1.0, 0.5, 1.0), ("requests:7", 1.0, 20.0, 20.0)]
    assert reservations.slept == [2.5, 2.5]


async def test_a_turn_after_the_deadline_is_not_waited_for() -> None:
    inner, reservations = Inner(), Reservations(wait=100.0)
    asked = replace(request(rate_limit=1.0), deadline=asyncio.get_running_loop().time() + 50)
    with pytest.raises(RemoteBusy) as caught:
        async with limited(inner, reservations).open(asked):
            pass
    assert (caught.value.retry_after_seconds, caught.value.host) == (100.0, "")
    assert (inner.opened, reservations.slept) == (0, [])


async def test_bytes_are_reserved_in_batches_and_each_byte_once() -> None:
    chunks = [b"a" * 1000] * 100 + [b"b" * 700_000, b"c"]
    inner, reservations, rate = Inner(*chunks), Reservations(wait=0.1), 100.0 * 1024 * KIB
    async with limited(inner, reservations).open(request(bandwidth_limit=rate)) as response:
        got = [chunk async for chunk in response.chunks()]
    assert b"".join(got) == b"".join(chunks)
    assert max(map(len, got)) <= 256 * KIB
    assert sum(reservations.amounts()) == sum(map(len, chunks))
    assert reservations.amounts()[:-1] == [256 * KIB] * (len(reservations.made) - 1)
    assert {(made[0], made[2], made[3]) for made in reservations.made} == {("bytes:7", rate, rate)}
    assert reservations.slept == [0.1] * (len(reservations.made) - 1)  # the rest is reserved, but not waited for


@pytest.mark.parametrize(("rate", "batch"), [(16 * KIB, 16 * KIB), (200 * KIB, 50 * KIB), (1 << 30, 256 * KIB)])
async def test_the_batch_fits_the_rate(rate: float, batch: int) -> None:
    reservations = Reservations()
    async with limited(Inner(b"x" * batch), reservations).open(request(bandwidth_limit=float(rate))) as response:
        [chunk async for chunk in response.chunks()]
    assert reservations.made == [("bytes:7", batch, rate, max(rate, batch))]


async def test_a_small_body_pays_no_more_than_its_size() -> None:
    reservations = Reservations(wait=5.0)
    async with limited(Inner(b"x" * 100), reservations).open(request(bandwidth_limit=16.0 * KIB)) as response:
        assert await response.read(1000) == b"x" * 100
    assert reservations.amounts() == [100]
    assert reservations.slept == []


async def test_what_was_read_is_paid_for_even_when_the_reader_leaves() -> None:
    reservations = Reservations()
    async with limited(Inner(b"x" * 100, b"y"), reservations).open(request(bandwidth_limit=1e6)) as response:
        assert await anext(response.chunks()) == b"x" * 100
    assert reservations.amounts() == [100]


async def test_the_facts_of_the_answer_stay() -> None:
    inner = Inner(b"x")
    async with limited(inner, Reservations()).open(request(bandwidth_limit=1e6)) as response:
        for name in ("status", "offset", "size", "length", "etag", "last_modified", "headers", "host", "url"):
            assert getattr(response, name) == getattr(inner.response, name)


async def test_close_reaches_the_inner_one() -> None:
    inner = Inner()
    await limited(inner, Reservations()).close()
    assert inner.is_closed

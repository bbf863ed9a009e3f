from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, cast

import pytest

from contentapp.core.errors import (
    AddressRefused,
    ConnectError,
    HostCooling,
    TransferInterrupted,
    UpstreamError,
    UpstreamStatusError,
    UpstreamTimeout,
)
from contentapp.upstream.base import RemoteBusy, UpstreamRequest, UpstreamResponse
from contentapp.upstream.retry import RetryUpstream
from tests.unit.upstream.asking import make_remote, make_request

ANSWER = cast(UpstreamResponse, object())


class Failing:
    """Raises the given errors one after the other, then answers."""

    def __init__(self, *errors: UpstreamError) -> None:
        self.errors = list(errors)
        self.opened = 0
        self.left = 0
        self.is_closed = False

    @asynccontextmanager
    async def open(self, request: UpstreamRequest) -> AsyncIterator[UpstreamResponse]:
        self.opened += 1
        if self.errors:
            raise self.errors.pop(0)
        try:
            yield ANSWER
        finally:
            self.left += 1

    async def close(self) -> None:
        self.is_closed = True


class Sleeper:
    def __init__(self) -> None:
        self.slept: list[float] = []
        self.now = 0.0

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


def request(**values: Any) -> UpstreamRequest:
    settings = {"max_retries": 3, "retry_backoff_seconds": 1.0, "retry_backoff_max_seconds": 3.0}
    asked = make_request(make_remote("http://h", **settings))
    return replace(asked, **values)


async def outcome(
    inner: Failing, asked: UpstreamRequest, sleeper: Sleeper, fraction: float = 0.5
) -> UpstreamError | None:
    upstream = RetryUpstream(inner, sleep=sleeper.sleep, random_fraction=lambda: fraction, clock=lambda: sleeper.now)
    try:
        async with upstream.open(asked) as response:
            assert response is ANSWER
            assert inner.left == 0
    except UpstreamError as error:
        return error
    assert inner.left == 1
    return None


def errors(count: int) -> list[UpstreamError]:
    return [ConnectError(str(number)) for number in range(count)]


async def test_backoff_doubles_up_to_its_maximum_with_full_jitter() -> None:
    sleeper, inner = Sleeper(), Failing(*errors(3))
    assert await outcome(inner, request(), sleeper) is None
    assert sleeper.slept == [0.5, 1.0, 1.5]
    assert inner.opened == 4


async def test_jitter_reaches_down_to_zero() -> None:
    sleeper = Sleeper()
    await outcome(Failing(*errors(3)), request(), sleeper, fraction=0.0)
    assert sleeper.slept == [0.0, 0.0, 0.0]


async def test_the_last_error_is_raised_as_it_is() -> None:
    given = errors(4)
    assert await outcome(Failing(*given), request(), Sleeper()) is given[3]


@pytest.mark.parametrize(
    "error",
    [
        AddressRefused("x"),
        UpstreamStatusError(404, "x"),
        UpstreamStatusError(500, "x"),
        UpstreamStatusError(401, "x"),
        HostCooling("x", host="h", retry_after_seconds=1),
        RemoteBusy("x", retry_after_seconds=1),
    ],
)
async def test_what_waiting_does_not_help(error: UpstreamError) -> None:
    sleeper, inner = Sleeper(), Failing(error)
    assert await outcome(inner, request(), sleeper) is error
    assert (inner.opened, sleeper.slept) == (1, [])


@pytest.mark.parametrize("error", [UpstreamTimeout("x"), UpstreamStatusError(503, "x"), UpstreamStatusError(502, "x")])
async def test_what_may_pass(error: UpstreamError) -> None:
    assert await outcome(Failing(error), request(), Sleeper()) is None


async def test_while_another_source_is_left_nobody_waits() -> None:
    inner = Failing(*errors(1))
    assert await outcome(inner, request(is_last=False), Sleeper()) is not None
    assert inner.opened == 1


async def test_no_retries_when_none_are_configured() -> None:
    asked = make_request(make_remote("http://h", max_retries=0))
    assert await outcome(Failing(*errors(1)), asked, Sleeper()) is not None


async def test_retry_after_is_waited_for() -> None:
    sleeper = Sleeper()
    inner = Failing(UpstreamStatusError(429, "x", retry_after_seconds=17), UpstreamStatusError(503, "x"))
    assert await outcome(inner, request(), sleeper) is None
    assert sleeper.slept == [17, 1.0]


async def test_a_long_retry_after_is_not_waited_for() -> None:
    error = UpstreamStatusError(429, "x", retry_after_seconds=61)
    assert await outcome(Failing(error), request(), Sleeper()) is error


async def test_never_past_the_deadline() -> None:
    sleeper = Sleeper()
    given = errors(4)
    assert await outcome(Failing(*given), request(deadline=1.2), sleeper) is given[1]
    assert sleeper.slept == [0.5]
    error = UpstreamStatusError(503, "x", retry_after_seconds=5)
    assert await outcome(Failing(error), request(deadline=5.0), Sleeper()) is error


async def test_an_error_of_the_body_is_not_retried() -> None:
    sleeper, inner = Sleeper(), Failing()
    upstream = RetryUpstream(inner, sleep=sleeper.sleep)
    with pytest.raises(TransferInterrupted):
        async with upstream.open(request()):
            raise TransferInterrupted("x")
    assert (inner.opened, inner.left, sleeper.slept) == (1, 1, [])


async def test_close_reaches_the_inner_one() -> None:
    inner = Failing()
    await RetryUpstream(inner).close()
    assert inner.is_closed


async def test_the_loops_clock_is_the_default() -> None:
    error = ConnectError("x")
    upstream = RetryUpstream(Failing(error))
    with pytest.raises(ConnectError):
        async with upstream.open(request(deadline=1e-9)):
            pass

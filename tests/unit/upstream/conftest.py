from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from contentapp.upstream.http import HttpUpstream
from tests.unit.upstream.asking import Clock, http_upstream


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def upstream(clock: Clock) -> AsyncIterator[HttpUpstream]:
    async with http_upstream(clock=clock) as made:
        yield made

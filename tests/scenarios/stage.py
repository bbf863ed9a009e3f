"""A stage: one proxy over several distributions, shared by the tests of a module since starting one takes a second."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from tests.proxy import Proxy, running_proxy
from tests.remotes.content import Synthetic
from tests.scenarios.device import Answer, ask

WAIT_SECONDS = 20.0
PATIENT = {"max_retries": 0, "failure_threshold": 100, "negative_ttl_seconds": 0, "cooldown_seconds": 0.1}
"""Settings of a remote that is never left alone, so that no test suffers from what another one did to it."""

seeds = itertools.count(1000)


def fresh(size: int) -> Synthetic:
    """A body that nothing has asked for yet."""
    return Synthetic(size, seed=next(seeds))


def merged(*configs: dict[str, Any], **more: Any) -> dict[str, Any]:
    """One configuration of several pull_through() ones; a remote that several name stands in it once."""
    remotes = {remote["name"]: remote for config in configs for remote in config["remotes"]}
    distributions = [item for config in configs for item in config["distributions"]]
    return {"remotes": list(remotes.values()), "distributions": distributions, **more}


@asynccontextmanager
async def staged(folder: Path, *configs: dict[str, Any], **more: Any) -> AsyncIterator[Proxy]:
    """A running proxy with all of these."""
    async with running_proxy(folder, merged(*configs, **more)) as proxy:
        yield proxy


async def until(condition: Callable[[], Awaitable[bool]], *, timeout: float = WAIT_SECONDS) -> None:
    """Return when the condition holds; asked again and again. TimeoutError when it does not come true."""
    async with asyncio.timeout(timeout):
        while not await condition():
            await asyncio.sleep(0.02)


async def until_hit(url: str) -> Answer:
    """The answer once it comes from the storage: a body is stored a moment after its last byte was sent."""
    async with asyncio.timeout(WAIT_SECONDS):
        while (answer := await ask(url)).cache != "hit":
            await asyncio.sleep(0.02)
    return answer


async def at_rest(proxy: Proxy) -> None:
    """Return when no transfer is under way any more: a flight lasts a moment longer than its last byte."""

    async def is_at_rest() -> bool:
        found = (await proxy.admin("/pulp/api/v3/transfers/"))["results"]
        return all(each["state"] == "suspended" for each in found)

    await until(is_at_rest)


async def forget_stored(proxy: Proxy, size: int) -> None:
    """Take the artifact of this size off the disk, as an operator or a damaged disk would."""
    await at_rest(proxy)
    (path,) = (path for path in proxy.artifacts() if path.stat().st_size == size)
    path.unlink()

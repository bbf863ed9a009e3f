"""``/pulp/api/v3/transfers/``: the flights under way, of all processes (P4)."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from aiohttp import web

from contentapp.api.resource import API_ROOT, page, timestamp
from contentapp.coordination.base import Coordination, FlightProgress

FILTERS = ("remote", "state")


class Transfers:
    """What is being fetched now."""

    def __init__(self, coordination: Coordination, clock: Callable[[], float] = time.time) -> None:
        self._coordination = coordination
        self._clock = clock

    def routes(self) -> list[web.RouteDef]:
        """Where they are found."""
        return [web.get(f"{API_ROOT}transfers/", self.index)]

    async def index(self, request: web.Request) -> web.Response:
        """All, or those from a ``remote`` or in a ``state``; the oldest first."""
        remote, state = request.query.get("remote"), request.query.get("state")
        found = [
            flight
            for flight in await self._coordination.transfers()
            if remote in {None, flight.remote} and state in {None, str(flight.state)}
        ]
        found.sort(key=lambda flight: (flight.started_at, flight.key))
        return page(request, found, self.show, FILTERS)

    def show(self, flight: FlightProgress) -> dict[str, Any]:
        """As JSON; sizes in bytes, age in seconds."""
        return {
            "key": flight.key,
            "attempt": flight.attempt,
            "state": str(flight.state),
            "size": flight.size,
            "arrived": flight.arrived,
            "remote": flight.remote,
            "started_at": timestamp(flight.started_at or None),
            "age": round(max(0.0, self._clock() - flight.started_at), 3) if flight.started_at else None,
            "followers": flight.followers,
            "keep": flight.keep,
            "windowed": flight.is_windowed,
        }

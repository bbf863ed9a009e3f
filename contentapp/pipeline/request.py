"""A device's request, free of any server library."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceRequest:
    """raw_path: as received, still percent-encoded; headers: case-insensitive; version: (major, minor) of HTTP."""

    id: str
    method: str
    raw_path: str
    query: str
    headers: Mapping[str, str]
    version: tuple[int, int]
    peer: str
    started: float  # loop.time()

    @property
    def is_head(self) -> bool:
        """Whether only the head of the answer is wanted."""
        return self.method == "HEAD"

    @property
    def range_header(self) -> str | None:
        """Range counts for GET alone (RFC 9110, 14.2)."""
        return self.headers.get("Range") if self.method == "GET" else None

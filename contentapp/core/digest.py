"""Digests as OCI writes them: ``algorithm:encoded`` (image-spec, descriptor.md, "Digests")."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Protocol, Self

from contentapp.core.errors import InvalidDigest

ENCODED_LENGTHS = {"sha256": 64, "sha512": 128}
HEX = re.compile(r"[0-9a-f]+")


class Hasher(Protocol):
    """What hashlib's objects have in common."""

    def update(self, data: bytes | bytearray | memoryview, /) -> None: ...

    def hexdigest(self) -> str: ...

    def copy(self) -> Self: ...


@dataclass(frozen=True, slots=True)
class Digest:
    """A registered digest; build it with `parse` or `of`, which validate."""

    algorithm: str
    encoded: str

    @classmethod
    def parse(cls, text: str) -> Digest:
        """Read ``sha256:<64 lower-case hex>`` or ``sha512:<128 …>``; InvalidDigest for anything else."""
        algorithm, separator, encoded = text.partition(":")
        if not separator or ENCODED_LENGTHS.get(algorithm) != len(encoded) or not HEX.fullmatch(encoded):
            raise InvalidDigest(text)
        return cls(algorithm, encoded)

    @classmethod
    def of(cls, body: bytes, algorithm: str = "sha256") -> Digest:
        """The digest of a whole body held in memory."""
        return cls(algorithm, hashlib.new(algorithm, body).hexdigest())

    def hasher(self) -> Hasher:
        """A fresh running hash of this digest's algorithm."""
        return hashlib.new(self.algorithm)

    def matches(self, hasher: Hasher) -> bool:
        """Whether the running hash has arrived at this digest."""
        return hasher.hexdigest() == self.encoded

    def __str__(self) -> str:
        return f"{self.algorithm}:{self.encoded}"

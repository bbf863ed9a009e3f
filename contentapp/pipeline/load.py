"""Load: an attempt with all that belongs to it while its bytes come in."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from contentapp.core.settings import MIB
from contentapp.pipeline.chunked import Checked
from contentapp.pipeline.note import Facts, MarkedHasher, make_note
from contentapp.pipeline.progress import Attempt
from contentapp.pipeline.resume import Transfer
from contentapp.storage.base import ArtifactWriter, Note

if TYPE_CHECKING:
    from contentapp.pipeline.flight import Flight

MOST_MARKS = 60_000  # what a note has room for, also of sha512
LEAST_KEPT_SIZE = MIB
"""Less than this is fetched again sooner than it is kept for later."""


@dataclass(slots=True, kw_only=True)
class Load:
    """writer: None without room on disk. if_range: what undigested bytes are resumed by, "" for not at all.

    earlier: the URLs of the sources that contributed before a restart. checked: what holds its chunks against their
    digests, if those are known. moved_at: when the last byte had come before that (time.time()).
    """

    flight: Flight
    attempt: Attempt
    writer: ArtifactWriter | None
    transfer: Transfer
    hasher: MarkedHasher
    if_range: str
    earlier: tuple[str, ...] = ()
    checked: Checked | None = None
    moved_at: float = 0.0

    def chunks(self) -> AsyncIterator[bytes]:
        """Its bytes as they may be passed on."""
        return self.transfer.chunks() if self.checked is None else self.checked.chunks()

    @property
    def convicted(self) -> set[str]:
        """The URLs of the sources that had wrong chunks."""
        return set() if self.checked is None else self.checked.convicted

    @property
    def contributors(self) -> list[str]:
        """The URLs of all sources that have given bytes."""
        return list(dict.fromkeys([*self.earlier, *self.transfer.exchanges]))

    @property
    def is_resumable(self) -> bool:
        """Whether what has come is worth keeping for another time, and can be gone on with then."""
        attempt = self.attempt
        is_spooled = self.writer is not None and attempt.window is None and not attempt.is_unspooled
        is_provable = self.flight.plan.digest is not None or bool(self.if_range)
        is_notable = self.hasher.offset >= LEAST_KEPT_SIZE and len(self.hasher.marks) <= MOST_MARKS
        return is_spooled and is_provable and attempt.keep and is_notable

    def note(self, *, is_last: bool = False) -> Note:
        """What is written down of it. is_last: nothing comes after it, so no device has got more than that."""
        attempt, plan = self.attempt, self.flight.plan
        facts = Facts(
            attempt=self._name if is_last else "",
            path=plan.path,
            url=self.transfer.source.url,
            sources=tuple(self.contributors),
            if_range=self.if_range,
            moved_at=time.time() if self.transfer.exchanges else self.moved_at,
            head=attempt.head,
        )
        return make_note(plan.key, attempt.size, self.hasher, facts)

    @property
    def _name(self) -> str:
        """The id by which devices know what has come; if that is nothing new, as they have known it before."""
        return self.attempt.id if self.transfer.exchanges else self.attempt.former

    async def put_down(self) -> None:
        """End the writer: suspend what is resumable, remove what is not."""
        if self.writer is None:
            return
        if self.is_resumable and not self.flight.is_cancelled:
            await self.writer.suspend(self.note(is_last=True))
        else:
            await self.writer.abort()

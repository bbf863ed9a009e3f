"""The demo's device: pulls over plain HTTP, checks what it got, and tries again after a reset, as pullers do."""

from __future__ import annotations

import hashlib
import http.client
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

READ_SIZE = 256 * 1024
WAIT_SECONDS = 20.0
TRIES = 3


@dataclass(slots=True)
class Answer:
    """One response. `size`: announced, None if it was not. `is_complete`: it ended as it had announced."""

    status: int
    reason: str
    headers: dict[str, str]
    size: int | None
    received: int = 0
    is_complete: bool = False
    failure: str = ""

    def header(self, name: str) -> str:
        """Its value, "" without it."""
        return self.headers.get(name.lower(), "")


@dataclass(slots=True)
class Pull:
    """One body, in as many answers as it took. `digest`: of what the device holds at the end; seconds: for it all."""

    answers: list[Answer] = field(default_factory=list)
    body: bytes = field(default=b"", repr=False)
    digest: str = ""
    seconds: float = 0.0
    first_byte_seconds: float = 0.0

    @property
    def last(self) -> Answer:
        """The answer that ended it."""
        return self.answers[-1]

    @property
    def cut(self) -> list[Answer]:
        """The answers that were cut off."""
        return [answer for answer in self.answers if not answer.is_complete]

    def is_whole(self, digest: str) -> bool:
        """Whether the device holds exactly these bytes, from an answer that ended properly."""
        return self.last.is_complete and self.last.status in {200, 206} and self.digest == digest


class Device:
    """Pulls from one proxy. `port`: on 127.0.0.1."""

    def __init__(self, port: int) -> None:
        self._port = port

    def pull(self, path: str, *, accept: str = "*/*") -> Pull:
        """GET a path; after a reset go on where it stopped, if the proxy still stands by those bytes (If-Range)."""
        began = time.monotonic()
        pull, held, validator = Pull(), bytearray(), ""
        for _ in range(TRIES):
            headers = {"Accept": accept}
            if held and validator:
                headers |= {"Range": f"bytes={len(held)}-", "If-Range": validator}
            answer = self._try(path, headers, held, pull, began)
            pull.answers.append(answer)
            validator = answer.header("ETag")
            if answer.is_complete:
                break
        pull.seconds = time.monotonic() - began
        pull.body = bytes(held)
        pull.digest = f"sha256:{hashlib.sha256(held).hexdigest()}"
        return pull

    def pull_at_once(self, path: str, count: int) -> list[Pull]:
        """So many devices ask for the same at the same time."""
        with ThreadPoolExecutor(count, thread_name_prefix="device") as devices:
            return list(devices.map(self.pull, [path] * count))

    def _try(self, path: str, headers: dict[str, str], held: bytearray, pull: Pull, began: float) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=WAIT_SECONDS)
        try:
            connection.request("GET", path, headers=headers)
            response = connection.getresponse()
            answer = _answer(response)
            if response.status != 206:
                held.clear()  # it is the whole again, or no part of the body at all
            try:
                _receive(response, answer, held, pull, began)
            except (OSError, http.client.HTTPException) as error:
                answer.failure = _named(error)
            else:
                # http.client takes an early end of the connection for the end of a read of some bytes.
                answer.is_complete = answer.size is None or answer.received == answer.size
                answer.failure = "" if answer.is_complete else "connection closed early"
            return answer
        except (OSError, http.client.HTTPException) as error:
            return Answer(0, "no answer", {}, None, failure=_named(error))
        finally:
            connection.close()


def _answer(response: http.client.HTTPResponse) -> Answer:
    headers = {name.lower(): value for name, value in response.getheaders()}
    return Answer(response.status, response.reason, headers, response.length)


def _receive(response: http.client.HTTPResponse, answer: Answer, held: bytearray, pull: Pull, began: float) -> None:
    while piece := response.read1(READ_SIZE):
        if not pull.first_byte_seconds:
            pull.first_byte_seconds = time.monotonic() - began
        answer.received += len(piece)
        held += piece


def _named(error: Exception) -> str:
    return "connection reset" if isinstance(error, ConnectionResetError) else type(error).__name__


def slowest(pulls: Sequence[Pull]) -> Pull:
    """The one that waited longest for its first byte."""
    return max(pulls, key=lambda pull: pull.first_byte_seconds)

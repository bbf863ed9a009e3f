"""The demo's remotes: real HTTP servers on loopback, one of which spoils every blob it sends."""

from __future__ import annotations

import socketserver
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from contentapp.cli.demo_content import Resource

PIECE_SIZE = 256 * 1024
PEER_SECONDS = 10.0


class DemoRemote:
    """One remote. It counts what it is asked for, and can be stopped.

    bytes_per_second: of its line, for each transfer. is_corrupt: the byte in the middle of each blob is another one.
    """

    def __init__(
        self, name: str, resources: Mapping[str, Resource], *, bytes_per_second: float, is_corrupt: bool
    ) -> None:
        self.name = name
        self.is_corrupt = is_corrupt
        self.bytes_per_second = bytes_per_second
        self.resources = {path: _spoiled(found) if is_corrupt else found for path, found in resources.items()}
        self._counting = threading.Lock()
        self._gets: dict[str, int] = {}
        self._server: _Server | None = _Server(self)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), name=f"remote {name}")
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def start(self) -> None:
        """Begin to answer; what connected before has waited."""
        self._thread.start()

    def stop(self) -> None:
        """Refuse connections from now on; returns when the last answer is out. Idempotent."""
        server, self._server = self._server, None
        if server is not None:
            if self._thread.is_alive():
                server.shutdown()
                self._thread.join()
            server.server_close()

    def count(self, path: str) -> None:
        """Note one GET."""
        with self._counting:
            self._gets[path] = self._gets.get(path, 0) + 1

    def gets(self, path: str) -> int:
        """How often a path was fetched."""
        with self._counting:
            return self._gets.get(path, 0)

    def gets_in_all(self) -> int:
        """How many GETs there were."""
        with self._counting:
            return sum(self._gets.values())


@contextmanager
def running(remote: DemoRemote) -> Iterator[DemoRemote]:
    """A started remote that is stopped at the end."""
    try:
        remote.start()
        yield remote
    finally:
        remote.stop()


class _Server(ThreadingHTTPServer):
    """A thread a connection; closing it waits for them."""

    daemon_threads = False
    block_on_close = True
    request_queue_size = 64

    def __init__(self, remote: DemoRemote) -> None:
        self.remote = remote
        super().__init__(("127.0.0.1", 0), _Handler)

    def server_bind(self) -> None:
        """Without the library's look-up of our own name, which asks a name server."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = "127.0.0.1", self.server_address[1]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Peers may leave; that is no news."""


class _Handler(BaseHTTPRequestHandler):
    """One exchange a connection (HTTP/1.0): so a remote that is stopped has no connection left to answer on."""

    server: _Server
    timeout = PEER_SECONDS

    def do_GET(self) -> None:
        self.server.remote.count(self.path)
        if (found := self._head()) is not None:
            with suppress(ConnectionError):
                self._send(found.body)

    def do_HEAD(self) -> None:
        self._head()

    def _head(self) -> Resource | None:
        found = self.server.remote.resources.get(self.path)
        if found is None:
            self.send_error(404)
            return None
        self.send_response(200)
        self.send_header("Content-Type", found.media_type)
        self.send_header("Content-Length", str(len(found.body)))
        if found.digest:
            self.send_header("Docker-Content-Digest", found.digest)
        self.end_headers()
        return found

    def _send(self, body: bytes) -> None:
        """At the pace of the line."""
        began = time.monotonic()
        for start in range(0, len(body), PIECE_SIZE):
            due = began + start / self.server.remote.bytes_per_second
            time.sleep(max(0.0, due - time.monotonic()))
            self.wfile.write(body[start : start + PIECE_SIZE])

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name it is called by
        """The story is told by others."""


def _spoiled(found: Resource) -> Resource:
    if not found.is_blob or not found.body:
        return found
    body, middle = bytearray(found.body), len(found.body) // 2
    body[middle] ^= 1
    return Resource(bytes(body), found.media_type, found.digest, is_blob=True)

"""The upstream of all contenders: nginx that serves images as static files in the registry's ways, and counts."""

from __future__ import annotations

import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from benchmarks.content import MANIFEST_TYPE, Image, ImageStore
from benchmarks.nginx import make_nginx
from benchmarks.process import free_port

LIMITED_RATE = 50_000_000
SETTLE_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Traffic:
    """What one contender asked for one layer: GET requests, HEAD requests, and body bytes sent for them."""

    gets: int
    heads: int
    sent: int


class Origin:
    """Serves `images`. The second port sends at most LIMITED_RATE bytes a second on each connection."""

    def __init__(self, folder: Path, workers: int) -> None:
        self.images = ImageStore(folder / "content")
        self._port = free_port()
        self._limited_port = free_port()
        self._log = folder / "access.log"
        self._process = make_nginx("the origin", folder, self._http(), workers)

    def start(self) -> None:
        self._process.start(self._port, "/v2/", None)

    def stop(self) -> None:
        self._process.stop()

    def check(self) -> None:
        """Raises BenchmarkError if it does not run any more."""
        self._process.check()

    def url(self, *, limited: bool = False) -> str:
        return f"http://127.0.0.1:{self._limited_port if limited else self._port}"

    def mark(self) -> int:
        """Now, as a position in the access log."""
        return self._log.stat().st_size

    def settle(self) -> None:
        """Waits until no transfer goes on, as a cache may fetch behind its devices' backs; gives up after a minute."""
        deadline = time.monotonic() + SETTLE_SECONDS
        while self._busy() and time.monotonic() < deadline:
            time.sleep(0.05)

    def _busy(self) -> bool:
        """Whether a connection is being written to; the one that asks is not counted."""
        with urllib.request.urlopen(f"{self.url()}/status", timeout=10) as answer:
            status = answer.read().decode()
        return int(status.partition("Writing:")[2].split()[0]) > 1

    def traffic(self, image: Image, since: int) -> Traffic:
        """What ended after the mark; a request that still goes on is not in it."""
        with self._log.open("rb") as file:
            file.seek(since)
            lines = [line.split() for line in file.read().decode().splitlines()]
        mine = [(method, int(sent)) for method, path, _, sent in lines if path == f"/v2/{image.layer_path}"]
        gets = [sent for method, sent in mine if method == "GET"]
        return Traffic(len(gets), len(mine) - len(gets), sum(gets))

    def _http(self) -> str:
        servers = "".join(
            self._server(port, limit) for port, limit in ((self._port, ""), (self._limited_port, f"{LIMITED_RATE}"))
        )
        return f"""
    log_format counted '$request_method $request_uri $status $body_bytes_sent';
    access_log {self._log} counted;
{servers}"""

    def _server(self, port: int, limit: str) -> str:
        return f"""
    server {{
        listen 127.0.0.1:{port} reuseport;
        root {self.images.root};
        {f"limit_rate {limit};" if limit else ""}
        location = /status {{ stub_status; access_log off; }}
        location = /v2/ {{ default_type application/json; return 200 '{{}}'; }}
        location ~ "^/v2/.+/blobs/(?<blob>sha256:[0-9a-f]{{64}})$" {{
            add_header Docker-Content-Digest $blob;
            try_files /blobs/$blob =404;
        }}
        location ~ "^/v2/.+/manifests/(?:sha256:|v[0-9]+-)(?<hex>[0-9a-f]{{64}})$" {{
            default_type {MANIFEST_TYPE};
            add_header Docker-Content-Digest sha256:$hex;
            try_files /manifests/sha256:$hex =404;
        }}
    }}"""

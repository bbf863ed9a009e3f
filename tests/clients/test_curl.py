"""curl downloads files through the proxy: whole, resumed, in ranges, over HTTP/1.0, through nginx; wrong ones fail."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.clients.servers import Nginx
from tests.programs import Completed, require_program, run
from tests.proxy import Proxy, pull_through, running_proxy
from tests.remotes.content import Synthetic, read_all
from tests.remotes.faults import Flip
from tests.remotes.files import FileRemote

pytestmark = pytest.mark.clients

MIB = 1024 * 1024
SMALL, LARGE = Synthetic(5000), Synthetic(3 * MIB + 77, seed=1)
FILES = {"small": SMALL, "dir/large.bin": LARGE}


class Curl:
    """curl into one file."""

    def __init__(self, folder: Path, base_url: str) -> None:
        self.program = require_program("curl")
        self.base_url = base_url
        self.output = folder / "curl.out"

    async def get(self, path: str, *flags: str) -> Completed:
        """Download ``<base_url>/<path>``; an HTTP error is exit status 22."""
        words = ("--silent", "--show-error", "--fail", "--max-time", "30", *flags)
        return await run(self.program, *words, "--output", self.output, f"{self.base_url}/{path}")

    async def head(self, path: str) -> dict[str, str]:
        """The headers of a HEAD, names in lower case."""
        done = (await run(self.program, "--silent", "--fail", "--head", f"{self.base_url}/{path}")).check()
        lines = (line.partition(": ") for line in done.output.decode().splitlines()[1:])
        return {name.lower(): value for name, separator, value in lines if separator}


def config(*remotes: FileRemote) -> dict[str, object]:
    """A file distribution "files" over these remotes."""
    return pull_through("file", "files", {f"web-{at}": f"{remote.url}/" for at, remote in enumerate(remotes)})


@pytest.fixture
async def remote() -> AsyncIterator[FileRemote]:
    async with FileRemote(FILES) as started:
        yield started


@pytest.fixture
async def proxy(remote: FileRemote, tmp_path: Path) -> AsyncIterator[Proxy]:
    async with running_proxy(tmp_path, config(remote)) as started:
        yield started


@pytest.fixture
def curl(proxy: Proxy, tmp_path: Path) -> Curl:
    return Curl(tmp_path, f"{proxy.url}/pulp/content/files")


@pytest.mark.parametrize("path", FILES)
@pytest.mark.parametrize("flags", [(), ("--http1.0",)], ids=["1.1", "1.0"])
async def test_whole_file(curl: Curl, remote: FileRemote, path: str, flags: tuple[str, ...]) -> None:
    for _ in ("cold", "warm"):
        (await curl.get(path, *flags)).check()
        assert curl.output.read_bytes() == read_all(FILES[path])
    assert remote.sent(f"/{path}") == FILES[path].size
    await remote.refuse()
    (await curl.get(path, *flags)).check()
    assert curl.output.read_bytes() == read_all(FILES[path])


@pytest.mark.parametrize("is_warm", [False, True], ids=["cold", "warm"])
async def test_resume(curl: Curl, is_warm: bool) -> None:
    body = read_all(LARGE)
    if is_warm:
        (await curl.get("dir/large.bin")).check()
    curl.output.write_bytes(body[: MIB + 1])
    (await curl.get("dir/large.bin", "--continue-at", "-")).check()
    assert curl.output.read_bytes() == body


@pytest.mark.parametrize("is_warm", [False, True], ids=["cold", "warm"])
@pytest.mark.parametrize(
    ("spec", "start", "end"), [("0-0", 0, 1), ("1000-1999", 1000, 2000), ("3145728-", 3 * MIB, None), ("-7", -7, None)]
)
async def test_ranges(curl: Curl, spec: str, start: int, end: int | None, is_warm: bool) -> None:
    if is_warm:
        (await curl.get("dir/large.bin")).check()
    (await curl.get("dir/large.bin", "--range", spec)).check()
    assert curl.output.read_bytes() == read_all(LARGE)[start:end]


async def test_unsatisfiable_range(curl: Curl) -> None:
    (await curl.get("small")).check()
    refused = await curl.get("small", "--range", "5000-")
    assert (refused.status, "416" in refused.messages) == (22, True)


async def test_head_agrees_with_get(curl: Curl, remote: FileRemote) -> None:
    cold = await curl.head("small")
    assert remote.count("/small", method="GET") == 0
    (await curl.get("small")).check()
    warm = await curl.head("small")
    digest = hashlib.sha256(read_all(SMALL)).hexdigest()
    for headers in (cold, warm):
        assert (headers["content-length"], headers["accept-ranges"]) == ("5000", "bytes")
    assert digest in warm["etag"]


@pytest.mark.parametrize("flags", [(), ("--http1.0",)], ids=["1.1", "1.0"])
@pytest.mark.parametrize("behind_nginx", [False, True], ids=["direct", "nginx"])
async def test_wrong_bytes_are_never_a_success(tmp_path: Path, behind_nginx: bool, flags: tuple[str, ...]) -> None:
    """The last byte is wrong, so everything but the held-back tail may have been sent: curl must fail all the same."""
    async with FileRemote(FILES) as remote:
        remote.script("/dir/large.bin", Flip(at=LARGE.size - 1))
        async with running_proxy(tmp_path, config(remote)) as proxy:
            front = Nginx(tmp_path, proxy.url, settings="proxy_buffering off;")
            if behind_nginx:
                await front.start()
            curl = Curl(tmp_path, f"{front.url if behind_nginx else proxy.url}/pulp/content/files")
            try:
                assert (await curl.get("dir/large.bin", *flags)).status != 0
            finally:
                if behind_nginx:
                    await front.stop()
            assert not proxy.artifacts()


async def test_corrupt_remote_before_a_good_one(tmp_path: Path) -> None:
    async with FileRemote(FILES) as corrupt, FileRemote(FILES) as good:
        corrupt.script("/small", Flip(at=1))
        corrupt.script("/dir/large.bin", Flip(at=MIB))
        async with running_proxy(tmp_path, config(corrupt, good)) as proxy:
            curl = Curl(tmp_path, f"{proxy.url}/pulp/content/files")
            (await curl.get("small")).check()
            assert curl.output.read_bytes() == read_all(SMALL)
            assert (await curl.get("dir/large.bin")).status != 0
            (await curl.get("dir/large.bin")).check()
            assert curl.output.read_bytes() == read_all(LARGE)

"""The parts of ``contentapp demo``: what it tells must be true, so its remotes, its device and its checks must be."""

from __future__ import annotations

import hashlib
import http.client
import io
import json
import socket
import struct
import tarfile
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

import pytest
from rich.console import Console

from contentapp.cli.demo_content import (
    BIG_FILE,
    FILES_ROOT,
    REPOSITORY,
    TAG,
    Blob,
    DemoContent,
    Resource,
    blob_path,
)
from contentapp.cli.demo_device import Answer, Device, Pull, slowest
from contentapp.cli.demo_remote import PIECE_SIZE, DemoRemote, running
from contentapp.cli.demo_story import Differs, Story, in_bytes, in_time, short_digest

BODY = b"0123456789" * 10
DIGEST = f"sha256:{hashlib.sha256(BODY).hexdigest()}"


@pytest.fixture(scope="module")
def content() -> DemoContent:
    return DemoContent.make()


# -- content


def test_the_image_is_what_its_manifest_says(content: DemoContent) -> None:
    manifest = json.loads(content.image.manifest.body)
    described = [(one["digest"], one["size"]) for one in (*manifest["layers"], manifest["config"])]
    found = [(f"sha256:{hashlib.sha256(blob.body).hexdigest()}", len(blob.body)) for blob in content.image.blobs]
    assert described == found


def test_the_layers_are_archives_and_the_configuration_names_them(content: DemoContent) -> None:
    *layers, config = content.image.blobs
    assert json.loads(config.body)["rootfs"]["diff_ids"] == [layer.digest for layer in layers]
    for layer in layers:
        with tarfile.open(fileobj=io.BytesIO(layer.body)) as archive:
            assert len(archive.getmembers()) == 1


def test_one_layer_is_streamed_and_the_others_are_verified_first(content: DemoContent) -> None:
    sizes = [len(blob.body) for blob in content.image.blobs]
    assert sizes[0] > 2 * 1024 * 1024
    assert all(size < 1024 * 1024 for size in sizes[1:])


def test_it_is_the_same_at_every_run(content: DemoContent) -> None:
    assert DemoContent.make().image.manifest.digest == content.image.manifest.digest


def test_the_listing_has_each_files_digest_and_size(content: DemoContent) -> None:
    lines = content.resources()[f"{FILES_ROOT}PULP_MANIFEST"].body.decode().splitlines()
    expected = [
        f"{name},{hashlib.sha256(file.body).hexdigest()},{len(file.body)}" for name, file in content.files.items()
    ]
    assert lines == expected


# -- remotes


@contextmanager
def remote(resources: dict[str, Resource], *, is_corrupt: bool = False, rate: float = 1e9) -> Iterator[DemoRemote]:
    with running(DemoRemote("one", resources, bytes_per_second=rate, is_corrupt=is_corrupt)) as found:
        yield found


def ask(found: DemoRemote, path: str, method: str = "GET") -> tuple[int, bytes, http.client.HTTPMessage]:
    connection = http.client.HTTPConnection(found.url.removeprefix("http://"), timeout=5)
    with closing(connection):
        connection.request(method, path)
        response = connection.getresponse()
        return response.status, response.read(), response.headers


def test_a_remote_serves_the_image_and_the_files(content: DemoContent) -> None:
    with remote(content.resources()) as found:
        manifest = ask(found, f"/v2/{REPOSITORY}/manifests/{TAG}")
        assert manifest[1] == content.image.manifest.body
        assert manifest[2]["Docker-Content-Digest"] == content.image.manifest.digest
        for blob in content.image.blobs:
            assert ask(found, blob_path(blob))[1] == blob.body
        assert ask(found, f"{FILES_ROOT}{BIG_FILE}")[1] == content.files[BIG_FILE].body
        assert ask(found, "/v2/")[0] == 200
        assert ask(found, "/v2/other/manifests/1")[0] == 404


def test_a_corrupt_remote_changes_one_byte_of_blobs_and_files_alone(content: DemoContent) -> None:
    with remote(content.resources(), is_corrupt=True) as found:
        assert ask(found, f"/v2/{REPOSITORY}/manifests/{TAG}")[1] == content.image.manifest.body
        for path, right in content.resources().items():
            got = ask(found, path)[1]
            differing = sum(a != b for a, b in zip(got, right.body, strict=True))
            assert differing == (1 if right.is_blob else 0), path


def test_a_remote_counts_gets_and_not_heads() -> None:
    with remote({"/a": Resource(b"abc", "text/plain"), "/b": Resource(b"", "text/plain")}) as found:
        status, body, headers = ask(found, "/a", "HEAD")
        assert (status, body, headers["Content-Length"]) == (200, b"", "3")
        ask(found, "/a")
        ask(found, "/b")
        assert (found.gets("/a"), found.gets("/b"), found.gets("/c"), found.gets_in_all()) == (1, 1, 0, 2)


def test_a_remote_keeps_the_pace_of_its_line() -> None:
    pieces = 4
    with remote({"/a": Resource(bytes(pieces * PIECE_SIZE), "text/plain")}, rate=pieces * PIECE_SIZE / 0.2) as found:
        device = Device(int(found.url.rpartition(":")[2]))
        pull = device.pull("/a")
    assert 0.14 < pull.seconds < 5
    assert pull.first_byte_seconds < pull.seconds - 0.1


def test_a_stopped_remote_refuses_connections() -> None:
    found = DemoRemote("one", {}, bytes_per_second=1e9, is_corrupt=False)
    with running(found):
        ask(found, "/")
        found.stop()
        with pytest.raises(ConnectionRefusedError):
            ask(found, "/")
        found.stop()


def test_a_remote_that_was_never_started_can_be_stopped() -> None:
    DemoRemote("one", {}, bytes_per_second=1e9, is_corrupt=False).stop()


# -- the device, against servers that follow a script

Script = Callable[[socket.socket, bytes], None]


@contextmanager
def scripted(*answers: Script) -> Iterator[tuple[Device, list[str]]]:
    """A device and what its server was sent; one connection for each answer."""
    asked: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(5)

        def serve() -> None:
            for answer in answers:
                with listening.accept()[0] as connection:
                    connection.settimeout(5)
                    request = connection.recv(65536)
                    asked.append(request.decode())
                    answer(connection, request)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield Device(listening.getsockname()[1]), asked
        finally:
            thread.join()


def whole(connection: socket.socket, _request: bytes) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\nCache-Status: x; hit\r\n\r\n" + BODY)


def part(connection: socket.socket, _request: bytes) -> None:
    head = b"HTTP/1.1 206 Partial Content\r\nContent-Length: 60\r\nContent-Range: bytes 40-99/100\r\n\r\n"
    connection.sendall(head + BODY[40:])


def short(connection: socket.socket, _request: bytes) -> None:
    connection.sendall(b'HTTP/1.1 200 OK\r\nContent-Length: 100\r\nETag: "one"\r\n\r\n' + BODY[:40])


def reset(connection: socket.socket, request: bytes) -> None:
    short(connection, request)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def refused(connection: socket.socket, _request: bytes) -> None:
    connection.sendall(b"HTTP/1.1 503 i/o timeout\r\nContent-Length: 2\r\nRetry-After: 7\r\n\r\nno")


def silent(connection: socket.socket, _request: bytes) -> None:
    """Closes without an answer."""


def test_a_whole_answer() -> None:
    with scripted(whole) as (device, _):
        pull = device.pull("/a")
    assert pull.is_whole(DIGEST)
    assert (pull.body, len(pull.answers), pull.cut) == (BODY, 1, [])
    assert pull.last.header("Cache-Status") == "x; hit"
    assert 0 < pull.first_byte_seconds <= pull.seconds


@pytest.mark.parametrize(("cut", "failure"), [(short, "connection closed early"), (reset, "connection reset")])
def test_after_a_cut_it_asks_for_the_rest_under_the_condition_that_nothing_changed(cut: Script, failure: str) -> None:
    with scripted(cut, part) as (device, asked):
        pull = device.pull("/a")
    assert pull.is_whole(DIGEST)
    assert [(answer.received, answer.is_complete) for answer in pull.answers] == [(40, False), (60, True)]
    assert pull.cut[0].failure == failure
    assert "Range: bytes=40-\r\n" in asked[1]
    assert 'If-Range: "one"\r\n' in asked[1]
    assert "Range" not in asked[0]


def test_a_200_for_the_rest_is_the_whole_again() -> None:
    with scripted(reset, whole) as (device, _):
        pull = device.pull("/a")
    assert pull.is_whole(DIGEST)
    assert pull.body == BODY


def test_cut_too_often_is_not_whole() -> None:
    with scripted(reset, reset, reset) as (device, _):
        pull = device.pull("/a")
    assert not pull.is_whole(pull.digest)
    assert len(pull.cut) == 3


def test_an_error_is_not_whole_and_not_asked_again() -> None:
    with scripted(refused) as (device, _):
        pull = device.pull("/a")
    assert not pull.is_whole(pull.digest)
    assert (pull.last.status, pull.last.reason, pull.last.header("retry-after")) == (503, "i/o timeout", "7")


def test_no_answer_at_all() -> None:
    with scripted(silent, silent, silent) as (device, _):
        pull = device.pull("/a")
    assert not pull.is_whole(pull.digest)
    assert [answer.status for answer in pull.answers] == [0, 0, 0]


def test_wrong_bytes_are_not_whole() -> None:
    with scripted(whole) as (device, _):
        assert not device.pull("/a").is_whole("sha256:" + "0" * 64)


def test_many_devices_at_once() -> None:
    resource = Resource(BODY, "text/plain")
    with remote({"/a": resource}) as found:
        pulls = Device(int(found.url.rpartition(":")[2])).pull_at_once("/a", 10)
    assert [pull.digest for pull in pulls] == [DIGEST] * 10
    assert found.gets("/a") == 10


def test_the_slowest_is_the_one_that_waited_longest_for_its_first_byte() -> None:
    pulls = [Pull([Answer(200, "", {}, None)], first_byte_seconds=seconds) for seconds in (0.1, 0.3, 0.2)]
    assert slowest(pulls) is pulls[1]


# -- the story


def told(width: int, tell: Callable[[Story], None]) -> list[str]:
    console = Console(file=io.StringIO(), width=width, highlight=False, emoji=False, markup=False)
    tell(Story(console))
    file = console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue().splitlines()


def test_a_check_that_holds_is_told_and_counted() -> None:
    def tell(story: Story) -> None:
        story.step("One")
        story.check(is_so=True, told="it is so", otherwise="it is not")
        assert (story.steps, story.checks) == (1, 1)

    assert told(80, tell) == ["", "  1   One", " ok   it is so"]


def test_a_check_that_does_not_hold_is_not_told() -> None:
    def tell(story: Story) -> None:
        with pytest.raises(Differs, match="it is not"):
            story.check(is_so=False, told="it is so", otherwise="it is not")
        assert story.checks == 0

    assert told(80, tell) == []


def test_long_lines_go_on_below_themselves() -> None:
    lines = told(40, lambda story: story.fact("word " * 20))
    assert lines[0].startswith(" ok   word")
    assert all(line.startswith("      word") for line in lines[1:])
    assert all(len(line) <= 40 and line == line.rstrip() for line in lines)


def test_a_table_keeps_its_columns() -> None:
    rows = [("mirror", "http://127.0.0.1:1", "long " * 20), ("a", "b", "c")]
    lines = told(60, lambda story: story.table(rows, "name", "url", "what"))
    assert lines[0].index("url") == lines[1].index("http") == lines[-1].index("b")
    assert lines[0].index("what") == lines[1].index("long") == lines[-1].index("c")
    assert all(len(line) <= 60 for line in lines)


def test_markup_in_what_is_told_is_only_text() -> None:
    assert told(80, lambda story: story.fact("[red]:smile: [/nothing]")) == [" ok   [red]:smile: [/nothing]"]


def test_a_failure_shows_its_details() -> None:
    lines = told(80, lambda story: story.failure("it went otherwise", ["a line of the log"]))
    assert lines == ["", " no   it went otherwise", "      a line of the log"]


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (4_198_400, "4.2 MB"), (33_554_432, "33.6 MB")]
)
def test_sizes_for_people(size: int, text: str) -> None:
    assert in_bytes(size) == text


@pytest.mark.parametrize(("seconds", "text"), [(0.0124, "12 ms"), (0.9, "900 ms"), (1.25, "1.25 s")])
def test_times_for_people(seconds: float, text: str) -> None:
    assert in_time(seconds) == text


def test_digests_for_people() -> None:
    assert short_digest(Blob.of("", b"").digest) == "sha256:e3b0c44298fc..."
    assert short_digest("127.0.0.1:5000") == "127.0.0.1:5000"

"""``contentapp demo``: the main job, on this machine alone; everything is checked before it is told."""

from __future__ import annotations

import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import click

from contentapp.cli.demo_content import (
    BIG_FILE,
    FILES_ROOT,
    MANIFEST_TYPE,
    REPOSITORY,
    TAG,
    Blob,
    DemoContent,
    blob_path,
)
from contentapp.cli.demo_device import Device, Pull, slowest
from contentapp.cli.demo_proxy import BASE_PATH, FILES_BASE_PATH, WORKERS, DemoProxy, ProxyFailed, stopped_at_the_end
from contentapp.cli.demo_remote import DemoRemote, running
from contentapp.cli.demo_story import Differs, Story, in_bytes, in_time, short_digest

MIRROR_RATE = 8e6  # bytes a second: slow enough for the device to have some of the wrong body when it is found out
ORIGIN_RATE = 32e6
DEVICES = 10
HELD_BACK = 64 * 1024
LOG_LINES = 15


@click.command("demo")
def demo() -> None:
    """Show the main job on this machine, without the internet.

    Starts two remotes, one of which is corrupt, and the proxy; pulls an image and a file; tells what happened. Exit
    code 1 when anything happened otherwise than told. Nothing is left behind.
    """
    with _ended_by_sigterm():
        sys.exit(0 if run_demo(Story()) else 1)


def run_demo(story: Story) -> bool:
    """The whole demo; whether everything happened as told."""
    began = time.monotonic()
    content = DemoContent.make()
    mirror = DemoRemote("mirror", content.resources(), bytes_per_second=MIRROR_RATE, is_corrupt=True)
    origin = DemoRemote("origin", content.resources(), bytes_per_second=ORIGIN_RATE, is_corrupt=False)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="contentapp-demo-")))
        stack.enter_context(running(mirror))
        stack.enter_context(running(origin))
        proxy = stack.enter_context(
            stopped_at_the_end(DemoProxy(folder, image_remotes=(mirror, origin), file_remotes=(origin, mirror)))
        )
        try:
            Demo(story, content, mirror, origin, proxy).run()
        except (Differs, ProxyFailed) as error:
            story.failure(f"It went otherwise: {error}", ["the end of the proxy's log:", *proxy.log_lines(LOG_LINES)])
            return False
        if (status := proxy.stop()) != 0:
            story.failure(f"It went otherwise: the proxy ended with {status} on SIGTERM", proxy.log_lines(LOG_LINES))
            return False
    story.end(f"All {story.checks} checks held, in {time.monotonic() - began:.1f} s. Nothing is left behind.")
    return True


@dataclass(slots=True)
class Demo:
    """The steps, in their order; each relies on those before it."""

    story: Story
    content: DemoContent
    mirror: DemoRemote
    origin: DemoRemote
    proxy: DemoProxy

    def run(self) -> None:
        """Differs or ProxyFailed at the first thing that is not as told."""
        self.scene()
        self.manifest()
        self.cut()
        self.cooldown()
        self.small_bodies()
        self.hits()
        self.together()
        self.outage()
        self.numbers()

    @property
    def device(self) -> Device:
        """Any device."""
        return Device(self.proxy.port)

    def scene(self) -> None:
        """Who plays."""
        self.story.title("contentapp demo", ": all of it on this machine, nothing but loopback is used")
        self.story.step("Two remotes, and the proxy between them and the devices")
        seconds = self.proxy.start()
        ready = f"asks mirror first, then origin; {WORKERS} workers, ready after {in_time(seconds)}"
        self.story.table(
            [
                ("mirror", self.mirror.url, "has the image and the files, but a byte of every layer and file is wrong"),
                ("origin", self.origin.url, "has the same, and all of it is right"),
                ("proxy", f"http://127.0.0.1:{self.proxy.port}", ready),
            ]
        )

    def manifest(self) -> None:
        """The first remote answers a tag, and its bytes are right."""
        story, manifest = self.story, self.content.image.manifest
        story.step(f"A device pulls {BASE_PATH}/{REPOSITORY}:{TAG}, which nobody has pulled before")
        pull = self._pull_manifest()
        self._whole("manifest", pull, manifest)
        asked = self._asked(f"/v2/{REPOSITORY}/manifests/{TAG}")
        story.check(
            is_so=asked == (1, 0),
            told=f"the manifest, {in_bytes(len(manifest.body))}, came from mirror and is right: {manifest.digest}",
            otherwise=f"the manifest was fetched {_times(asked)}",
        )

    def cut(self) -> None:
        """A large wrong body is cut before its end, and the next source is taken."""
        story, base = self.story, self.content.image.blobs[0]
        story.step(f"The {base.title}, {in_bytes(len(base.body))}: mirror sends a wrong byte")
        pull = self.device.pull(f"/v2/{BASE_PATH}/{REPOSITORY}/blobs/{base.digest}")
        first, last = pull.answers[0], pull.last
        is_cut = first.status == 200 and first.failure == "connection reset" and first.size == len(base.body)
        story.check(
            is_so=is_cut and 0 < first.received <= len(base.body) - HELD_BACK,
            told="abort: the device was fed from the first byte on, and had"
            f" {first.received:,} of {len(base.body):,} bytes when its connection was reset; the end of the body was"
            " held back until the digest was known, and the digest was wrong",
            otherwise=f"the first answer was {_described(pull, 0)}",
        )
        story.check(
            is_so=len(pull.answers) == 2 and last.status == 200,
            told=f"retry: the device asked to go on at byte {first.received:,}, provided that its bytes are good"
            " (If-Range); they are not, so it was sent the whole",
            otherwise=f"the device's retry was answered with {_described(pull, -1)}",
        )
        self._whole(base.title, pull, base)
        asked = self._asked(blob_path(base))
        story.check(
            is_so=asked == (1, 1),
            told=f"failover: the right bytes came from origin, digest {short_digest(pull.digest)};"
            " each remote was asked once",
            otherwise=f"the {base.title} was fetched {_times(asked)}",
        )

    def cooldown(self) -> None:
        """The pair (remote, artifact) cools down."""
        base = self.content.image.blobs[0]
        self.story.step(
            "The proxy remembers: what cools down, as the admin API (and `contentapp cooldown list`) has it"
        )
        cooling = self._cooldowns()
        self._tell_cooldowns(cooling)
        pairs = [one for one in cooling if one["remote"] == "mirror" and one["scope"] == "artifact"]
        self.story.check(
            is_so=len(cooling) == 1 and len(pairs) == 1 and pairs[0]["subject"] == base.digest,
            told="mirror is not asked for this layer during that time; for everything else it is",
            otherwise=f"{len(cooling)} scopes cool down, {len(pairs)} of them for mirror's {base.title}",
        )

    def small_bodies(self) -> None:
        """Bodies of up to 1 MiB are verified before the first byte: the device notices nothing."""
        story = self.story
        story.step("The smaller layers: they are verified before their first byte, so the device notices nothing")
        expected = [(1, 1), (1, 1), (0, 1)]
        for blob, times in zip(self.content.image.blobs[1:], expected, strict=True):
            pull = self.device.pull(f"/v2/{BASE_PATH}/{REPOSITORY}/blobs/{blob.digest}")
            self._whole(blob.title, pull, blob)
            asked = self._asked(blob_path(blob))
            story.check(
                is_so=len(pull.answers) == 1 and asked == times,
                told=f"{blob.title}, {in_bytes(len(blob.body))}, in {in_time(pull.seconds)}: {_route(asked)}",
                otherwise=f"{blob.title} took {len(pull.answers)} answers and was fetched {_times(asked)}",
            )
        whole = [one for one in self._cooldowns() if one["remote"] == "mirror" and one["scope"] == "remote"]
        self._tell_cooldowns(whole)
        story.check(
            is_so=len(whole) == 1,
            told="after wrong bytes of three layers mirror as a whole is left alone",
            otherwise="mirror as a whole does not cool down",
        )

    def hits(self) -> None:
        """What is stored is served without a question upstream."""
        self.story.step("A second device pulls the same image")
        before = self._gets()
        seconds, size = self._pull_stored()
        asked = self._gets() - before
        self.story.check(
            is_so=asked == 0,
            told=f"{len(self.content.image.blobs) + 1} bodies, {in_bytes(size)}, in {in_time(seconds)}: Cache-Status"
            " of all is `hit`, every digest is right, and the remotes were asked for nothing",
            otherwise=f"the remotes were asked {asked} times",
        )

    def together(self) -> None:
        """One upstream transfer feeds many devices."""
        story, file = self.story, self.content.files[BIG_FILE]
        story.step(f"{DEVICES} devices ask for {FILES_BASE_PATH}/{BIG_FILE}, {in_bytes(len(file.body))}, at once")
        pulls = self.device.pull_at_once(self._file_path(BIG_FILE), DEVICES)
        good = [pull for pull in pulls if pull.is_whole(file.digest) and len(pull.answers) == 1]
        last, seconds = slowest(pulls).first_byte_seconds, max(pull.seconds for pull in pulls)
        story.check(
            is_so=len(good) == DEVICES,
            told=f"all {DEVICES} have the right bytes after {in_time(seconds)}; the last of them had its first byte"
            f" after {in_time(last)}",
            otherwise=f"only {len(good)} of {DEVICES} devices have the right bytes at the first try",
        )
        gets = self.origin.gets(f"{FILES_ROOT}{BIG_FILE}") + self.mirror.gets(f"{FILES_ROOT}{BIG_FILE}")
        collapsed = sum("collapsed" in pull.last.header("Cache-Status") for pull in pulls)
        received = self.proxy.metric("contentapp_upstream_bytes_total", remote="origin-files") / len(file.body)
        story.check(
            is_so=gets == 1 and received < 1.01,
            told=f"one transfer for all: origin was asked once and sent {received:.2f} times the size; {collapsed}"
            f" devices were fed from a transfer that another one had begun, over {WORKERS} worker processes",
            otherwise=f"the remotes were asked {gets} times for {received:.2f} times the size",
        )

    def outage(self) -> None:
        """The remotes are gone: what is stored is served; of the rest it is never said that it does not exist."""
        story, file = self.story, self.content.files[BIG_FILE]
        self.mirror.stop()
        self.origin.stop()
        story.step("Both remotes are stopped")
        seconds, size = self._pull_stored()
        story.fact(f"the image is still served: {in_bytes(size)} in {in_time(seconds)}")
        pull = self.device.pull(self._file_path(BIG_FILE))
        self._whole(BIG_FILE, pull, file)
        story.check(
            is_so=pull.last.header("Cache-Status") == "contentapp; hit",
            told=f"so is {BIG_FILE}: {in_bytes(len(file.body))} in {in_time(pull.seconds)}",
            otherwise=f"{BIG_FILE} was answered with Cache-Status {pull.last.header('Cache-Status')}",
        )
        unknown = self.device.pull(f"/v2/{BASE_PATH}/demo/other/manifests/{TAG}", accept=MANIFEST_TYPE).last
        story.check(
            is_so=unknown.status == 503 and unknown.header("Retry-After").isdecimal(),
            told=f"an image that nobody has pulled before: {unknown.status} {unknown.reason}, Retry-After"
            f' {unknown.header("Retry-After")}; not 404, which a puller takes for "does not exist"',
            otherwise=f"an image that nobody has pulled before was answered with {unknown.status} {unknown.reason}",
        )

    def numbers(self) -> None:
        """What the metrics say of it."""
        metric = self.proxy.metric
        self.story.step("In numbers, from /metrics")
        failures = metric("contentapp_digest_failures_total", remote="mirror")
        others = metric("contentapp_digest_failures_total") - failures
        given, taken = metric("contentapp_device_bytes_total"), metric("contentapp_upstream_bytes_total")
        self.story.check(
            is_so=(failures, others) == (3, 0),
            told=f"{failures:.0f} bodies with a wrong digest, all from mirror; no device has one of them",
            otherwise=f"{failures:.0f} digest failures of mirror, {others:.0f} of others",
        )
        self.story.check(
            is_so=given > taken > 0,
            told=f"{in_bytes(int(given))} went to devices, {in_bytes(int(taken))} came from remotes",
            otherwise=f"{in_bytes(int(given))} went to devices, {in_bytes(int(taken))} came from remotes",
        )

    # What the steps share.

    def _pull_manifest(self) -> Pull:
        return self.device.pull(f"/v2/{BASE_PATH}/{REPOSITORY}/manifests/{TAG}", accept=MANIFEST_TYPE)

    def _pull_stored(self) -> tuple[float, int]:
        """Pull the whole image, all of which must be a hit; seconds and bytes."""
        image = self.content.image
        pulls = [(image.manifest, self._pull_manifest())]
        for blob in image.blobs:
            pulls.append((blob, self.device.pull(f"/v2/{BASE_PATH}/{REPOSITORY}/blobs/{blob.digest}")))
        for blob, pull in pulls:
            self._whole(blob.title, pull, blob)
            status = pull.last.header("Cache-Status")
            if status != "contentapp; hit":
                raise Differs(f"the {blob.title} was answered with Cache-Status {status!r}")
        return sum(pull.seconds for _, pull in pulls), sum(len(blob.body) for blob, _ in pulls)

    def _whole(self, title: str, pull: Pull, blob: Blob) -> None:
        """A pull must have ended with the right bytes, and no answer may have been complete and wrong."""
        if not pull.is_whole(blob.digest):
            raise Differs(f"the device did not get the {title}: {_described(pull, -1)}")

    def _asked(self, path: str) -> tuple[int, int]:
        """How often mirror and origin were asked for a path."""
        return self.mirror.gets(path), self.origin.gets(path)

    def _gets(self) -> int:
        return self.mirror.gets_in_all() + self.origin.gets_in_all()

    def _file_path(self, name: str) -> str:
        return f"/pulp/content/{FILES_BASE_PATH}/{name}"

    def _cooldowns(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.proxy.ask("/pulp/api/v3/cooldowns/")["results"]
        return found

    def _tell_cooldowns(self, cooling: Sequence[dict[str, Any]]) -> None:
        rows = [
            (one["remote"], one["scope"], _subject(one), f"{one['retry_after']} s", _reason(one)) for one in cooling
        ]
        self.story.table(rows, "remote", "scope", "subject", "for", "reason")


def _subject(cooling: dict[str, Any]) -> str:
    return short_digest(cooling["subject"]) or "all of it"


def _reason(cooling: dict[str, Any]) -> str:
    subject = cooling["subject"]
    return str(cooling["reason"].replace(subject, short_digest(subject)) if subject else cooling["reason"])


def _described(pull: Pull, index: int) -> str:
    answer = pull.answers[index]
    end = "complete" if answer.is_complete else f"cut ({answer.failure})"
    return f"{answer.status} {answer.reason}, {answer.received:,} of {answer.size or 0:,} bytes, {end}, {pull.digest}"


def _times(asked: tuple[int, int]) -> str:
    return f"{asked[0]} times from mirror and {asked[1]} times from origin"


def _route(asked: tuple[int, int]) -> str:
    return "mirror's bytes were wrong, origin's are right" if asked[0] else "from origin alone"


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """SIGTERM ends it as Ctrl-C does, so that it cleans up."""

    def end(number: int, frame: FrameType | None) -> None:
        sys.exit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)

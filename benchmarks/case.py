"""What is measured, in which unit, and what the proxy has to reach."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from statistics import median

from benchmarks.contender import Contender
from benchmarks.content import Image
from benchmarks.device import Pulled, SlowDevices, load, pull, pull_many, verify
from benchmarks.origin import Origin
from benchmarks.process import BenchmarkError
from benchmarks.tls import TlsFiles

COLD_DEVICES = 20
WARM_DEVICES = 10
SLOW_DEVICES = 500
SLOW_RATE = 64 * 1024
NGINX = "nginx"
REGISTRY = "docker-registry"


@dataclass(frozen=True, slots=True)
class Bar:
    """The proxy's figure must be at least (or at most) factor × that of a peer; of no peer: factor itself."""

    kind: str
    factor: float
    peer: str | None = None

    def reached(self, figures: Mapping[str, float], own: float) -> bool | None:
        """None if the peer has no figure."""
        limit = self.factor if self.peer is None else figures.get(self.peer)
        if limit is None:
            return None
        limit = limit if self.peer is None else limit * self.factor
        return own >= limit if self.kind == "≥" else own <= limit

    def __str__(self) -> str:
        return f"{self.kind} {self.factor:g}" + (f" × {self.peer}" if self.peer else "")


@dataclass(frozen=True, slots=True)
class Metric:
    """One line of the report."""

    key: str
    title: str
    unit: str
    bars: tuple[Bar, ...] = ()


@dataclass(frozen=True, slots=True)
class Scale:
    """How big everything is; `--quick` makes it small."""

    size: int
    load_seconds: float
    slow_seconds: float


@dataclass(frozen=True, slots=True)
class Stage:
    """What a case is given to measure one contender once. is_first: in the first round, which verifies bytes too."""

    origin: Origin
    contender: Contender
    images: list[Image]
    scale: Scale
    is_first: bool

    @property
    def tls(self) -> TlsFiles | None:
        return self.contender.setting.tls

    @property
    def layer_url(self) -> str:
        return self.contender.url(self.images[0].layer_path)


Measure = Callable[[Stage], dict[str, float]]


@dataclass(frozen=True, slots=True)
class Case:
    """warm: all contenders run side by side with the image cached; else each starts with an empty cache every round.

    size: of each image's layer, 0 for the scale's. limited: the upstream is the slow one. max_rounds: 0 for no limit.
    """

    name: str
    metrics: tuple[Metric, ...]
    measure: Measure
    warm: bool = False
    tls: bool = False
    limited: bool = False
    size: int = 0
    images: int = 1
    max_rounds: int = 0


def measure_correctness(stage: Stage) -> dict[str, float]:
    """Every device of a cold stampede hashes what it got."""
    contender, image = stage.contender, stage.images[0]
    contender.start(empty=True)
    verify(stage.layer_url, image.layer, COLD_DEVICES, contender.folder, stage.tls)
    return {"right": COLD_DEVICES}


def measure_warm_blob(stage: Stage, *, devices: int) -> dict[str, float]:
    """A single pull is over so soon that the middle one of three is taken."""
    repeats = 3 if devices == 1 else 1
    return {"rate": median(_pull(stage, devices).megabytes_per_second for _ in range(repeats))}


def measure_manifest(stage: Stage, *, by_tag: bool) -> dict[str, float]:
    image = stage.images[0]
    found = load(stage.contender.url(image.tag_path if by_tag else image.digest_path), stage.scale.load_seconds)
    return {"rate": found.requests_per_second, "p99": found.p99_milliseconds}


def measure_cold_blob(stage: Stage, *, devices: int) -> dict[str, float]:
    """The traffic is counted once the contender has ended; what it stored is verified after a restart, untimed."""
    image, contender = stage.images[0], stage.contender
    contender.start(empty=True)
    pull(contender.url(image.tag_path), image.manifest_size, stage.tls)
    os.sync()
    mark = stage.origin.mark()
    pulled = _pull(stage, devices)
    stage.origin.settle()
    contender.stop()
    traffic = stage.origin.traffic(image, mark)
    if not traffic.gets:
        raise BenchmarkError("the origin saw no request for the layer")
    if stage.is_first:
        contender.start(empty=False)
        verify(stage.layer_url, image.layer, 1, contender.folder, stage.tls)
    return {
        "rate": pulled.megabytes_per_second,
        "first": pulled.slowest_first_byte_seconds * 1000,
        "bytes": traffic.sent / image.size,
        "gets": traffic.gets,
    }


def measure_memory(stage: Stage) -> dict[str, float]:
    """Devices spread over the images, all of them cold at first; the peak is that of the largest process."""
    contender, scale, images = stage.contender, stage.scale, stage.images
    contender.start(empty=True)
    urls = [contender.url(images[index % len(images)].layer_path) for index in range(SLOW_DEVICES)]
    with SlowDevices(urls, SLOW_RATE, stage.tls) as devices:
        weights = [contender.weigh() for _ in devices.read_for(scale.slow_seconds)]
        fed = devices.fed
    return {
        "rss": max(weight.largest_rss for weight in weights) / 2**20,
        "pss": max(weight.total_pss for weight in weights) / 2**20,
        "fed": fed / len(urls),
    }


def measure_start(stage: Stage) -> dict[str, float]:
    """With nothing at all in its folder, and again with what the first start left there."""
    first = stage.contender.start(empty=True)
    stage.contender.stop()
    return {"first": first, "again": stage.contender.start(empty=False)}


def _pull(stage: Stage, devices: int) -> Pulled:
    size = stage.images[0].size
    if devices == 1:
        return pull(stage.layer_url, size, stage.tls)
    return pull_many(stage.layer_url, size, devices, stage.tls)


WARM_BARS = (Bar("≥", 0.95, NGINX), Bar("≥", 1, REGISTRY))
COLD_BARS = (Bar("≥", 0.9, NGINX), Bar("≥", 1, REGISTRY))
UPSTREAM = (
    Metric("bytes", "bytes from upstream", "× size", (Bar("≤", 1.004),)),
    Metric("gets", "GETs upstream", ""),
)


def _warm(devices: int) -> Case:
    metrics = (Metric("rate", f"warm blob, {_count(devices)}", "MB/s", WARM_BARS),)
    return Case(f"warm-{devices}", metrics, partial(measure_warm_blob, devices=devices), warm=True)


def _manifest(reference: str, times_registry: float) -> Case:
    metrics = (
        Metric(
            "rate", f"warm manifest by {reference}", "req/s", (Bar("≥", 0.2, NGINX), Bar("≥", times_registry, REGISTRY))
        ),
        Metric("p99", f"warm manifest by {reference}, 99th percentile", "ms"),
    )
    measure = partial(measure_manifest, by_tag=reference == "tag")
    return Case(f"manifest-{reference}", metrics, measure, warm=True, size=1 << 20)


def _cold_one() -> Case:
    metrics = (
        Metric("rate", "cold blob, one device", "MB/s", COLD_BARS),
        Metric("first", "cold blob, one device, first byte", "ms"),
        *_titled("cold blob, one device", UPSTREAM),
    )
    return Case("cold-1", metrics, partial(measure_cold_blob, devices=1))


def _cold_many(*, limited: bool) -> Case:
    title = f"cold blob, {_count(COLD_DEVICES)}" + (", upstream at 50 MB/s" if limited else "")
    metrics = (
        Metric("rate", title, "MB/s", (Bar("≥", 1.1, NGINX),)),
        Metric("first", f"{title}, first byte of the slowest", "ms", (Bar("≤", 0.1, NGINX),)),
        *_titled(title, UPSTREAM),
    )
    name = f"cold-{COLD_DEVICES}" + ("-limited" if limited else "")
    measure = partial(measure_cold_blob, devices=COLD_DEVICES)
    return Case(name, metrics, measure, limited=limited, max_rounds=2 if limited else 0)


def _memory() -> Case:
    metrics = (
        Metric("rss", f"{SLOW_DEVICES} slow devices, peak RSS of the largest process", "MiB", (Bar("≤", 300),)),
        Metric("pss", f"{SLOW_DEVICES} slow devices, PSS of all processes", "MiB"),
        Metric("fed", f"{SLOW_DEVICES} slow devices, share that is being fed", "", (Bar("≥", 1),)),
    )
    return Case("memory", metrics, measure_memory, images=2, max_rounds=1)


def _start() -> Case:
    metrics = (
        Metric("first", "first start, to 200 on /readyz", "s", (Bar("≤", 1.5),)),
        Metric("again", "next start, to 200 on /readyz", "s", (Bar("≤", 1.5),)),
    )
    return Case("start", metrics, measure_start, size=1 << 20)


def _correct() -> Case:
    metrics = (Metric("right", f"cold, {_count(COLD_DEVICES)}: devices with the right bytes", "", ()),)
    return Case("correct", metrics, measure_correctness, size=64 << 20, max_rounds=1)


def _over_tls(case: Case) -> Case:
    metrics = tuple(replace(metric, title=f"TLS: {metric.title}") for metric in case.metrics)
    return replace(case, name=f"tls-{case.name}", metrics=metrics, tls=True)


def _titled(title: str, metrics: tuple[Metric, ...]) -> tuple[Metric, ...]:
    return tuple(replace(metric, title=f"{title}, {metric.title}") for metric in metrics)


def _count(devices: int) -> str:
    return "one device" if devices == 1 else f"{devices} devices at once"


def _cases() -> Iterator[Case]:
    plain = (
        _correct(),
        _warm(1),
        _warm(WARM_DEVICES),
        _manifest("tag", 10),
        _manifest("digest", 5),
        _cold_one(),
        _cold_many(limited=False),
        _cold_many(limited=True),
        _memory(),
        _start(),
    )
    yield from plain
    yield from (_over_tls(case) for case in plain if not case.limited)


CASES = tuple(_cases())

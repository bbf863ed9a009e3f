"""Runs a case over its contenders, round by round, A B C A B C, and keeps every figure."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import ParamSpec

from benchmarks.case import Case, Scale, Stage
from benchmarks.contender import Contender, Setting
from benchmarks.content import Image
from benchmarks.device import pull, verify
from benchmarks.origin import Origin
from benchmarks.process import BenchmarkError
from benchmarks.tls import TlsFiles

P = ParamSpec("P")

WARM_UP_PULLS = 10
FAILURES = (BenchmarkError, OSError, subprocess.SubprocessError)


@dataclass(frozen=True, slots=True)
class Result:
    """All figures of one case: samples[contender][round][metric], and why a contender has no more of them."""

    case: Case
    samples: dict[str, list[dict[str, float]]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)

    def medians(self, metric: str) -> dict[str, float]:
        """By contender; one that failed has none."""
        return {
            name: median(sample[metric] for sample in samples)
            for name, samples in self.samples.items()
            if samples and name not in self.failures
        }


class Runner:
    """Owns the origin and every server it starts: all are ended, and their files gone, when the context ends."""

    def __init__(
        self,
        *,
        folder: Path,
        contenders: Sequence[type[Contender]],
        scale: Scale,
        rounds: int,
        workers: int,
        tls: TlsFiles,
        say: Callable[[str], None],
    ) -> None:
        self.folder = folder
        self.contenders = contenders
        self.scale = scale
        self.rounds = rounds
        self.workers = workers
        self.tls = tls
        self.say = say
        self.origin = Origin(folder / "origin", workers)

    def __enter__(self) -> Runner:
        self.origin.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.origin.stop()
        shutil.rmtree(self.folder / "origin", ignore_errors=True)

    def preflight(self) -> None:
        """Starts each contender once; raises BenchmarkError with its last lines if it can't."""
        for contender in self._make(limited=False, tls=False):
            try:
                contender.start(empty=True)
            finally:
                contender.discard()

    def run(self, case: Case) -> Result:
        result = Result(case)
        rounds = min(self.rounds, case.max_rounds or self.rounds)
        contenders = self._make(limited=case.limited, tls=case.tls)
        with ExitStack() as stack:
            for contender in contenders:
                stack.callback(contender.discard)
            (self._run_warm if case.warm else self._run_cold)(result, contenders, rounds)
        return result

    def _run_warm(self, result: Result, contenders: list[Contender], rounds: int) -> None:
        with ExitStack() as stack:
            images = self._add_images(result.case, stack)
            for contender in contenders:
                self._guarded(result, contender, self._warm_up, contender, images[0])
            for number in range(rounds):
                for contender in contenders:
                    self._guarded(result, contender, self._measure, result, contender, images, number)

    def _run_cold(self, result: Result, contenders: list[Contender], rounds: int) -> None:
        for number in range(rounds):
            with ExitStack() as stack:
                images = self._add_images(result.case, stack)
                for contender in contenders:
                    self._guarded(result, contender, self._measure, result, contender, images, number)
                    contender.discard()

    def _measure(self, result: Result, contender: Contender, images: list[Image], number: int) -> None:
        stage = Stage(self.origin, contender, images, self.scale, is_first=number == 0)
        sample = result.case.measure(stage)
        result.samples.setdefault(contender.name, []).append(sample)
        figures = ", ".join(f"{metric.key} {sample[metric.key]:.4g} {metric.unit}" for metric in result.case.metrics)
        self.say(f"{result.case.name} round {number + 1} {contender.name}: {figures}")

    def _guarded(
        self, result: Result, contender: Contender, action: Callable[P, None], *args: P.args, **kwargs: P.kwargs
    ) -> None:
        """A contender that fails once is left out of the rest of the case. Without the origin nothing can go on."""
        if contender.name in result.failures:
            return
        try:
            action(*args, **kwargs)
        except FAILURES as error:
            self.origin.check()
            result.failures[contender.name] = _reason(contender, error)
            contender.stop()
            self.say(f"{result.case.name} {contender.name} FAILED: {result.failures[contender.name]}")

    def _warm_up(self, contender: Contender, image: Image) -> None:
        """Pulls until nothing more is asked upstream for the layer, then checks the bytes."""
        contender.start(empty=True)
        tls = contender.setting.tls
        for path in (image.tag_path, image.digest_path):
            pull(contender.url(path), image.manifest_size, tls)
        for _ in range(WARM_UP_PULLS):
            mark = self.origin.mark()
            pull(contender.url(image.layer_path), image.size, tls)
            self.origin.settle()
            if not self.origin.traffic(image, mark).gets:
                break
        else:
            raise BenchmarkError(f"{contender.name} still asks upstream after {WARM_UP_PULLS} pulls")
        verify(contender.url(image.layer_path), image.layer, 1, contender.folder, tls)

    def _make(self, *, limited: bool, tls: bool) -> list[Contender]:
        setting = Setting(self.origin.url(limited=limited), self.workers, self.tls if tls else None)
        return [contender(self.folder / contender.name, setting) for contender in self.contenders]

    def _add_images(self, case: Case, stack: ExitStack) -> list[Image]:
        """Removed from the origin when the stack closes."""
        images = [self.origin.images.add(case.size or self.scale.size) for _ in range(case.images)]
        for image in images:
            stack.callback(self.origin.images.remove, image)
        return images


def _reason(contender: Contender, error: Exception) -> str:
    """That the server is gone says more than what its devices saw."""
    try:
        contender.check()
    except BenchmarkError as ended:
        return str(ended)
    return str(error)

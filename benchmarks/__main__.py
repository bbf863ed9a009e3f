"""`python -m benchmarks`: measures, prints a table, and leaves it as build/bench.md and build/bench.json."""

from __future__ import annotations

import argparse
import json
import re
import resource
import shutil
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.case import CASES, Case, Scale
from benchmarks.contender import Contender
from benchmarks.contenders import CONTENDERS
from benchmarks.machine import describe, raw_figures
from benchmarks.process import BenchmarkError, find_program
from benchmarks.report import Report
from benchmarks.runner import Result, Runner
from benchmarks.tls import make_certificate

UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
DISK_TIMES_SIZE = 6
"""The layer upstream, in three caches, and once more while it is verified: five at most, and one to spare."""

SMALL_IMAGES_SIZE = 2 << 30


def main(arguments: Sequence[str] | None = None) -> int:
    """0 if everything could be measured, whatever the figures; 1 if not; 2 for a wrong argument."""
    options = _parser().parse_args(arguments)
    if options.list:
        print("\n".join(case.name for case in CASES))
        return 0
    cases = [case for case in CASES if not options.only or any(part in case.name for part in options.only)]
    if not cases:
        print("no case has that in its name; --list shows them all", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        report = _measure(options, cases)
    except BenchmarkError as error:
        print(f"not measured: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; every server is stopped", file=sys.stderr)
        return 1
    _publish(report, options.output)
    return 1 if any(result.failures for result in report.results) else 0


def _measure(options: argparse.Namespace, cases: Sequence[Case]) -> Report:
    contenders = [contender for contender in CONTENDERS if contender.name in options.contenders.split(",")]
    scale = _scale(options)
    folder = options.output / "bench"
    _require(cases, contenders, folder, scale)
    rounds = options.rounds or (1 if options.quick else 3)
    machine = describe()
    try:
        raw = raw_figures(folder, scale.size)
        tls = make_certificate(folder)
        with Runner(
            folder=folder,
            contenders=contenders,
            scale=scale,
            rounds=rounds,
            workers=options.workers,
            tls=tls,
            say=_say,
        ) as runner:
            runner.preflight()
            results: list[Result] = [runner.run(case) for case in cases]
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return Report(machine, raw, _settings(scale, rounds, options.workers), results)


def _require(cases: Sequence[Case], contenders: Sequence[type[Contender]], folder: Path, scale: Scale) -> None:
    """Programs, room and open files; an empty folder. Raises BenchmarkError if anything is missing."""
    if not contenders:
        raise BenchmarkError(f"no such contender; there are {', '.join(contender.name for contender in CONTENDERS)}")
    programs = {"nginx", "curl", *(contender.name for contender in contenders if contender.name == "docker-registry")}
    if any("manifest" in case.name for case in cases):
        programs.add("wrk")
    for program in sorted(programs):
        find_program(program)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    needed = scale.size * DISK_TIMES_SIZE + SMALL_IMAGES_SIZE
    if shutil.disk_usage(folder).free < needed:
        raise BenchmarkError(f"{folder} needs {needed / 2**30:.1f} GiB of free space")
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(most, 65536) if most > 0 else 65536, most))


def _scale(options: argparse.Namespace) -> Scale:
    if options.quick:
        return Scale(options.size or 128 << 20, load_seconds=1, slow_seconds=4)
    return Scale(options.size or 1 << 30, load_seconds=5, slow_seconds=15)


def _settings(scale: Scale, rounds: int, workers: int) -> dict[str, str]:
    return {
        "layer": f"{scale.size / 2**20:,.0f} MiB",
        "rounds": f"{rounds}",
        "workers": f"{workers}",
        "wrk": f"{scale.load_seconds:g} s",
    }


def _publish(report: Report, output: Path) -> None:
    text = report.markdown()
    (output / "bench.md").write_text(text)
    (output / "bench.json").write_text(json.dumps(report.json(), indent=2) + "\n")
    print(f"\n{text}\nwritten to {output}/bench.md and {output}/bench.json")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "--only", action="append", metavar="NAME", help="cases whose name contains this; may be repeated"
    )
    parser.add_argument("--rounds", type=_positive, help="how often each case is measured (3; with --quick 1)")
    parser.add_argument("--size", type=_size, help="of the big layer, like 256M (1G; with --quick 128M)")
    parser.add_argument("--workers", type=_positive, default=2, help="processes of the proxy and of nginx (2)")
    parser.add_argument("--quick", action="store_true", help="small and short, to see whether it works at all")
    parser.add_argument("--list", action="store_true", help="print the names of the cases")
    parser.add_argument("--contenders", default=",".join(contender.name for contender in CONTENDERS), metavar="A,B")
    parser.add_argument("--output", type=Path, default=Path("build").resolve(), help="folder for results and work")
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return int(text)


def _size(text: str) -> int:
    match = re.fullmatch(r"([1-9][0-9]*)([KMG]?)(?:i?B)?", text, re.IGNORECASE)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text} is not a size like 256M")
    return int(match.group(1)) * UNITS[match.group(2).upper()]


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())

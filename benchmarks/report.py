"""The figures as Markdown, for people, and as JSON with every single sample."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain

from benchmarks.case import Bar, Metric
from benchmarks.contenders import CONTENDERS, Proxy
from benchmarks.runner import Result

NAMES = tuple(contender.name for contender in CONTENDERS)
REASON_SIZE = 400
PEERS = tuple(name for name in NAMES if name != Proxy.name)


@dataclass(frozen=True, slots=True)
class Report:
    """All of one run."""

    machine: dict[str, str]
    raw: dict[str, float]
    settings: dict[str, str]
    results: Sequence[Result]

    def markdown(self) -> str:
        parts = [
            _table(("machine", ""), self.machine.items()),
            _table(("raw figure", "MB/s"), ((name, f"{value:,.0f}") for name, value in self.raw.items())),
            _table(("run", ""), self.settings.items()),
            self._figures(),
            self._failures(),
        ]
        return "\n\n".join(part for part in parts if part) + "\n"

    def json(self) -> dict[str, object]:
        return {
            "machine": self.machine,
            "raw_megabytes_per_second": self.raw,
            "settings": self.settings,
            "cases": [_case_json(result) for result in self.results],
        }

    def _figures(self) -> str:
        heads = ("what", "unit", *NAMES, *(f"× {peer}" for peer in PEERS), "to reach", "reached")
        rows = ([_row(result, metric) for metric in result.case.metrics] for result in self.results)
        return _table(heads, chain.from_iterable(rows))

    def _failures(self) -> str:
        lines = (
            f"- {result.case.name}, {name}: {' '.join(reason.split())[:REASON_SIZE]}"
            for result in self.results
            for name, reason in result.failures.items()
        )
        return "\n".join(lines)


def _row(result: Result, metric: Metric) -> tuple[str, ...]:
    figures = result.medians(metric.key)
    own = figures.get(Proxy.name)
    return (
        metric.title,
        metric.unit,
        *("failed" if name in result.failures else _number(figures.get(name)) for name in NAMES),
        *(_ratio(own, figures.get(peer)) for peer in PEERS),
        ", ".join(map(str, metric.bars)),
        _verdict([bar.reached(figures, own) for bar in metric.bars] if own is not None else []),
    )


def _verdict(answers: list[bool | None]) -> str:
    """Of all the bars of a line; empty if one of them could not be judged and none was missed."""
    if False in answers:
        return "**no**"
    return "yes" if answers and None not in answers else ""


def _case_json(result: Result) -> dict[str, object]:
    return {
        "name": result.case.name,
        "metrics": [_metric_json(result, metric) for metric in result.case.metrics],
        "samples": result.samples,
        "failures": result.failures,
    }


def _metric_json(result: Result, metric: Metric) -> dict[str, object]:
    figures = result.medians(metric.key)
    own = figures.get(Proxy.name)
    return {
        "key": metric.key,
        "title": metric.title,
        "unit": metric.unit,
        "medians": figures,
        "bars": [_bar_json(bar, figures, own) for bar in metric.bars],
    }


def _bar_json(bar: Bar, figures: dict[str, float], own: float | None) -> dict[str, object]:
    return {"bar": str(bar), "reached": None if own is None else bar.reached(figures, own)}


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _ratio(own: float | None, peer: float | None) -> str:
    return f"{own / peer:.2f}" if own is not None and peer else ""

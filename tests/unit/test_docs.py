"""The documentation says what the code does: every setting and metric, with the same defaults, and nothing else."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from contentapp.config import load_config
from contentapp.config.quantity import parse_duration, parse_size
from contentapp.config.reference import SettingRow, setting_rows
from contentapp.core.settings import DistributionSettings, EngineSettings, RemoteSettings
from contentapp.metrics import CLOSED, METRICS

DOCS = Path(__file__).parents[2] / "docs"
SETTINGS = (DOCS / "settings.md").read_text(encoding="utf-8")
METRICS_PAGE = (DOCS / "metrics.md").read_text(encoding="utf-8")


def table(page: str, *head: str) -> list[tuple[str, ...]]:
    """The rows of the one table with this head; code marks are left out."""
    lines = page.splitlines()
    start = lines.index(f"| {' | '.join(head)} |") + 2
    rows = []
    for line in lines[start:]:
        if not line.startswith("|"):
            break
        rows.append(tuple(cell.strip().replace("`", "") for cell in line.strip("|").split("|")))
    return rows


def test_every_setting() -> None:
    documented = [SettingRow(*row) for row in table(SETTINGS, "Setting", "Scope", "Default", "Range", "Meaning")]
    assert documented == list(setting_rows())


def test_documented_defaults_are_those_of_the_dataclasses() -> None:
    """Apart from the table's own code: the texts, read back, are the fields' values."""
    documented = {row[0]: row[2] for row in table(SETTINGS, "Setting", "Scope", "Default", "Range", "Meaning")}
    for group in (RemoteSettings(), DistributionSettings(), EngineSettings()):
        for name in group.names():
            value = getattr(group, name)
            text = documented[name]
            if isinstance(value, int | float) and not isinstance(value, bool):
                text = text.removesuffix("/s")
                assert value in {parse_size(text), parse_duration(text), parse_duration(f"{text}s")}, name
            else:
                assert text == str(value).lower().replace("none", "null"), name


def test_the_example_of_the_settings_page_is_valid(tmp_path: Path) -> None:
    example = SETTINGS.split("```yaml\n")[1].split("```")[0]
    (tmp_path / "contentapp.yaml").write_text(example)
    config = load_config(tmp_path / "contentapp.yaml", {"QUAY_PASSWORD": "x"})
    assert config.warnings == ()
    assert [d["base_path"] for d in config.distributions] == ["quay.io", "firmware"]
    assert set(yaml.safe_load(example)) == {
        "data_dir",
        "content",
        "cache",
        "tag_ttl_seconds",
        "remotes",
        "distributions",
    }


def test_every_metric() -> None:
    documented = table(METRICS_PAGE, "Metric", "Kind", "Labels", "Meaning")
    assert documented == [(spec.name, spec.kind, ", ".join(spec.labels) or "–", spec.doc) for spec in METRICS]


def test_every_label() -> None:
    assert table(METRICS_PAGE, "Label", "Values") == [(label, ", ".join(values)) for label, values in CLOSED.items()]


def test_every_bucket() -> None:
    documented = table(METRICS_PAGE, "Histogram", "Upper bounds in seconds")
    in_code = [(s.name, ", ".join(f"{bound:g}" for bound in s.buckets)) for s in METRICS if s.buckets]
    assert documented == in_code


def test_queries_name_metrics_that_exist() -> None:
    names = {spec.name for spec in METRICS}
    for name in re.findall(r"contentapp_\w+", METRICS_PAGE):
        assert name in names or name.removesuffix("_bucket") in names

"""How long a tag is fresh."""

from __future__ import annotations

import pytest

from contentapp.core.records import ContentType, Distribution
from contentapp.core.settings import DistributionSettings
from contentapp.pipeline.manifest import tag_ttl

PATTERNS = {"v[0-9]*": 1.0, "v1*": 2.0, "*-rc?": 3.0, "latest": 4.0}


@pytest.mark.parametrize(
    ("tag", "seconds"),
    [("v1", 1.0), ("v1.2-rc1", 1.0), ("x-rc1", 3.0), ("x-rc12", 9.0), ("latest", 4.0), ("Latest", 9.0), ("v", 9.0)],
)
def test_first_pattern_that_matches(tag: str, seconds: float) -> None:
    settings = DistributionSettings(tag_ttl_seconds=9.0, tag_ttl_patterns=PATTERNS)
    distribution = Distribution(id=1, name="d", base_path="d", type=ContentType.CONTAINER, settings=settings)
    assert tag_ttl(distribution, tag) == seconds

"""A browser for the pages of reports."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from dhr_batch.tests.pipeline.chromium import Chromium


@pytest.fixture(scope="module")
def chromium() -> Iterator[Chromium]:
    """High enough for all rows of the small page."""
    with Chromium(height=2600) as browser:
        yield browser

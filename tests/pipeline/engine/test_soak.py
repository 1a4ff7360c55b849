"""The driver over two thousand shards: what it keeps must not grow with what it has done."""

from __future__ import annotations

from pathlib import Path

import pytest

from dhr_batch.tests import overhead
from dhr_batch.tests.faults import harness


@pytest.mark.slow
def test_two_thousand_shards_leave_no_memory_and_no_files(tmp_path: Path) -> None:
    with harness.session():
        figures = overhead.soak(tmp_path, 2000)
    print(f"\n{figures}")
    assert figures["soak_shards"] == 2000
    for name in ("driver_growth_mb", "driver_new_files"):
        assert overhead.holds(name, figures[name]), figures

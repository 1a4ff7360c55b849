"""What the engine costs where the stages cost nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from dhr_batch.tests import overhead
from dhr_batch.tests.faults import harness


@pytest.mark.slow
def test_the_engine_keeps_up_with_stages_that_do_nothing(tmp_path: Path) -> None:
    """Best of three, from the first commits on; a busy machine may be three times slower."""
    with harness.session():
        figures = overhead.engine(tmp_path, 1600)
    print(f"\n{figures}")
    assert figures.keys() == set(overhead._HELD)
    for name, value in figures.items():
        assert overhead.holds(name, value, overhead._SLACK), figures

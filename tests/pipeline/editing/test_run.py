"""`dhr_batch.run`: the command `run` as a function."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import dhr_batch
from dhr_batch.pipeline.planning.layers import assignments

if TYPE_CHECKING:
    from dhr_batch.tests.pipeline.conftest import SmallRun


def test_it_returns_the_run_and_goes_on_with_it(small_run: SmallRun, tmp_path: Path) -> None:
    """The run is finished, so nothing is computed."""
    words = list(small_run.words)
    sets = [word for option, word in pairwise(words) if option == "--set"]
    run = dhr_batch.run(
        words[words.index("--dataset") + 1],
        small_run.copy(tmp_path / "run"),
        preset="tiny",
        settings=assignments(sets),
        gpus=0,
        report=False,
        progress="none",
    )
    assert run.ids == ["a.png", "b.png", "d.png", "f.png"]
    assert list(run.quarantine["image_id"]) == ["c.png", "e.png"]
    html = run._repr_html_()
    assert html.count("<tr>") == 4
    assert "4 images" in html

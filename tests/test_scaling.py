"""The model of what a run costs, and the document that quotes it."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from dhr_batch.benchmarks import scaling
from dhr_batch.benchmarks.scaling import ScalingRun

SECONDS = 0.5


def table(root: Path) -> list[list[str]]:
    """Cells of the computed table in docs/scaling.md; the first row names the runs."""
    text = (root / "docs" / "scaling.md").read_text("utf-8")
    rows = text[text.index("| images, GPUs, shard size") :].partition("\n\n")[0].splitlines()
    return [
        [cell.strip() for cell in row.strip("|").split("|")] for row in rows if "---" not in row
    ]


def test_the_document_quotes_the_model(root: Path) -> None:
    (_, *runs), *rows = table(root)
    assert len(runs) == 4
    assert len(rows) > 10
    for column, name in enumerate(runs, 1):
        images, gpus, size = (int(part.replace(",", "")) for part in name.split(", "))
        figures = scaling.evaluate(ScalingRun(images, gpus, SECONDS, size))
        assert {row[0]: row[column] for row in rows} == {
            what: value for what, value in figures.items() if what != "output"
        }


def test_rounds_are_whole() -> None:
    assert ScalingRun(100, 2, 1.0, 25).wall == 50
    assert ScalingRun(101, 2, 1.0, 25).wall == 75
    assert ScalingRun(10, 100, 1.0, 10).wall == 10
    assert ScalingRun(10, 100, 1.0, 10).commits_per_second == pytest.approx(0.1)


def test_larger_shards_relieve_the_driver() -> None:
    small, large = (ScalingRun(10_000_000, 1000, SECONDS, size) for size in (256, 1024))
    assert scaling.driver_load(small, object_store=True) > 1
    assert 0.5 < scaling.driver_load(large, object_store=True) < 0.6
    assert scaling.driver_load(small, object_store=False) < 0.25
    slow = ScalingRun(10_000_000, 1000, SECONDS, 1024, latency=0.2)
    assert scaling.driver_load(slow, object_store=True) > 1


def test_the_command_prints_every_figure() -> None:
    words = ["--images", "2824", "--gpus", "8", "--seconds-per-image", "12"]
    result = CliRunner().invoke(scaling.main, words)
    assert result.exit_code == 0, result.output
    assert "89 of 32, 6 min 24 s each" in result.output
    assert "wall time                   1 h 16 min" in result.output

"""What a worker shows can be rendered from what it stores."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dhr_batch.pipeline.planning.prepare import prepare
from dhr_batch.pipeline.planning.request import Request
from dhr_batch.pipeline.tables.records import refinement
from dhr_batch.pipeline.tables.rows import rows_of
from dhr_batch.pipeline.worker.reading import read_record
from dhr_batch.pipeline.worker.settings import Settings
from dhr_batch.pipeline.worker.worker import Worker
from dhr_batch.stages.edit.rerender import Rerender
from dhr_batch.stages.record import required


@pytest.mark.parametrize("level", ["small", "fine"])
def test_pictures_are_those_of_the_stored_refinement(tmp_path: Path, level: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (32, 32, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    dataset = tmp_path / "d.yaml"
    dataset.write_text(f"name: d\nroot: {tmp_path}\naligned: true\n")
    chosen = {"dataset": str(dataset), "preset": "tiny", "store_deltas": level}
    plan = prepare(Request(settings=chosen))
    computer = Worker(Settings(plan.config, True, "", "cpu", ""))
    computer.setup()
    records = [read_record(plan.shards[0].items[0], "")]
    for stage in computer.stages:
        records = stage.run(records)
    (record,) = records
    assert record.failure is None
    assert record.edits
    rows = rows_of(record, 0, computer.info)
    restored = replace(record, **refinement(record.image_id, rows["deltas"]))
    edits = [(edit.name, edit.strength) for edit in record.edits]
    context = computer.stages[0].context
    pairs = [(required(record.refined), required(Rerender(context)(restored).refined))]
    again = Rerender(context, edits)(restored).edits
    pairs += [(edit.image, other.image) for edit, other in zip(record.edits, again, strict=True)]
    # Without rounding before the render, they differ by six levels.
    for picture, other in pairs:
        assert np.abs(picture.astype(int) - other).max() <= 1

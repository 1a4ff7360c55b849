"""A benchmark of random weights that ran."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dhr_batch.pipeline.bench import run as bench
from dhr_batch.pipeline.bench.board import Board, board
from dhr_batch.pipeline.bench.data import load
from dhr_batch.pipeline.bench.write import write_benchmark
from dhr_batch.tests.faults import driven
from dhr_batch.tests.pipeline.benched import MACHINE, tiny


@pytest.fixture(scope="session")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five that can be used, of which one is dark, and one that cannot."""
    folder = tmp_path_factory.mktemp("bench") / "photos"
    folder.mkdir()
    for seed in range(5):
        draw = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)
        draw = draw // 8 if seed == 3 else draw
        picture = Image.fromarray(draw).resize((64, 64), Image.Resampling.BICUBIC)
        picture.save(folder / f"{seed}.png")
    (folder / "broken.png").write_bytes(b"no picture")
    (folder.parent / "photos.yaml").write_text(f"name: photos\nroot: {folder}\naligned: true\n")
    return folder.parent / "photos.yaml"


@pytest.fixture(scope="session")
def finished(photographs: Path, tmp_path_factory: pytest.TempPathFactory):
    """A benchmark that ran, and how it ended."""
    out = tmp_path_factory.mktemp("benchmark") / "out"
    planned = bench.plan(tiny(photographs), out, machine=MACHINE, random_weights=True)
    with driven.without_ray():
        done = bench.run(planned, MACHINE)
    page = write_benchmark(planned, done.failed)
    return planned, done, Path(page)


@pytest.fixture(scope="session")
def figures(finished) -> Board:
    (compared,) = load(finished[0], {})
    return board(compared, "dhr")

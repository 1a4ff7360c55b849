"""A finished run from which others begin."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dhr_batch.tests.pipeline.later import IDS, whole


@pytest.fixture(scope="session")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("photographs")
    for seed, name in enumerate(IDS):
        pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)
        (folder / name).parent.mkdir(exist_ok=True)
        # Smooth, so that masks and codes differ from picture to picture.
        Image.fromarray(pixels).resize((64, 64), Image.Resampling.BICUBIC).save(folder / name)
    (folder / "z.png").write_bytes(b"no picture")
    description = folder / "small.yaml"
    description.write_text(f"root: {folder}\naligned: true\nsplit: test\nextensions: [.png]\n")
    return str(description)


@pytest.fixture(scope="session")
def source(photographs: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return whole(photographs, tmp_path_factory.mktemp("runs") / "source")


@pytest.fixture
def copy(source: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(source, tmp_path / "copy"))

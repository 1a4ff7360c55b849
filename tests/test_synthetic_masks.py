"""The benchmark of masks against their ground truth, on two faces of the real generator."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from click.testing import CliRunner

from dhr_batch.benchmarks import synthetic_masks
from dhr_batch.tests.faults import driven


def test_masks_find_occluders(tmp_path: Path, models: Callable[[str], Path]) -> None:
    for name in ("mobilestylegan-256", "stlpips-alex", "stlpips-vgg", "dlib-landmarks68", "mtcnn"):
        models(name)
    words = ["--images", "2", "--refined", "0", "--out", str(tmp_path), "--json"]
    with driven.without_ray():
        result = CliRunner().invoke(synthetic_masks.main, [*words, "--set", "batch_size=1"])
    assert result.exit_code == 0, result.output
    found = {
        f["metric"]: f for f in json.loads(result.stdout)["masks"] if f["picture"] == "occluded"
    }
    assert found["truth_mask_iou"]["n"] == 2
    # All of the face out-of-domain would give the occluded share, a fifth.
    assert found["truth_mask_iou"]["mean"] > 0.5
    assert found["truth_latent_w"]["mean"] < 1
    assert (tmp_path / "masks" / "run" / "report" / "index.html").is_file()

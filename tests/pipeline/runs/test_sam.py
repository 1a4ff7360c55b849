"""A run with the refiner sam, rendered again from its tables."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

import dhr_batch
from dhr_batch.pipeline.runs.results import Run
from dhr_batch.stages.record import required
from dhr_batch.tests.faults import driven, harness


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("sam")
    photographs = folder / "in"
    photographs.mkdir()
    for seed, name in enumerate(("a.png", "b.png")):
        pixels = np.random.default_rng(seed).integers(0, 255, (32, 32, 3), np.uint8)
        Image.fromarray(pixels).save(photographs / name)
    plan = harness.make(
        [harness.item(photographs, name) for name in ("a.png", "b.png")],
        aligned=True,
        generator="tiny",
        align={"name": "ffhq"},
        embed={"name": "w", "steps": 1, "perceptual": "tiny"},
        segment={"name": "dhr", "parser": "none", "error": False},
        refine={"name": "sam", "steps": 4, "parser": "none", "perceptual": "tiny"},
        edit={"name": "directions", "edits": [{"direction": "smile", "strengths": [-2, 2]}]},
        measure={"name": "dhr_batch.tests.no_op:Measure"},
    )
    with driven.without_ray():
        assert harness.run(plan, folder / "run").exit_code == 0
    return dhr_batch.open(folder / "run")


def test_pictures_and_edits_are_rendered_again_from_tables(run: Run) -> None:
    refined, edited = run.images("refined"), run.edited("smile", 2.0)
    for image_id in run.ids:
        (edit,) = run.render(image_id, {"smile": 2.0}).edits
        again = required(run.render(image_id).refined)
        # A batch of another size rounds differently.
        assert np.abs(edit.image.astype(int) - edited[image_id]).max() <= 1
        assert np.abs(again.astype(int) - refined[image_id]).max() <= 1


def test_edits_start_from_the_refined_code(run: Run) -> None:
    for image_id in run.ids:
        record = run.record(image_id)
        rows = run.table("edits", image_id=image_id).to_pylist()
        assert [row["strength"] for row in rows] == [-2, 2]
        middle = np.mean([row["latent"] for row in rows], 0)
        wanted = required(record.latent) + required(record.state)["code"]
        np.testing.assert_allclose(middle, wanted, atol=1e-5)


def test_code_offsets_and_masks_are_stored_exactly(run: Run) -> None:
    state = required(run.record("a.png").state)
    assert {name: (v.dtype, v.shape) for name, v in state.items()} == {
        "code": (np.float32, (8, 512)),
        "F4": (np.float16, (32, 16, 16)),
        "mask.F4": (np.float32, (1, 16, 16)),
    }
    # The picture is one segment, which the code alone represents badly.
    assert state["mask.F4"].all()
    assert state["F4"].any()
    # Rows of the code without effect are left as they are.
    assert not state["code"][[3, 7]].any()
    assert state["code"][[0, 1, 2, 4, 5, 6]].any(1).all()

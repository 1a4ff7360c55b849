"""What a refiner stores beside weights and a feature, and how its own renders use it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import dhr_batch
from dhr_batch.pipeline.runs.results import Run
from dhr_batch.stages.record import required
from dhr_batch.tests.faults import driven, harness

EDITS = {"edits": [{"direction": "smile", "strengths": [-1, 2]}]}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stateful")
    photographs = folder / "in"
    photographs.mkdir()
    for seed, name in enumerate(("a.png", "b.png")):
        pixels = np.random.default_rng(seed).integers(0, 255, (32, 32, 3), np.uint8)
        Image.fromarray(pixels).save(photographs / name)
    items = [harness.item(photographs, name) for name in ("a.png", "b.png")]
    plan = harness.make(
        items,
        aligned=True,
        generator="tiny",
        align={"name": "ffhq"},
        embed={"name": "w", "steps": 1, "perceptual": "tiny"},
        segment={"name": "dhr", "parser": "none", "error": False},
        refine={"name": "dhr_batch.tests.stateful:Tint"},
        edit={"name": "directions", **EDITS},
        measure={"name": "dhr_batch.tests.no_op:Measure"},
    )
    with driven.without_ray():
        assert harness.run(plan, folder / "run").exit_code == 0
    return folder / "run"


@pytest.fixture(scope="module")
def run(made: Path) -> Run:
    return dhr_batch.open(made)


def test_state_is_stored_exactly_with_its_type(run: Run) -> None:
    record = run.record("a.png")
    state = required(record.state)
    assert {name: (v.dtype, v.shape) for name, v in state.items()} == {
        "tint": (np.float16, (3,)),
        "kept": (np.uint8, (2, 2)),
    }
    assert (record.delta, record.feature) == ({}, None)
    rows = run.table("deltas", image_id="a.png").to_pylist()
    assert {(row["tensor"], row["kind"], row["scheme"]) for row in rows} == {
        ("tint", "state", "exact"),
        ("kept", "state", "exact"),
    }


def test_pictures_rendered_from_tables_equal_those_of_the_run(run: Run) -> None:
    refined = run.images("refined")
    for image_id in run.ids:
        again = required(run.render(image_id).refined)
        # A batch of another size rounds differently.
        assert np.abs(again.astype(int) - refined[image_id]).max() <= 1
        assert np.abs(again.astype(int) - run.images("inverted")[image_id]).max() > 2


def test_edits_are_rendered_by_the_rule_of_the_refiner(run: Run) -> None:
    for strength in (-1.0, 2.0):
        stored = run.edited("smile", strength)
        for image_id in run.ids:
            (edit,) = run.render(image_id, {"smile": strength}).edits
            assert np.abs(edit.image.astype(int) - stored[image_id]).max() <= 1


def test_a_run_that_begins_at_the_edits_uses_the_refiner_of_the_earlier_one(
    made: Path, run: Run, tmp_path: Path
) -> None:
    from click.testing import CliRunner

    from dhr_batch.cli import main

    words = ["run", "--dataset", str(made), "--from", "edit", "--gpus", "0", "--no-report"]
    words += ["--out", str(tmp_path / "later"), "--set", "edit.edits=[{direction: smile}]"]
    with driven.without_ray():
        done = CliRunner().invoke(main, words)
    assert done.exit_code == 0, done.output
    later = dhr_batch.open(tmp_path / "later")
    for image_id in run.ids:
        again, expected = (r.edited("smile", 2.0)[image_id] for r in (later, run))
        assert np.abs(again.astype(int) - expected).max() <= 1
        np.testing.assert_array_equal(
            required(later.record(image_id).state)["tint"],
            required(run.record(image_id).state)["tint"],
        )

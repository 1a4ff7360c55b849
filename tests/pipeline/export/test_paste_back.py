"""`export --paste-back`: edits in the photographs of the run's dataset, read again."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result
from PIL import Image

import dhr_batch
from dhr_batch.cli import main
from dhr_batch.stages.paste_back import paste_back
from dhr_batch.tests.pipeline.exported import (
    EDITS,
    IDS,
    QUAD,
    listed,
    photograph,
    write_later_run,
    write_photographs,
    write_run,
)


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    return write_photographs(tmp_path / "photographs")


@pytest.fixture
def run(tmp_path: Path, photographs: Path) -> Path:
    return write_run(tmp_path / "run", photographs)


def dhr(run: Path, *words: object) -> Result:
    out = run.parent / "out"
    return CliRunner().invoke(
        main, ["export", str(run), "--out", str(out), "--keep-faceless", "--paste-back",
               "--json", *map(str, words)]
    )  # fmt: skip


def pasted(run: Path, *words: object) -> tuple[dict[str, Any], dict[tuple[str, str, float], Any]]:
    result = dhr(run, *words)
    assert result.exit_code == 0, (result.output, result.exception)
    found = {}
    for row in listed(run.parent / "out"):
        with Image.open(run.parent / "out" / row["split"] / row["file_name"]) as image:
            found[row["image_id"], row["edit"], row["strength"]] = np.asarray(image)
    return json.loads(result.stdout), found


def test_each_edit_is_in_its_photograph(run: Path) -> None:
    outcome, found = pasted(run, "--include", "source")
    assert len(found) == outcome["pictures"] == len(IDS) * (len(EDITS) + 1)
    opened = dhr_batch.open(run)
    refined, edited = opened.images(), {edit: opened.edited(*edit) for edit in EDITS}
    for number, image_id in enumerate(IDS):
        before = photograph(number)
        np.testing.assert_array_equal(found[image_id, "", 0], before)
        for edit in EDITS:
            expected = paste_back(before, QUAD, refined[image_id], edited[edit][image_id])
            np.testing.assert_array_equal(found[image_id, *edit], expected)
            assert (expected != before).any()


def test_photographs_that_are_gone_or_others_are_counted(run: Path, photographs: Path) -> None:
    (photographs / IDS[0]).unlink()
    (photographs / IDS[1]).write_bytes((photographs / IDS[2]).read_bytes() + b"more")
    stored = (photographs / IDS[3]).read_bytes()
    (photographs / IDS[3]).write_bytes(bytes(len(stored)))
    outcome, found = pasted(run)
    assert outcome["dropped"] == {
        "photograph missing": len(EDITS),
        "photograph changed since the run": len(EDITS),
        "photograph cannot be read": len(EDITS),
    }
    assert {image_id for image_id, _, _ in found} == set(IDS) - {IDS[0], IDS[1], IDS[3]}


def test_a_photograph_of_another_size_is_another_one(run: Path, photographs: Path) -> None:
    """Even where the file is as long as before."""
    path = photographs / IDS[0]
    size = path.stat().st_size
    Image.new("RGB", (50, 40)).save(path)
    path.write_bytes(path.read_bytes().ljust(size, b"\0"))
    outcome, _ = pasted(run)
    assert outcome["dropped"] == {"photograph changed since the run": len(EDITS)}


def test_a_photograph_is_known_by_its_content(photographs: Path, tmp_path: Path) -> None:
    """Case identity_same_size: another one of the same size and time is not pasted into."""
    one, two, *others = sorted(photographs.glob("*/*.png"))
    for path in (one, two):
        Image.open(path).save(path.with_suffix(".bmp"))
        path.with_suffix(".bmp").replace(path)
    run = write_run(tmp_path / "run", photographs, hashed=True)
    first, times = one.read_bytes(), (one.stat().st_atime_ns, one.stat().st_mtime_ns)
    assert two.stat().st_size == len(first)
    one.write_bytes(two.read_bytes())
    os.utime(one, ns=times)
    two.touch()
    outcome, found = pasted(run)
    assert outcome["dropped"] == {"photograph changed since the run": len(EDITS)}
    names = [path.relative_to(photographs).as_posix() for path in (two, *others)]
    assert {image_id for image_id, _, _ in found} == {*names}
    # A copy on another disk has other times.
    one.write_bytes(first)
    shutil.copytree(photographs, tmp_path / "copy", copy_function=shutil.copyfile)
    outcome, _ = pasted(run, "--fresh", "--dataset", tmp_path / "copy")
    assert (outcome["dropped"], outcome["pictures"]) == ({}, len(IDS) * len(EDITS))


def test_photographs_that_moved(run: Path, photographs: Path, tmp_path: Path) -> None:
    _, before = pasted(run)
    shutil.move(photographs, tmp_path / "elsewhere")
    result = dhr(run, "--fresh")
    assert result.exit_code == 2
    assert "--dataset" in result.stderr
    _, after = pasted(run, "--fresh", "--dataset", tmp_path / "elsewhere")
    assert before.keys() == after.keys()
    assert all((after[key] == image).all() for key, image in before.items())


def test_a_photograph_lies_upright(tmp_path: Path) -> None:
    """Stored on its side with an EXIF orientation: the quad is of the upright one."""
    photographs = write_photographs(tmp_path / "photographs")
    for number, image_id in enumerate(IDS):
        turned = Image.fromarray(photograph(number)).transpose(Image.Transpose.ROTATE_90)
        exif = Image.Exif()
        exif[0x0112] = 6
        turned.save(photographs / image_id, exif=exif)
    run = write_run(tmp_path / "run", photographs)
    _, found = pasted(run)
    first = found[IDS[0], "smile", 2.0]
    assert first.shape == photograph(0).shape
    # The corners are far from the face.
    np.testing.assert_array_equal(first[:10, :10], photograph(0)[:10, :10])


def test_no_photograph_at_all_is_refused(run: Path, photographs: Path) -> None:
    for image_id in IDS:
        (photographs / image_id).unlink()
    result = dhr(run)
    assert result.exit_code == 2
    assert f"{len(IDS) * len(EDITS)} photograph missing" in result.stderr
    assert not (run.parent / "out").exists()
    assert "--dataset" in result.stderr


def test_a_run_from_a_run_has_the_photographs_of_the_first(
    run: Path, photographs: Path, tmp_path: Path
) -> None:
    _, before = pasted(run)
    shutil.rmtree(run.parent / "out")
    sweep = write_later_run(tmp_path / "sweep", write_later_run(tmp_path / "second", run))
    (photographs / IDS[1]).write_bytes((photographs / IDS[2]).read_bytes() + b"more")
    outcome, found = pasted(sweep)
    assert outcome["dropped"] == {"photograph changed since the run": len(EDITS)}
    assert set(found) == {key for key in before if key[0] != IDS[1]}
    assert all((before[key] == image).all() for key, image in found.items())


def test_a_run_from_a_run_that_is_gone_needs_a_dataset(
    run: Path, photographs: Path, tmp_path: Path
) -> None:
    sweep = write_later_run(tmp_path / "sweep", run)
    shutil.rmtree(run)
    result = dhr(sweep)
    assert result.exit_code == 2
    assert "--dataset" in result.stderr
    outcome, _ = pasted(sweep, "--dataset", photographs)
    assert outcome["pictures"] == len(IDS) * len(EDITS)
    assert outcome["dropped"] == {}


def test_a_place_that_fits_no_photograph_costs_its_pictures_alone(run: Path) -> None:
    path = next((run / "images").iterdir())
    table = pq.read_table(path)
    rows = table.to_pylist()
    for row in rows:
        if row["image_id"] == rows[0]["image_id"] and row["kind"] == "edit":
            row["quad"] = [number + 10_000 for number in row["quad"]]
    pq.write_table(table.from_pylist(rows, table.schema), path)
    outcome, _ = pasted(run)
    assert outcome["dropped"] == {"stored place and pictures do not fit together": len(EDITS)}


def test_the_card_says_that_numbers_are_of_the_crop(run: Path) -> None:
    pasted(run)
    assert "of the crop before it was blended in" in (run.parent / "out/README.md").read_text()

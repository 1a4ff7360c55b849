"""A run of all faces of photographs, and what is made of it: a copy of the real thing in small."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from PIL import Image

import dhr_batch
from dhr_batch.cli import main
from dhr_batch.pipeline.datasets.items import Item
from dhr_batch.pipeline.errors import Refused
from dhr_batch.pipeline.planning import contents
from dhr_batch.pipeline.planning.contents import Suspect
from dhr_batch.pipeline.planning.plan import check_ids
from dhr_batch.pipeline.planning.prepare import prepare
from dhr_batch.pipeline.planning.request import Request
from dhr_batch.pipeline.report.data import load
from dhr_batch.pipeline.runs.overview import overview
from dhr_batch.pipeline.runs.reading import RunRecords
from dhr_batch.pipeline.runs.verify import verify
from dhr_batch.pipeline.storage.connect import connect
from dhr_batch.stages.paste_back import Crop, paste_all
from dhr_batch.tests.pipeline.crowds import GROUP
from dhr_batch.tests.pipeline.exported import listed, photograph
from dhr_batch.tests.pipeline.later import EDITS, made

ROWS = ["ann/team.png", "ann/team.png#1", "bob/alone.png", "bob/pair#1.png", "bob/pair#1.png#1"]


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photographs")
    for number, (name, size) in enumerate(
        {"ann/team": (110, 90), "bob/alone": (90, 110), "bob/pair#1": (120, 80)}.items()
    ):
        (folder / name).parent.mkdir(exist_ok=True)
        Image.fromarray(photograph(number, *size)).save(folder / f"{name}.png")
    return folder


@pytest.fixture(scope="module")
def run(photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    plain = {"dataset": str(photographs), "preset": "tiny", "shard_size": 2}
    return made(tmp_path_factory.mktemp("runs") / "run", **plain | EDITS | GROUP)


def later_run(run: Path, out: Path, **settings: object) -> Path:
    return made(out, dataset=str(run), first_stage="edit", **settings, **GROUP)


def test_rows_of_faces_are_read_by_their_ids(run: Path, photographs: Path) -> None:
    opened = dhr_batch.open(run)
    opened.allow_code = True
    assert opened.ids == ROWS
    assert opened.stored.images == 3
    assert [opened.planned(image_id) for image_id in ROWS[1:]] == [
        "ann/team.png", "bob/alone.png", "bob/pair#1.png", "bob/pair#1.png",
    ]  # fmt: skip
    pictures = opened.images()
    for image_id in ("ann/team.png#1", "bob/pair#1.png#1"):
        again = opened.render(image_id).refined
        assert again is not None
        # Stored deltas are rounded.
        assert np.abs(again.astype(int) - pictures[image_id]).mean() < 2
    found, status = verify(run), overview(run)
    assert (found.problems, found.done, found.images) == ([], 3, 3)
    assert "images       3 of 3 done (5 faces), 0 quarantined" in "\n".join(status.lines())
    assert load(connect(run)).counted == "5 faces of 3 images"


def test_verify_finds_missing_and_unplanned_faces(run: Path, tmp_path: Path) -> None:
    key = "latents/part-00000.parquet"
    for drop, expected in (
        ("ann/team.png", "images without rows: ann/team.png"),
        ("ann/team.png#1", "images without rows: ann/team.png#1"),
    ):
        copy = Path(shutil.copytree(run, tmp_path / drop.replace("/", "-")))
        table = pq.read_table(copy / key)
        pq.write_table(table.filter(pc.not_equal(table["image_id"], drop)), copy / key)
        assert expected in [problem.problem for problem in verify(copy).problems]
    copy = Path(shutil.copytree(run, tmp_path / "unplanned"))
    table = pq.read_table(copy / key)
    ids = [i.replace("team.png#1", "other.png#1") for i in table["image_id"].to_pylist()]
    pq.write_table(table.set_column(0, "image_id", [ids]), copy / key)
    problems = [problem.problem for problem in verify(copy).problems]
    assert "images not in the plan of the shard: ann/other.png#1" in problems


def test_a_later_run_begins_from_each_face(run: Path, tmp_path: Path) -> None:
    opened = dhr_batch.open(later_run(run, tmp_path / "later", shard_size=3))
    assert opened.ids == ROWS == [i for ids in opened.stored.shards for i in ids]
    assert verify(tmp_path / "later").problems == []
    one, other = (r.table("edits", ["image_id", "latent"]) for r in (opened, dhr_batch.open(run)))
    assert one.equals(other)


@pytest.mark.parametrize("later", [False, True])
def test_all_faces_are_pasted_into_one_photograph(
    run: Path, photographs: Path, tmp_path: Path, later: bool
) -> None:
    if later:
        # Of the faces of one photograph, the first is in one shard and the second in another.
        run = later_run(run, tmp_path / "later", shard_size=1)
    words = ["export", str(run), "--out", str(tmp_path / "out"), "--paste-back", "--json"]
    result = CliRunner().invoke(main, [*words, "--person", r"^(\w+)/", "--val", "0.5"])
    assert result.exit_code == 0, result.output
    content = json.loads(result.stdout)
    assert content["pictures"] == 9
    assert content["images"]["used"] == 3
    opened = dhr_batch.open(run)
    refined, edited = opened.images(), opened.edited("smile", 2)
    quads = {row["image_id"]: row["quad"] for row in opened.table("images").to_pylist()}
    rows = {r["image_id"]: r for r in listed(tmp_path / "out") if r["strength"] == 2}
    assert rows.keys() == {"ann/team.png", "bob/alone.png", "bob/pair#1.png"}
    for image_id, row in rows.items():
        faces = [i for i in ROWS if opened.planned(i) == image_id or i == f"{image_id}#1"]
        crops = [Crop(np.reshape(quads[i], (4, 2)), refined[i], edited[i]) for i in faces]
        with Image.open(photographs / image_id) as image:
            expected = paste_all(np.asarray(image), crops)
        with Image.open(tmp_path / "out" / row["split"] / row["file_name"]) as image:
            np.testing.assert_array_equal(np.asarray(image), expected)
    # Each face alone, but all of a person in one split.
    result = CliRunner().invoke(
        main, [*words[:3], str(tmp_path / "crops"), "--person", r"^(\w+)/", "--val", "0.5"]
    )
    assert result.exit_code == 0, result.output
    splits = {(r["image_id"][:3], r["split"]) for r in listed(tmp_path / "crops")}
    assert {r["image_id"] for r in listed(tmp_path / "crops")} == set(ROWS)
    assert len(splits) == 2


def test_the_content_of_a_photograph_is_known_from_any_face(run: Path, photographs: Path) -> None:
    names = ["ann/team.png", "bob/pair#1.png"]
    suspects = [
        Suspect(shard, Item(name, f"{photographs}/", name, (photographs / name).stat().st_size), "")
        for shard, name in enumerate(names)
    ]
    found = contents.compare(RunRecords(run), suspects)
    assert [verdict.same for _, verdict in found] == [True, True]


def test_an_image_that_is_called_like_a_face_is_refused(photographs: Path) -> None:
    items = [Item(name, "", name, 1) for name in ("a", "b#1", "c#01", "c", "a#0")]
    check_ids(items)
    with pytest.raises(Refused, match=r"'a#12'.*--face largest"):
        check_ids([*items, Item("a#12", "", "a#12", 1)])
    asked = {"dataset": str(photographs), "preset": "tiny", "gpus": 0}
    assert prepare(Request(settings=asked, sets=("align.face=all",))).images == 3


@pytest.mark.parametrize(("word", "expected"), [("all", "all"), ("largest", "largest"), ("2", 2)])
def test_the_command_takes_faces(photographs: Path, word: str, expected: object) -> None:
    words = ["plan", "--dataset", str(photographs), "--preset", "tiny", "--gpus", "0", "--json"]
    result = CliRunner().invoke(main, [*words, "--face", word])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["config"]["align"]["face"] == expected
    assert CliRunner().invoke(main, [*words, "--face", "biggest"]).exit_code == 2

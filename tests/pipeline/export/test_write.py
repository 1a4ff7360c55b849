"""The pictures that `dhr-batch export` writes, and their labels."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

import dhr_batch
from dhr_batch.pipeline.export import formats
from dhr_batch.pipeline.export import write as export
from dhr_batch.pipeline.picture_names import edit_labels
from dhr_batch.tests.pipeline.exported import (
    ALL,
    EDITS,
    FACELESS,
    IDS,
    contents,
    dhr,
    exported,
    listed,
)


@pytest.mark.parametrize(
    ("edit", "strength", "label"),
    [
        ("smile", 2, "smile+2"),
        ("smile", -1.5, "smile-1_5"),
        ("yaw_degrees", 15, "yaw_degrees+15"),
        ("smile=1+age=-10", 1, "smile_1+age_-10"),
        ("smile=1+age=-10", 0.5, "smile_1+age_-10+0_5"),
    ],
)
def test_the_class_of_an_edit(edit: str, strength: float, label: str) -> None:
    assert edit_labels([(edit, strength)]) == {(edit, strength): label}


def test_labels_are_those_of_the_tables(run: Path, tmp_path: Path) -> None:
    exported(run, tmp_path / "out", "--include", "source,refined")
    wide = dhr_batch.open(run).metrics_wide()
    rows = listed(tmp_path / "out")
    kinds = Counter(row["kind"] for row in rows)
    assert kinds == {"source": len(IDS), "refined": len(IDS), "edit": ALL - FACELESS}
    for row in rows:
        stage = f"edit:{row['edit']}:{row['strength']:g}" if row["edit"] else row["kind"]
        now = wide.loc[(row["image_id"], stage)]
        before = wide.loc[(row["image_id"], "source")]
        assert row["score_smile"] == now["score_smile"]
        for name in ("smile", "yaw", "yaw_degrees"):
            change = now[f"score_{name}"] - before[f"score_{name}"]
            assert row[f"change_{name}"] == pytest.approx(change)
        if row["kind"] == "edit":
            name = {"smile": "score_smile", "yaw": "score_yaw_degrees"}[row["edit"]]
            assert row["effect"] == pytest.approx(now[name] - before[name])
            assert row["label"] == f"{row['edit']}{row['strength']:+g}".replace(".", "_")
            nan = row["image_id"] == IDS[0] and row["label"] == "smile+1"
            assert row["identity"] == (None if nan else now["identity_dlib_cosine"])
        else:
            assert (row["strength"], row["label"]) == (0, row["kind"])
            assert row["effect"] == (0 if row["kind"] == "source" else None)


def test_pictures_are_those_of_the_run(run: Path, tmp_path: Path) -> None:
    """Each under its own labels, with not one pixel changed."""
    exported(run, tmp_path / "out", "--include", "source,refined", "--keep-faceless")
    opened = dhr_batch.open(run)
    stored = {("source", 0.0): opened.images("aligned"), ("refined", 0.0): opened.images()}
    stored |= {edit: opened.edited(*edit) for edit in EDITS}
    rows = listed(tmp_path / "out")
    assert len(rows) == ALL + 2 * len(IDS)
    for row in rows:
        with Image.open(tmp_path / "out" / row["split"] / row["file_name"]) as image:
            pixels = np.asarray(image)
        name = (row["edit"] or row["kind"], row["strength"])
        np.testing.assert_array_equal(pixels, stored[name][row["image_id"]])


@pytest.mark.parametrize("encoding", ["png", "jpeg", "webp"])
def test_every_edit_says_so(run: Path, tmp_path: Path, encoding: str) -> None:
    exported(run, tmp_path / "out", "--encoding", encoding, "--include", "source,refined")
    for row in listed(tmp_path / "out"):
        with Image.open(tmp_path / "out" / row["split"] / row["file_name"]) as image:
            info, exif = dict(image.info), dict(image.getexif())
            packet = str(info.get("xmp", b""), "utf-8")
        said = info.get("Comment") if encoding == "png" else exif.get(0x010E)
        if row["kind"] == "source":
            assert not said
            assert not packet
            continue
        assert ElementTree.fromstring(packet).tag == "{adobe:ns:meta/}xmpmeta"
        assert "compositeWithTrainedAlgorithmicMedia" in packet
        if row["kind"] == "refined":
            assert said == "rendered by dhr-batch"
            continue
        assert said == f"edited by dhr-batch: {row['edit']} {row['strength']:+g}"
        assert f'dhr:edit="{row["edit"]}" dhr:strength="{row["strength"]:g}"' in packet
        if encoding == "png":
            assert info["dhr-batch:strength"] == f"{row['strength']:g}"


@pytest.mark.parametrize("format_", formats.FORMATS)
def test_the_same_bytes_twice(run: Path, tmp_path: Path, format_: str) -> None:
    words = ["--format", format_, "--val", 0.3, "--include", "source"]
    exported(run, tmp_path / "a" / "set", *words)
    exported(run, tmp_path / "b" / "set", *words)
    first = contents(tmp_path / "a" / "set")
    assert len(first) > 1
    assert first == contents(tmp_path / "b" / "set")


def test_pictures_pass_through_file_by_file(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first are written before the last are read."""
    events: list[str] = []
    stream, add = export._stream, formats.ImageFolder.add

    def reads(opened: Any, key: str) -> Any:
        events.append("read")
        return stream(opened, key)

    def adds(self: Any, sample: Any) -> None:
        events.append("written")
        add(self, sample)

    monkeypatch.setattr(export, "_stream", reads)
    monkeypatch.setattr(formats.ImageFolder, "add", adds)
    exported(run, tmp_path / "out")
    assert events.count("read") == 5
    gaps = [events.index("read", i + 1) - i for i, e in enumerate(events[:-1]) if e == "read"
            and "read" in events[i + 1 :]]  # fmt: skip
    assert max(gaps) <= 2 * len(EDITS) + 1


def test_large_exports_are_cut_into_files(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(formats, "FILE_BYTES", 20_000)
    monkeypatch.setattr(formats, "_GROUP_BYTES", 8_000)
    exported(run, tmp_path / "hf", "--format", "hf")
    files = sorted((tmp_path / "hf" / "data").iterdir())
    assert len(files) > 2
    count = len(files)
    assert [f.name for f in files] == [
        f"train-{number:05d}-of-{count:05d}.parquet" for number in range(count)
    ]
    rows = [pq.read_table(file) for file in files]
    assert sum(map(len, rows)) == ALL - FACELESS
    assert max(pq.read_metadata(file).num_row_groups for file in files) > 1
    exported(run, tmp_path / "tar", "--format", "webdataset")
    tars = list((tmp_path / "tar").glob("*.tar"))
    assert len(tars) > 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--min-identity", "1.5"], "not a cosine"),
        (["--effect", "smile"], "NAME=LOW:HIGH"),
        (["--effect", "smile=0.5:0.1"], "no number lies between"),
        (["--effect", "age=0:1"], "no such edit\nHint: choose from: smile, yaw"),
        (["--edit", "age"], "no such edit\nHint: choose from: smile, yaw"),
        (["--edit", "smile=2"], "smile, yaw; strengths are chosen by --strength"),
        (["--edit", "yaw", "--strength", "2"], "no such strength\nHint: choose from: -1, 1.5"),
        (["--strength", "much"], "NUMBER or LOW:HIGH"),
        (["--edit", "yaw", "--effect", "smile=0:"], "add --edit smile"),
        (["--max", "fid=3"], "no such metric\nHint: choose from: change_out"),
        (["--max", "change_out=low"], "METRIC=NUMBER"),
        (["--balance", "hair"], "choose edit, label"),
        (["--balance", "effect"], "effect:4"),
        (["--balance", "score_age:3"], "no picture has this label"),
        (["--include", "masks"], "choose from refined, source"),
        (["--out", "s3://bucket/set"], "upload it afterwards"),
        (["--person", "("], "not a regular expression"),
        (["--val", "nan"], "from 0 to 1"),
        (["--format", "zip"], "is not one of"),
        (["--min-identity", "1"], "--keep-faceless keeps"),
        (["--effect", "smile=0:", "--effect", "smile=:1"], "--effect smile: it is given twice"),
        (["--max", "change_out=1", "--max", "change_out=2"], "--max change_out: it is given twice"),
        (["--paste-back", "--include", "refined"], "leave refined out"),
        (["--paste-back", "--format", "stylegan-zip"], "squares of one"),
    ],
)
def test_wrong_words_exit_with_2(run: Path, tmp_path: Path, words: list[str], message: str) -> None:
    result = dhr(run, "--out", tmp_path / "out", *words)
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("left", [60, 0.7])
@pytest.mark.parametrize("words", [[], ["--encoding", "jpeg"], ["--paste-back"]])
def test_a_damaged_picture_costs_itself_alone(
    run: Path, tmp_path: Path, words: list[str], left: float
) -> None:
    """left: bytes of it, or their share."""
    broken = tmp_path / "broken"
    shutil.copytree(run, broken)
    path = next((broken / "images").iterdir())
    table = pq.read_table(path)
    rows = table.to_pylist()
    bad = next(row for row in rows if row["kind"] == "edit")
    data = bad["image"]["bytes"]
    bad["image"]["bytes"] = data[: left if isinstance(left, int) else int(left * len(data))]
    pq.write_table(table.from_pylist(rows, table.schema), path)
    outcome = exported(broken, tmp_path / "out", "--keep-faceless", *words)
    assert outcome["dropped"] == {"stored picture cannot be read": 1}
    assert outcome["pictures"] == ALL - 1


def test_no_run_is_named(tmp_path: Path) -> None:
    result = dhr(tmp_path, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert "it is not a run" in result.stderr


def test_a_run_in_an_object_store(run: Path, tmp_path: Path, bucket: str) -> None:
    from dhr_batch.pipeline.storage.connect import connect

    store = connect(f"{bucket}/run")
    for name, content in contents(run).items():
        store.replace(name, content)
    exported(run, tmp_path / "local")
    result = dhr(f"{bucket}/run", "--out", tmp_path / "there")
    assert result.exit_code == 0, result.output
    kept = [
        {name: data for name, data in contents(tmp_path / side).items() if name != "README.md"}
        for side in ("local", "there")
    ]
    assert kept[0] == kept[1]

"""`dhr-batch export`: which pictures it takes, what it says of them; all of it or nothing."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from click.testing import CliRunner, Result
from PIL import Image

import dhr_batch
from dhr_batch.cli import main
from dhr_batch.pipeline.datasets import named
from dhr_batch.pipeline.export import card as export_card
from dhr_batch.pipeline.export import choice, formats, target
from dhr_batch.pipeline.export import write as export
from dhr_batch.pipeline.export.filters import Filters
from dhr_batch.pipeline.export.options import Options
from dhr_batch.pipeline.export.pictures import Picture, class_names
from dhr_batch.pipeline.runs.stored_plan import StoredPlan
from dhr_batch.tests.pipeline.exported import (
    EDITS,
    IDS,
    listed,
    write_later_run,
    write_photographs,
    write_run,
)

ALL = len(IDS) * len(EDITS)
FACELESS = 3


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export")
    return write_run(folder / "run", write_photographs(folder / "photographs"))


def dhr(*words: object) -> Result:
    return CliRunner().invoke(main, ["export", *map(str, words)])


def exported(run: Path, out: Path, *words: object) -> dict[str, Any]:
    result = dhr(run, "--out", out, "--json", *words)
    assert result.exit_code == 0, (result.output, result.exception)
    return json.loads(result.stdout)


def contents(folder: Path) -> dict[str, bytes]:
    """All files but the marker, which lists them."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".dhr-batch.json"
    }


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
    assert class_names([(edit, strength)]) == {(edit, strength): label}


def test_filters_are_honoured(run: Path, tmp_path: Path) -> None:
    """Exactly the pictures that the tables of the run say should pass, and all others counted."""
    words = ["--min-identity", 0.88, "--effect", "smile=-0.3:0.6", "--max", "st_lpips_alex=0.25"]
    outcome = exported(run, tmp_path / "out", *words, "--max", "change_out=0.09")

    wide = dhr_batch.open(run).metrics_wide()
    expected = set()
    for image_id in IDS:
        for edit, strength in EDITS:
            row = wide.loc[(image_id, f"edit:{edit}:{strength:g}")]
            effect = row["score_smile"] - wide.loc[(image_id, "source")]["score_smile"]
            if (
                row["identity_dlib_cosine"] >= 0.88
                and (edit != "smile" or -0.3 <= effect <= 0.6)
                and row["st_lpips_alex"] <= 0.25
                and row["change_out"] <= 0.09
                and np.isfinite(row["score_yaw"])
            ):
                expected.add((image_id, edit, strength))
    found = {(row["image_id"], row["edit"], row["strength"]) for row in listed(tmp_path / "out")}
    assert found == expected
    assert 0 < len(found) < ALL
    assert outcome["pictures"] == len(found)
    assert sum(outcome["dropped"].values()) == ALL - len(found)
    assert outcome["dropped"]["no face found"] == FACELESS
    assert outcome["dropped"]["identity not measured"] == 1
    assert outcome["images"] == {"planned": 10, "with_rows": 9, "used": len({f[0] for f in found})}


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


def test_edits_are_balanced_in_each_split(run: Path, tmp_path: Path) -> None:
    words = ["--balance", "edit", "--val", 0.4]
    outcome = exported(run, tmp_path / "one", *words)
    rows = listed(tmp_path / "one")
    counts = Counter((row["split"], row["edit"]) for row in rows)
    assert set(counts) == {(s, e) for s in ("train", "validation") for e in ("smile", "yaw")}
    for split in ("train", "validation"):
        assert counts[split, "smile"] == counts[split, "yaw"] > 0
    left_out = outcome["dropped"]["balancing edit"]
    assert left_out == ALL - FACELESS - len(rows) > 0
    # The rarest value, yaw, is kept whole.
    assert sum(row["edit"] == "yaw" for row in rows) == 2 * len(IDS) - FACELESS

    exported(run, tmp_path / "again", *words)
    assert contents(tmp_path / "again").keys() == contents(tmp_path / "one").keys()
    exported(run, tmp_path / "seed", "--balance", "edit", "--seed", 1)
    exported(run, tmp_path / "none", "--balance", "edit")
    assert contents(tmp_path / "seed").keys() != contents(tmp_path / "none").keys()


@pytest.mark.parametrize("label", ["score_smile", "change_yaw"])
def test_bins_of_a_score_are_balanced(run: Path, tmp_path: Path, label: str) -> None:
    exported(run, tmp_path / "all")
    exported(run, tmp_path / "out", "--balance", f"{label}:3")
    everything = np.array([row[label] for row in listed(tmp_path / "all")])
    edges = np.linspace(everything.min(), everything.max(), 4)
    chosen = np.array([row[label] for row in listed(tmp_path / "out")])
    counts = np.histogram(chosen, edges)[0]
    assert len(set(counts)) == 1
    assert counts[0] == np.histogram(everything, edges)[0].min() > 1


def test_only_a_landmark_score_tells_of_a_face() -> None:
    picture = Picture("a", "a", "edit", "smile", 1.0, None, None, {"score_age": 30.0})
    assert Filters().reason(picture, {}) == "no face found"
    assert Filters().reason(replace(picture, scores={"score_smile": 0.1}), {}) is None


def test_effects_have_bins_of_their_own_edit() -> None:
    """Those of yaw, in degrees, would leave all smiles in one bin."""
    effects = {"smile": (0.0, 0.1, 0.3, 0.4), "yaw": (0.0, 1.0, 30.0, 40.0)}
    pictures = [
        Picture(str(n), str(n), "edit", edit, 1.0, effect, None, {})
        for edit, values in effects.items()
        for n, effect in enumerate((*values, values[-1]))
    ]
    chosen, unknown = choice.balance(dict.fromkeys(pictures, "train"), ("effect", 2), seed=0)
    assert unknown == 0
    low = {edit: sum(p.edit == edit and p.effect <= values[1] for p in chosen)
           for edit, values in effects.items()}  # fmt: skip
    assert low == {"smile": 2, "yaw": 2}
    assert Counter(p.edit for p in chosen) == {"smile": 4, "yaw": 4}


@pytest.mark.parametrize(
    ("words", "chosen"),
    [
        (["--edit", "smile"], [("smile", s) for s in (-2, -1, 1, 2)]),
        (["--edit", "smile", "--strength", "2"], [("smile", 2)]),
        (["--strength", "-1", "--strength", "1.5:"], [("smile", -1), ("smile", 2), *EDITS[4:]]),
        (["--edit", "yaw", "--edit", "smile", "--strength", ":-2"], [("smile", -2)]),
        (["--edit", "smile", "--effect", "smile=-9:9"], [("smile", s) for s in (-2, -1, 1, 2)]),
    ],
)
def test_edits_and_strengths_are_chosen(
    run: Path, tmp_path: Path, words: list[str], chosen: list[tuple[str, float]]
) -> None:
    outcome = exported(run, tmp_path / "out", "--keep-faceless", "--include", "refined", *words)
    found = Counter((r["edit"], r["strength"]) for r in listed(tmp_path / "out") if r["edit"])
    assert found == dict.fromkeys(chosen, len(IDS))
    # What was not asked for was not dropped.
    assert outcome["dropped"] == {}
    assert outcome["counts"]["train"]["refined"] == len(IDS)


@pytest.mark.parametrize(("share", "said"), [(1e-9, "no photograph"), (1 - 1e-9, "all photograph")])
def test_a_split_without_photographs_is_said(
    run: Path, tmp_path: Path, share: float, said: str
) -> None:
    words = [run, "--out", tmp_path / "out", "--val", share]
    result = dhr(*words, "--strict")
    assert result.exit_code == 2
    assert re.search(f"Error: --strict: {said}.* validation\nHint: .*--val", result.stderr)
    assert not list(tmp_path.iterdir())
    result = dhr(*words)
    assert result.exit_code == 0
    assert re.search(f"note  .*{said}.* into validation: .*--val or change --seed", result.stdout)
    result = dhr(*words, "--json", "--fresh")
    assert re.search(f"note: {said}", result.stderr)
    assert json.loads(result.stdout)["note"].startswith(said)


def test_the_validation_split_has_about_its_share(run: Path, tmp_path: Path) -> None:
    assert exported(run, tmp_path / "none")["note"] == ""
    exported(run, tmp_path / "some", "--val", 0.4, "--strict")
    there = {r["image_id"] for r in listed(tmp_path / "some") if r["split"] == "validation"}
    card = (tmp_path / "some" / "README.md").read_text("utf-8")
    share = f"{len(there)} of 9 photographs ({len(there) / 9:.1%}; 40.0% was requested)"
    assert share in " ".join(card.split())


def test_the_folder_lies_outside_run_and_current_folder(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = dhr(run, "--out", run / "images" / ".." / "set")
    assert result.exit_code == 2
    assert "lies in the run" in result.stderr
    assert not (run / "set").exists()
    monkeypatch.chdir(tmp_path)
    for out in (".", ".."):
        result = dhr(run, "--out", out)
        assert result.exit_code == 2
        assert "current folder" in result.stderr
    assert not list(tmp_path.iterdir())
    assert exported(run, Path("set"))["out"] == str(tmp_path / "set")


def test_a_run_from_a_run_names_the_first_dataset(run: Path, tmp_path: Path) -> None:
    first = tmp_path / "first"
    shutil.copytree(run, first)
    plan = json.loads((first / "plan.json").read_text())
    plan["dataset"] = plan["config"]["dataset"] = "portraits"
    (first / "plan.json").write_text(json.dumps(plan))
    exported(write_later_run(tmp_path / "sweep", first), tmp_path / "out")
    head = yaml.safe_load((tmp_path / "out" / "README.md").read_text("utf-8").split("---\n")[1])
    assert head["dhr_batch"]["dataset"] == "portraits"
    licence = " ".join(named.find("portraits").licence.split())
    assert head["dhr_batch"]["photograph_licence"] == licence != "not stated"


def test_a_photograph_is_on_one_side(run: Path, tmp_path: Path) -> None:
    exported(run, tmp_path / "out", "--val", 0.4, "--include", "source")
    sides: dict[str, set[str]] = {}
    for row in listed(tmp_path / "out"):
        sides.setdefault(row["image_id"], set()).add(row["split"])
    assert all(len(found) == 1 for found in sides.values())
    assert set.union(*sides.values()) == {"train", "validation"}


def test_a_person_is_on_one_side(run: Path, tmp_path: Path) -> None:
    for seed in range(4):
        exported(run, tmp_path / str(seed), "--val", 0.5, "--person", "^([a-z]+)/", "--seed", seed)
        pairs = {(r["image_id"].split("/")[0], r["split"]) for r in listed(tmp_path / str(seed))}
        assert len(pairs) == 3
    for pattern in ("^x", "^(x)?"):
        result = dhr(run, "--out", tmp_path / "no", "--person", pattern)
        assert result.exit_code == 2
        assert "matches nothing" in result.stderr


def test_the_split_depends_on_nothing_else() -> None:
    """Not on other images, so none moves when some are added; and its share is as asked for."""
    ids = [f"{number}.png" for number in range(20_000)]
    sides = [choice.side(who, 0.1, 0) for who in ids]
    share = sides.count("validation") / len(ids)
    assert abs(share - 0.1) < 5 * (0.1 * 0.9 / len(ids)) ** 0.5
    # More for validation only adds to it.
    more = [choice.side(who, 0.2, 0) for who in ids]
    assert all(b == "validation" for a, b in zip(sides, more, strict=True) if a == "validation")
    assert {choice.side(who, 0.0, 0) for who in ids} == {"train"}
    assert {choice.side(who, 1.0, 0) for who in ids} == {"validation"}


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


def test_a_folder_with_something_else_is_left_alone(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "mine"
    out.mkdir()
    (out / "README.md").write_text("---\nlicense: mit\n---\nMine.\n")
    for words in ([], ["--fresh"]):
        result = dhr(run, "--out", out, *words)
        assert result.exit_code == 2
        assert "contains other files than" in result.stderr
    assert contents(out).keys() == {"README.md"}


def test_an_earlier_export_is_replaced_on_request(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    exported(run, out, "--include", "source")
    before = contents(out)
    result = dhr(run, "--out", out)
    assert result.exit_code == 2
    assert "--fresh" in result.stderr
    assert contents(out) == before
    exported(run, out, "--format", "webdataset", "--fresh")
    assert contents(out).keys() == {"README.md", "train-00000.tar"}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_export_of_another_run_is_left_alone(run: Path, tmp_path: Path) -> None:
    other = write_run(tmp_path / "other", write_photographs(tmp_path / "photographs"), seed=7)
    exported(other, tmp_path / "out")
    result = dhr(run, "--out", tmp_path / "out", "--fresh")
    assert result.exit_code == 2
    assert "contains other files" in result.stderr


def test_an_export_that_fails_leaves_what_was_there(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    exported(run, out)
    before = contents(out)

    def fails(*_: object) -> str:
        raise RuntimeError("no card")

    monkeypatch.setattr(export_card, "text", fails)
    with pytest.raises(RuntimeError, match="no card"):
        export.write_export(run, out, Options("parquet", fresh=True))
    assert contents(out) == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_the_card_says_what_it_is_and_where_it_comes_from(run: Path, tmp_path: Path) -> None:
    words = ["--min-identity", 0.9, "--val", 0.3, "--effect", "yaw=:0.2"]
    outcome = exported(run, tmp_path / "out", "--format", "hf", *words)
    text = (tmp_path / "out" / "README.md").read_text("utf-8")
    head = yaml.safe_load(text.split("---\n")[1])
    made = head["dhr_batch"]
    plan = json.loads((run / "plan.json").read_text())
    assert made["run"] == target.identity(StoredPlan.from_json(plan))
    assert made["settings"]["seed"] == plan["config"]["seed"]
    assert made["export"]["min_identity"] == 0.9
    assert made["export"]["effect"] == {"yaw": "-inf:0.2"}
    assert made["dropped"] == outcome["dropped"]
    assert head["license"] == "other"
    assert made["photograph_licence"] == "not stated"
    assert "Random weights" in text
    assert "1 of 10 photographs of the run have no rows" in text
    for reason, count in outcome["dropped"].items():
        assert f"- {count} pictures: {reason}" in text
    assert str(tmp_path) not in text
    assert str(run.parent) not in text


def test_the_card_names_files_of_all_kinds_of_edits_without_folders(
    run: Path, tmp_path: Path
) -> None:
    kinds = [
        {"direction": "/mine/age.npy", "strengths": [1.0]},
        {"ganspace": "/mine/pca.pt", "component": 2, "rows": [0, 5], "strengths": [1.0]},
        {"stylespace": ["6/501", "-convs.3/17"], "std": "/mine/S_mean_std", "strengths": [1.0]},
        {"styleclip": "/mine/beard.npz", "beta": 0.1, "fs3": "/mine/fs3.npy", "strengths": [1.0]},
    ]
    stored = json.loads((run / "plan.json").read_text())
    stored["fingerprint"]["config"]["edit"]["edits"] = kinds
    (run / "plan.json").write_text(json.dumps(stored))
    exported(run, tmp_path / "out", "--format", "hf")
    text = (tmp_path / "out" / "README.md").read_text("utf-8")
    edits = yaml.safe_load(text.split("---\n")[1])["dhr_batch"]["settings"]["edit"]["edits"]
    named = [{k: str(v).removeprefix("/mine/") for k, v in edit.items()} for edit in kinds]
    assert [{k: str(v) for k, v in edit.items()} for edit in edits] == named


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


def test_identity_that_was_not_measured_is_no_filter(run: Path, tmp_path: Path) -> None:
    blind = tmp_path / "blind"
    shutil.copytree(run, blind)
    plan = json.loads((blind / "plan.json").read_text())
    plan["config"]["measure"]["identity"] = []
    (blind / "plan.json").write_text(json.dumps(plan))
    result = dhr(blind, "--out", tmp_path / "out", "--min-identity", "0.5")
    assert result.exit_code == 2
    assert "did not measure identity" in result.stderr


@pytest.mark.parametrize("setting", [{"landmarks": "none"}, {"scores": []}, {"scores": ["a:B"]}])
def test_a_run_without_landmarks_drops_nothing_for_faces(
    run: Path, tmp_path: Path, setting: dict[str, Any]
) -> None:
    blind = tmp_path / "blind"
    shutil.copytree(run, blind)
    plan = json.loads((blind / "plan.json").read_text())
    plan["config"]["measure"] |= setting
    (blind / "plan.json").write_text(json.dumps(plan))
    outcome = exported(blind, tmp_path / "out")
    assert outcome["pictures"] == ALL
    assert outcome["dropped"] == {}


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

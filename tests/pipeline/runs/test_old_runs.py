"""Runs of other versions: an old one is read by every command, a newer one is refused.

`golden/run-0.1.0-be036bd.zip` is the run folder that commit be036bd made of three files, two random
pictures of 32 px and `broken.png`, which is no picture:

    dhr-batch run --dataset /data/tiny/tiny.yaml --preset tiny --gpus 0 --set workers=1
        --set shard_size=2 --set 'edit.edits=[{direction: smile, strengths: [-1, 1]}]'
        --no-report --out /data/tiny/run

`tiny.yaml` names the folder of the pictures and `aligned: true`. Of the result, `_state/lease` and
`_state/logs` were left out. In the JSON files of `_state` the host was replaced by `machine`, and
the folders of the source in the traceback of `broken.png` by `/opt/dhr-batch` and `/opt/venv`.
"""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner, Result
from PIL import Image

import dhr_batch
from dhr_batch.cli import main
from dhr_batch.pipeline.planning.origin import Origin
from dhr_batch.pipeline.runs.records import versions
from dhr_batch.tests.faults import driven
from dhr_batch.tests.pipeline.conftest import picture

IDS = ["first.png", "second.png"]
EDITS = [("smile", -1.0), ("smile", 1.0)]
# Colours are of 256 values. Deltas are rounded before they are stored, and processors differ in the
# last bits, which is some values; of another image or edit they differ by tens.
CLOSE = 6.0


@pytest.fixture
def old(golden: Path, tmp_path: Path) -> Path:
    """A copy of the run."""
    with zipfile.ZipFile(golden / "run-0.1.0-be036bd.zip") as archive:
        archive.extractall(tmp_path / "run")
    return tmp_path / "run"


def call(*words: object) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


def done(*words: object) -> str:
    result = call(*words)
    assert result.exit_code == 0, result.output
    return result.stdout


def difference(a: np.ndarray, b: np.ndarray) -> float:
    assert a.shape == b.shape == (32, 32, 3)
    return float(np.abs(a.astype(float) - b).mean())


def test_an_old_run_has_version_1_of_everything(old: Path) -> None:
    stored = json.loads((old / "plan.json").read_text())
    assert not {"schema_version", "rules"} & stored.keys()
    run = dhr_batch.open(old)
    assert (run.stored.schema_version, run.stored.rules) == (1, versions.RuleVersions(1, 1, 1))
    assert not run.stored.missing
    added = {"schema_version": 1, "rules": {"edit": 1, "picture": 1, "codec": 1}}
    assert run.stored.to_json() == stored | added


def test_an_old_run_has_a_report(old: Path) -> None:
    done("report", old)
    text = (old / "report" / "index.html").read_text("utf-8")
    assert all(name in text for name in (*IDS, "broken.png", "smile", "0.1.0"))
    metrics = pd.read_csv(old / "report" / "metrics.csv")
    assert set(metrics["image_id"]) == {*IDS}


def test_an_old_run_is_verified(old: Path) -> None:
    found = json.loads(done("verify", old, "--json"))
    assert (found["shards"], found["verified"], found["problems"]) == (2, 2, [])
    assert (found["images"], found["done"], found["quarantined"]) == (3, 2, 1)


def test_an_old_run_has_a_status(old: Path) -> None:
    found = json.loads(done("status", old, "--json"))
    assert found["state"] == "finished"
    assert found["images"] == {"total": 3, "done": 2, "quarantined": 1, "in_work": 0}
    assert found["errors"] == {"not_an_image": 1}
    assert found["images_per_second"].keys() == {"overall", "last_5_minutes"}


def test_an_old_run_is_rendered(old: Path, tmp_path: Path) -> None:
    out, run = tmp_path / "out", dhr_batch.open(old)
    done("render", old, "--all", "--out", out)
    done("render", old, "--all", "--edit", "smile=1", "--out", out)
    for image_id in IDS:
        for name, stored in (("refined", run.images()), ("smile+1", run.edited("smile", 1.0))):
            with Image.open(out / f"{image_id}.{name}.png") as made:
                assert difference(np.array(made), stored[image_id]) < CLOSE


def test_an_old_run_is_exported(old: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done("export", old, "--out", out, "--format", "imagefolder", "--include", "refined")
    # Two edits and the refined picture of each image.
    assert len([*out.rglob("*.png")]) == 3 * len(IDS)
    again = tmp_path / "parquet"
    done("export", old, "--out", again, "--format", "parquet")
    rows = pd.concat(map(pd.read_parquet, again.rglob("*.parquet")))
    assert len(rows) == 2 * len(IDS)


def test_edits_are_swept_over_an_old_run(old: Path, tmp_path: Path) -> None:
    out = tmp_path / "sweep"
    words = ["--edit", "smile=-1,1", "--gpus", "0", "--no-report", "--out", out]
    with driven.without_ray():
        done("edits", "sweep", old, *words)
    before, run = dhr_batch.open(old), dhr_batch.open(out)
    assert run.ids == IDS
    assert run.stored.fingerprint.origin == before.stored.fingerprint
    assert run.stored.schema_version == versions.newest_schema()
    for name, strength in EDITS:
        made, stored = run.edited(name, strength), before.edited(name, strength)
        assert made.keys() == stored.keys() == {*IDS}
        for image_id in IDS:
            assert difference(made[image_id], stored[image_id]) < CLOSE


def test_the_rates_of_an_old_run_remain_absolute(old: Path) -> None:
    """A run that begins from it does not take its numbers for relative ones."""
    before = dhr_batch.open(old).stored.settings.section
    settings = Origin(str(old)).settings
    for stage, rate in (("embed", "w_rate"), ("segment", "coarse_rate"), ("refine", "weight_rate")):
        assert "rates" not in before(stage)
        assert settings[stage]["rates"] == "absolute"
        assert settings[stage][rate] == before(stage)[rate]


def test_the_rule_of_edits_of_an_old_run_remains(old: Path) -> None:
    """Its edits moved all rows and nothing followed them, in renders and in sweeps."""
    run = dhr_batch.open(old)
    assert not {"rows", "follow"} & run.stored.settings.section("edit").keys()
    for settings in (run.networks.edit, Origin(str(old)).settings["edit"]):
        assert (settings["rows"], settings["follow"]) == ("all", "none")
    (edit,) = run.render(IDS[0], {"smile": 1.0}).edits
    moved = edit.latent - run.latents[IDS[0]]
    assert np.abs(moved).max(1).min() > 0


def test_an_unfinished_old_run_is_refused_with_the_ways_out(old: Path, tmp_path: Path) -> None:
    (old / "_state" / "shards" / "00001.json").unlink()
    photographs = tmp_path / "photographs"
    photographs.mkdir()
    for seed, name in enumerate(IDS):
        picture(photographs / name, seed)
    (photographs / "broken.png").write_bytes(b"no picture")
    (tmp_path / "tiny.yaml").write_text(f"name: tiny\nroot: {photographs}\naligned: true\n")
    edits = "edit.edits=[{direction: smile, strengths: [-1, 1]}]"
    words = ["--preset", "tiny", "--gpus", "0", "--set", "shard_size=2", "--set", edits]
    before = {path: path.read_bytes() for path in old.rglob("*.parquet")}
    result = call("run", "--dataset", tmp_path / "tiny.yaml", *words, "--out", old)
    assert result.exit_code == 2, result.output
    said = " ".join(result.output.split())
    code = json.loads((old / "plan.json").read_text())["fingerprint"]["code"]
    assert f"code: {code} -> " in said
    assert "finish the run with the dhr-batch that started it, which was version 0.1.0" in said
    assert "start over with --fresh, or choose another folder with --out" in said
    assert {path: path.read_bytes() for path in old.rglob("*.parquet")} == before


def changed(run: Path, **values: Any) -> None:
    stored = json.loads((run / "plan.json").read_text()) | values
    stored["fingerprint"]["version"] = "9.8.7"
    (run / "plan.json").write_text(json.dumps(stored))


@pytest.mark.parametrize(
    ("values", "named"),
    [({"schema_version": 7}, "schema_version is 7")]
    + [({"rules": {name: 7}}, f"rules.{name} is 7") for name in versions.RULES],
)
def test_a_run_of_a_newer_version_is_refused(
    old: Path, tmp_path: Path, values: dict[str, Any], named: str
) -> None:
    changed(old, **values)
    for words in (
        ("report", old),
        ("verify", old),
        ("status", old),
        ("render", old, "--all"),
        ("export", old, "--out", tmp_path / "out"),
        ("edits", "sweep", old, "--edit", "smile=1", "--gpus", "0"),
    ):
        result = call(*words)
        assert result.exit_code == 2, (words, result.output)
        said = " ".join(result.output.split())
        assert f"was made by dhr-batch 9.8.7, its {named}, and this dhr-batch (" in said
        assert "use the dhr-batch that made it, or a newer one" in said


@pytest.mark.parametrize("value", ["2", 0, None, 1.5])
def test_a_version_that_is_no_number_is_damage(old: Path, value: object) -> None:
    changed(old, schema_version=value)
    result = call("status", old)
    assert result.exit_code == 2
    assert "is damaged" in result.output


def test_new_runs_have_the_newest_versions(tmp_path: Path) -> None:
    assert versions.newest_schema() == max(versions.SCHEMA) == 2
    newest = versions.newest_rules()
    assert newest.to_json() == {name: max(known) for name, known in versions.RULES.items()}


def test_each_known_edit_rule_has_a_renderer(old: Path) -> None:
    from dhr_batch.pipeline.runs import render

    run = dhr_batch.open(old)
    for number in versions.RULES["edit"]:
        make = render.renderer(run.networks, [("smile", 1.0)], versions.RuleVersions(edit=number))
        (edit,) = make(run.record(IDS[0])).edits
        assert edit.name == "smile"


def test_the_picture_format_of_version_1_is_png(old: Path) -> None:
    for row in dhr_batch.open(old).table("images", ["image"]).to_pylist():
        with Image.open(io.BytesIO(row["image"]["bytes"])) as image:
            assert (image.format, image.mode) == ("PNG", "RGB")

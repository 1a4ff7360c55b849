"""`dhr-batch verify` on copies of a finished run to which something was done."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from dhr_batch.cli import main
from dhr_batch.pipeline.storage.connect import connect
from dhr_batch.tests.faults import driven

METRICS = "metrics/part-00000.parquet"
LATENTS = "latents/part-00000.parquet"


def verify(*words: object) -> Result:
    return CliRunner().invoke(main, ["verify", *map(str, words)])


@pytest.fixture
def run(small_run: Any, tmp_path: Path) -> Path:
    return small_run.copy(tmp_path / "run")


def test_a_finished_run_is_right_on_disks_and_in_object_stores(small_run: Any, bucket: str) -> None:
    for place in (small_run.out, small_run.upload(f"{bucket}/run")):
        result = verify(place)
        assert result.exit_code == 0, result.output
        assert "3 of 3 shards verified, 4 images done, 2 quarantined, 0 problems" in result.output
    content = json.loads(verify(small_run.out, "--json").stdout)
    assert content["complete"]
    assert (content["problems"], content["notes"]) == ([], [])


def manifest(run: Path, shard: int = 0) -> tuple[Path, dict[str, Any]]:
    """A manifest without its own checksum, as an older version wrote it."""
    path = run / "_state" / "shards" / f"{shard:05}.json"
    content = json.loads(path.read_text())
    content.pop("sha256", None)
    return path, content


def told(run: Path, key: str) -> None:
    """Let the manifest say what the file is now, so that only its content can betray it."""
    table, shard = key.partition("/")[0], int(key[-13:-8])
    path, content = manifest(run, shard)
    data = (run / key).read_bytes()
    content["files"][table] = {
        "rows": pq.read_metadata(run / key).num_rows,
        "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
    }
    path.write_text(json.dumps(content))


def rewrite(run: Path, key: str, change: Callable[[pa.Table], pa.Table]) -> None:
    pq.write_table(change(pq.read_table(run / key)), run / key)
    told(run, key)


def flip(run: Path) -> None:
    data = bytearray((run / METRICS).read_bytes())
    data[len(data) // 2] ^= 1
    (run / METRICS).write_bytes(data)


def truncate(run: Path) -> None:
    (run / METRICS).write_bytes((run / METRICS).read_bytes()[:-10])


def delete(run: Path) -> None:
    (run / METRICS).unlink()


def orphan(run: Path) -> None:
    (run / "metrics" / "part-0.parquet.bak").write_bytes(b"mine")


def hidden(run: Path) -> None:
    (run / "metrics" / ".tmp-x.parquet").write_bytes(b"PAR1")


def surplus_shard(run: Path) -> None:
    (run / "metrics" / "part-00007.parquet").write_bytes((run / METRICS).read_bytes())


def surplus_table(run: Path) -> None:
    (run / "features").mkdir()
    (run / "features" / "part-00000.parquet").write_bytes((run / METRICS).read_bytes())


def staged(run: Path) -> None:
    (run / "_staging" / "00000.1.dead").mkdir(parents=True)
    (run / "_staging" / "00000.1.dead" / "images.parquet").write_bytes(b"PAR1")


def damaged_manifest(run: Path) -> None:
    path, _ = manifest(run)
    path.write_bytes(path.read_bytes()[:40])


def poor_manifest(run: Path) -> None:
    path, content = manifest(run)
    del content["files"]["images"]["sha256"]
    path.write_text(json.dumps(content))


def fewer_rows(run: Path) -> None:
    path, content = manifest(run)
    content["files"]["metrics"]["rows"] += 1
    path.write_text(json.dumps(content))


def twice(run: Path) -> None:
    rewrite(run, LATENTS, lambda table: pa.concat_tables([table, table.slice(0, 1)]))


def lost(run: Path) -> None:
    for table in ("images", "latents"):
        key = f"{table}/part-00000.parquet"
        rewrite(run, key, lambda t: t.filter(pc.not_equal(t["image_id"], "b.png")))


def half(run: Path) -> None:
    rewrite(run, LATENTS, lambda t: t.filter(pc.not_equal(t["image_id"], "b.png")))


def unknown(run: Path) -> None:
    rewrite(run, METRICS, lambda t: t.set_column(0, "image_id", pa.array(["x.png"] * len(t))))


def other_shard(run: Path) -> None:
    number = pa.array([5, 5], pa.int32())
    rewrite(run, METRICS, lambda t: t.set_column(1, t.schema.field("shard"), number))


def both(run: Path) -> None:
    def change(table: pa.Table) -> pa.Table:
        row = {"image_id": "a.png", "shard": 0, "source": "", "stage": "", "error_class": "x"}
        more = pa.Table.from_pylist([row], schema=table.schema)
        return pa.concat_tables([table, more])

    rewrite(run, "quarantine/part-00000.parquet", change)


def undescribed(run: Path) -> None:
    rewrite(run, METRICS, lambda table: table.replace_schema_metadata(None))


def nonsense(run: Path) -> None:
    path, content = manifest(run)
    (run / METRICS).write_bytes(b"PAR1 not really")
    facts = {"bytes": 15, "sha256": hashlib.sha256(b"PAR1 not really").hexdigest(), "rows": 2}
    content["files"]["metrics"] = facts
    path.write_text(json.dumps(content))


def wrong_count(run: Path) -> None:
    path, content = manifest(run)
    path.write_text(json.dumps(content | {"ok": 1, "quarantined": 1}))


def planned_twice(run: Path) -> None:
    plan = json.loads((run / "plan.json").read_text())
    del plan["sha256"]
    plan["shards"][1][0] = "a.png"
    (run / "plan.json").write_text(json.dumps(plan))


@pytest.mark.parametrize(
    ("change", "where", "what", "way_out"),
    [
        (flip, METRICS, "sha256", "delete it, then start the same command"),
        (truncate, METRICS, "bytes", "start the same command"),
        (delete, METRICS, "missing", "start the same command"),
        (orphan, "metrics/part-0.parquet.bak", "not a finished file", "delete it"),
        (hidden, "metrics/.tmp-x.parquet", "not a finished file", "delete it"),
        (surplus_shard, "metrics/part-00007.parquet", "not in the plan", "delete it"),
        (surplus_table, "features/part-00000.parquet", "not named by any manifest", "delete it"),
        (staged, "_staging", "left by a killed run", "start the same command"),
        (damaged_manifest, "_state/shards/00000.json", "damaged", "delete it"),
        (poor_manifest, "_state/shards/00000.json", "sha256", "delete it"),
        (fewer_rows, METRICS, "2 rows; its manifest says 3", "delete it"),
        (twice, LATENTS, "repeated rows: a.png", "delete it"),
        (lost, LATENTS, "neither here nor in quarantine: b.png", "delete it"),
        (half, LATENTS, "images without rows: b.png", "delete it"),
        (unknown, METRICS, "not in the plan of the shard: x.png", "delete it"),
        (other_shard, METRICS, "rows of other shards", "delete it"),
        (both, LATENTS, "also in quarantine: a.png", "delete it"),
        (undescribed, METRICS, "its metadata", "delete it"),
        (nonsense, METRICS, "cannot be read as Parquet", "delete it"),
        (wrong_count, "_state/shards/00000.json", "have 2 and 0", "delete it"),
        (planned_twice, "plan.json", "planned twice: a.png", "--fresh"),
    ],
)
def test_each_problem_is_named(
    run: Path, change: Callable[[Path], None], where: str, what: str, way_out: str
) -> None:
    change(run)
    result = verify(run, "--json")
    assert result.exit_code == 1, result.output
    problems = json.loads(result.stdout)["problems"]
    named = [p for p in problems if p["file"] == where and what in p["problem"]]
    assert named, problems
    assert way_out in named[0]["way_out"]
    assert f"problem: {where}: " in verify(run).output


def test_what_is_deleted_as_told_is_made_again(small_run: Any, run: Path) -> None:
    before = (run / METRICS).read_bytes()
    flip(run)
    delete(run)
    with driven.without_ray():
        done = CliRunner().invoke(main, ["run", *small_run.words, "--out", str(run), "--no-report"])
    assert done.exit_code == 0, done.output
    assert (run / METRICS).read_bytes() == before
    assert verify(run).exit_code == 0


def test_an_unfinished_run_is_right_as_far_as_it_is(run: Path) -> None:
    manifest(run, 1)[0].unlink()
    for part in run.glob("*/part-00001.parquet"):
        part.unlink()
    staged(run)
    result = verify(run)
    assert result.exit_code == 0, result.output
    assert "2 of 3 shards verified" in result.output
    assert "1 of 3 shards are not done" in result.output
    truncate(run)
    assert verify(run).exit_code == 1


def test_a_kill_while_publishing_is_no_problem(run: Path) -> None:
    _, content = manifest(run, 1)
    staging = run / "_staging" / content["attempt"]
    staging.mkdir(parents=True)
    (run / "images" / "part-00001.parquet").rename(staging / "images.parquet")
    result = verify(run)
    assert result.exit_code == 0, result.output
    assert "not published yet: shards 1" in result.output


def test_a_damaged_plan_is_refused(run: Path) -> None:
    (run / "plan.json").write_text("{")
    result = verify(run)
    assert result.exit_code == 2
    assert "plan.json: it is damaged" in result.stderr
    assert "put back a copy" in result.stderr


def test_a_place_without_a_run_is_refused(tmp_path: Path) -> None:
    assert verify(tmp_path).exit_code == 2
    assert "no plan.json" in verify(tmp_path).stderr
    assert verify(tmp_path, "--fix").exit_code == 2


def test_a_store_that_does_not_answer_is_no_damage(
    small_run: Any, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dhr_batch.pipeline.errors import StorageError
    from dhr_batch.pipeline.runs import verify_tables

    place = connect(small_run.upload(f"{bucket}/run"))

    def fails(*_: object) -> None:
        raise StorageError("no answer")

    monkeypatch.setattr(verify_tables, "difference", fails)
    result = verify(place.place)
    assert result.exit_code == 1
    assert "no answer" in result.stderr
    assert "delete" not in result.output

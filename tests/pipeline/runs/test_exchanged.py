"""Records and parts that are whole, but of another run, of another shard, or copied beside."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from dhr_batch.cli import main
from dhr_batch.pipeline.runs.names import manifest_key
from dhr_batch.pipeline.runs.reading import RunRecords
from dhr_batch.pipeline.runs.records import manifests, plan_file

READERS = ("status", "report", "export", "render")


def other_plan(run: Path) -> None:
    plan = RunRecords(run).started_plan()
    assert len(plan.run) == 32
    (run / "plan.json").write_bytes(plan_file.dumps(replace(plan, run="f" * 32)))


def other_shard(run: Path) -> None:
    path = run / manifest_key(1)
    path.write_bytes(manifests.dumps(replace(manifests.loads(path.read_bytes()), run="f" * 32)))


def as_shard(target: int) -> Callable[[Path], None]:
    def copy(run: Path) -> None:
        for path in run.glob("*/part-00000.parquet"):
            shutil.copy(path, path.with_name(f"part-{target:05d}.parquet"))
        shutil.copy(run / manifest_key(0), run / manifest_key(target))

    return copy


def call(run: Path, command: str) -> Result:
    more = {"export": ["--format", "parquet"], "render": ["--all"]}.get(command, [])
    out = ["--out", str(run.with_name(command))] if more else []
    result = CliRunner().invoke(main, [command, str(run), *out, *more])
    assert isinstance(result.exception, SystemExit | None), result.exc_info
    return result


@pytest.mark.parametrize(
    ("change", "number", "why"),
    [
        (other_plan, 0, "another run than plan.json"),
        (other_shard, 1, "another run than plan.json"),
        (as_shard(1), 1, "that of shard 0"),
        (as_shard(3), 3, "that of shard 0"),
    ],
)
def test_records_of_another_run_or_shard(
    run: Path, change: Callable[[Path], None], number: int, why: str
) -> None:
    change(run)
    said = call(run, "verify")
    assert said.exit_code == 1
    assert manifest_key(number) in said.output
    for command in READERS[:3] if number == 3 else READERS:
        result = call(run, command)
        assert result.exit_code == 1, (command, result.output)
        assert why in " ".join(result.output.split()), (command, result.output)


def test_copies_beside_a_manifest_are_not_read(run: Path) -> None:
    names = ["00001 (conflict).json", "1.json", "00001.json.orig"]
    for name in names:
        shutil.copy(run / manifest_key(0), (run / manifest_key(0)).with_name(name))
    said = call(run, "verify")
    assert said.exit_code == 1
    for name in names:
        assert f"_state/shards/{name}: no name of a manifest" in said.output
    for command in ("status", "export"):
        assert call(run, command).exit_code == 0, command

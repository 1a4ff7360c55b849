"""Damaged records and tables are named by every command, with the way out.

The cases `bitrot_plan`, `bitrot_manifest_entry`, `bitrot_tables_silent`,
`bitrot_empty_part_export` and `bitrot_deep_json`, and others of their kinds.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

import dhr_batch
from dhr_batch.cli import main
from dhr_batch.pipeline import sealed
from dhr_batch.pipeline.datasets.items import Unreadable
from dhr_batch.pipeline.planning.earlier_run import Reader
from dhr_batch.pipeline.planning.prepare import prepare
from dhr_batch.pipeline.planning.request import Request
from dhr_batch.pipeline.runs.folder import RunFolder
from dhr_batch.pipeline.runs.parts import Damaged, Parts
from dhr_batch.pipeline.runs.reading import RunRecords
from dhr_batch.pipeline.runs.reopening import reopen
from dhr_batch.pipeline.storage.base import Object
from dhr_batch.pipeline.storage.local import LocalStorage
from dhr_batch.tests.faults import driven

SHARD = "_state/shards/00001.json"
PARTS = tuple(
    f"{table}/part-00001.parquet"
    for table in ("images", "latents", "masks", "edits", "metrics", "quarantine", "deltas")
)
DEEP = b"[" * 100_000


def call(*words: object) -> Result:
    """Call a command. It never ends in a traceback."""
    result = CliRunner().invoke(main, list(map(str, words)))
    assert isinstance(result.exception, SystemExit | None), result.exc_info
    return result


def commands(run: Path) -> dict[str, tuple[object, ...]]:
    """The commands that read a run, and the tables that each of them reads."""
    return {
        "verify": ("verify", run),
        "status": ("status", run),
        "report": ("report", run),
        "export": ("export", run, "--out", run.with_name("exported"), "--format", "parquet"),
        "paste-back": ("export", run, "--out", run.with_name("pasted"), "--paste-back"),
        "render": ("render", run, "--all", "--out", run.with_name("rendered")),
        "quarantine": ("quarantine", "list", run),
        "sweep": ("plan", "--dataset", run, "--from", "edit", "--gpus", "0"),
    }


# What each command reads of a run, besides the plan and the manifests.
READS = {
    "verify": PARTS,
    "report": ("images", "masks", "metrics", "quarantine"),
    "export": ("images", "metrics"),
    "paste-back": ("images", "metrics"),
    "render": ("latents", "masks", "deltas"),
}


def named(result: Result, key: str, code: int = 1) -> None:
    assert result.exit_code == code, result.output
    assert key in "".join(result.output.split()), result.output


def reopened(run: Path, shard: int, image_id: str) -> None:
    folder = RunFolder(run)
    folder.lock()
    folder.recover()
    reopen(folder, {shard: {image_id}})
    folder.unlock()


def told(run: Path, change: Callable[[dict[str, Any]], object], key: str = SHARD) -> None:
    """Change a record as an older version would have written it, without its own checksum."""
    content = json.loads((run / key).read_bytes())
    content.pop(sealed.KEY, None)
    change(content)
    (run / key).write_text(json.dumps(content))


# ------------------------------------------------------------------------------------ bitrot_plan


def test_bitrot_plan(run: Path) -> None:
    text = (run / "plan.json").read_text()
    changed = text.replace('"tiny"', '"tinx"', 1).replace('"smile"', '"smjle"', 1)
    (run / "plan.json").write_text(changed)
    result = call("verify", run)
    named(result, "problem:plan.json")
    assert "does not match the sha256" in result.output
    for words in commands(run).values():
        if words[0] != "verify":
            named(call(*words), "plan.json", code=2)
    # The way out that it names, for a change on purpose.
    first = text.index("\n") + 1
    (run / "plan.json").write_text(text[:first] + text[text.index("\n", first) + 1 :])
    result = call("verify", run)
    assert result.exit_code == 0, result.output
    assert "note: without a checksum of themselves" in result.output
    assert "plan.json" in result.output


@pytest.mark.parametrize("key", ["plan.json", SHARD])
def test_another_layout_or_name_of_the_checksum_is_damage(run: Path, key: str) -> None:
    text = (run / key).read_bytes()
    for changed in (
        json.dumps(json.loads(text), indent=2).encode(),
        text.replace(b'"sha256"', b'"sha257"', 1),
        text.replace(b'"sha256": "', b'"sha256":"', 1),
    ):
        (run / key).write_bytes(changed)
        named(call("verify", run), f"problem:{key}")


def test_every_bit_of_a_record_counts() -> None:
    text = sealed.dumps({"attempt": "00001.1.ab", "ok": 2, "models": []})
    assert sealed.loads(text) == {"attempt": "00001.1.ab", "ok": 2, "models": []}
    for bit in range(8 * len(text)):
        changed = bytearray(text)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(ValueError, match=r"sha256|line|codec|object"):
            sealed.loads(bytes(changed))


def test_records_stay_readable(source: Path) -> None:
    for key in ("plan.json", SHARD, "_state/owner.json"):
        text = (source / key).read_bytes()
        assert text.startswith(b'{\n "sha256": "')
        content = json.loads(text)
        assert content.pop("sha256")
        assert content == sealed.loads(text)


# -------------------------------------------------------------------------- bitrot_manifest_entry


@pytest.mark.parametrize("table", ["edits", "metrics", "deltas", "quarantine"])
@pytest.mark.parametrize("old", [False, True], ids=["", "without its checksum"])
def test_bitrot_manifest_entry(run: Path, table: str, old: bool) -> None:
    (run / table / "part-00001.parquet").unlink()
    if old:
        told(run, lambda content: content["files"].pop(table))
    else:
        content = json.loads((run / SHARD).read_text())
        del content["files"][table]
        (run / SHARD).write_text(json.dumps(content, indent=2))
    result = call("verify", run)
    named(result, f"problem:{SHARD}")
    assert f"no file of the tables {table}" in result.output if old else "damaged" in result.output
    assert "delete it and */part-00001.parquet" in result.output


# --------------------------------------------------------------------------- bitrot_tables_silent


def silent_flip(part: Path) -> None:
    """Flip a bit that changes what pyarrow reads without an error."""
    content, good = part.read_bytes(), pq.read_table(part).to_pydict()
    for place in range(4, len(content) - 8):
        changed = bytearray(content)
        changed[place] ^= 1
        part.write_bytes(changed)
        try:
            if pq.read_table(part).to_pydict() != good:
                return
        except (pa.ArrowException, ArithmeticError, LookupError, MemoryError, OSError, ValueError):
            continue
    raise AssertionError(f"no bit of {part} changes its rows")


@pytest.mark.parametrize("command", READS)
def test_bitrot_tables_silent(run: Path, command: str) -> None:
    for key in PARTS:
        table = key.partition("/")[0]
        if table not in READS[command] and key not in READS[command]:
            continue
        before = (run / key).read_bytes()
        if table == "metrics":
            silent_flip(run / key)
        else:
            (run / key).write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
        named(call(*commands(run)[command]), key)
        (run / key).write_bytes(before)


def test_pages_are_verified_without_a_manifest_too(run: Path) -> None:
    """As of a shard that is to be computed again, whose earlier rows can be read until then."""
    part = run / "latents" / "part-00001.parquet"
    reopened(run, 1, "2.png")
    content = bytearray(part.read_bytes())
    column = pq.read_metadata(part).row_group(0).column(4)
    middle = column.data_page_offset + column.total_compressed_size // 2
    content[middle] ^= 1
    part.write_bytes(content)
    with pytest.raises(Damaged, match=r"(?i)latents.* cannot be read: .*(crc|checksum)"):
        dhr_batch.open(run).table("latents", ["latent"])


def test_a_sweep_leaves_out_what_is_damaged_and_names_it(run: Path) -> None:
    planned = prepare(Request(settings={"dataset": str(run), "first_stage": "edit", "gpus": 0}))
    items = {item.image_id: item for shard in planned.shards for item in shard.items}
    part = run / "latents" / "part-00001.parquet"
    content = part.read_bytes()
    part.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    reader = Reader(planned.config)
    assert reader.record(items["0.png"]).latent is not None
    for image_id in ("2.png", "3.png"):
        with pytest.raises(Unreadable, match=r"latents/part-00001.parquet.*dhr-batch verify"):
            reader.record(items[image_id])
    assert reader.record(items["4.png"]).latent is not None


# ----------------------------------------------------------------------- bitrot_empty_part_export


def empty(path: Path) -> None:
    path.write_bytes(b"")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


def lose(path: Path) -> None:
    path.unlink()


def other_schema(path: Path) -> None:
    pq.write_table(pa.table({"a": [1]}), path)


@pytest.mark.parametrize("damage", [empty, cut, lose, other_schema])
def test_bitrot_empty_part_export(run: Path, damage: Callable[[Path], None]) -> None:
    for key in ("images/part-00001.parquet", "quarantine/part-00002.parquet"):
        before = (run / key).read_bytes()
        damage(run / key)
        for command, words in commands(run).items():
            table = key.partition("/")[0]
            if command == "status":
                result = call(*words)
                assert result.exit_code == 0
                assert f"problem      {key}" in result.output
                assert "dhr-batch verify" in result.output
            elif command == "sweep":
                named(call(*words), key, code=2 if table == "images" else 1)
            elif command == "verify" or table in READS.get(command, (command,)):
                named(call(*words), key)
        (run / key).write_bytes(before)


@pytest.mark.parametrize("damage", [empty, cut, lose, other_schema])
def test_parts_without_facts_are_named_too(run: Path, damage: Callable[[Path], None]) -> None:
    """Of a run whose manifest does not describe them. One that is missing is then none."""
    told(run, lambda content: content.update(files={}))
    damage(run / "images" / "part-00001.parquet")
    for words in (commands(run)["export"], commands(run)["report"]):
        result = call(*words)
        if damage is lose:
            assert result.exit_code == 0
        else:
            named(result, "images")


def test_what_is_deleted_as_told_is_computed_again(run: Path) -> None:
    before = (run / PARTS[0]).read_bytes()
    (run / SHARD).write_bytes(b"\0" * 100)
    assert "delete it and */part-00001.parquet" in call("verify", run).output
    (run / SHARD).unlink()
    for part in run.glob("*/part-00001.parquet"):
        part.unlink()
    dataset = run.parent / "photographs.yaml"
    settings = dict(dhr_batch.open(run).stored.settings.values)
    assert not dataset.exists()
    plan = prepare(Request(settings=settings))
    driven.drive(plan, str(run), driven.worker(plan, str(run)))
    assert call("verify", run).exit_code == 0
    assert (run / PARTS[0]).stat().st_size == pytest.approx(len(before), rel=0.2)


# ------------------------------------------------------------------------------- bitrot_deep_json


@pytest.mark.parametrize(
    ("key", "code"),
    [(SHARD, {"verify": 1}), ("plan.json", {"verify": 2}), ("_state/owner.json", {"verify": 1})],
)
@pytest.mark.parametrize("content", [DEEP, b'{"a":' * 100_000, b"\xff\xfe[", b"1" * 5000, b"null"])
def test_bitrot_deep_json(run: Path, key: str, code: dict[str, int], content: bytes) -> None:
    (run / key).write_bytes(content)
    for command, words in commands(run).items():
        if command == "verify" or key != "_state/owner.json":
            expected = code.get(command, 2 if key == "plan.json" else 1)
            named(call(*words), key, expected)


@pytest.mark.parametrize("key", ["_state/status.json", "_state/lease"])
def test_deep_json_where_no_row_depends_on_it(run: Path, key: str) -> None:
    (run / key).write_bytes(DEEP)
    assert call("verify", run).exit_code == 0
    assert call("report", run).exit_code == 0
    result = call("status", run)
    assert result.exit_code == ("status" in key)
    assert (key in result.output) == ("status" in key)


def test_a_record_of_a_reopened_shard_is_checked(run: Path) -> None:
    reopened(run, 2, "4.png")
    read: list[str] = []
    get = LocalStorage.get

    def seen(storage: LocalStorage, key: str) -> Object | None:
        read.append(key)
        return get(storage, key)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LocalStorage, "get", seen)
        assert call("verify", run).exit_code == 0
    # Not once for each part: a store takes a request for each.
    assert 1 <= read.count("_state/earlier/00002.json") <= 2
    (run / "_state" / "earlier" / "00002.json").write_bytes(DEEP)
    named(call("verify", run), "problem:_state/earlier/00002.json")


@pytest.mark.parametrize("shard", [1, 7])
def test_parts_without_a_manifest_are_named(run: Path, shard: int) -> None:
    """A lost manifest, and a copy of a part under another number."""
    part = f"images/part-{shard:05d}.parquet"
    if shard == 1:
        (run / SHARD).unlink()
    else:
        shutil.copy(run / "images" / "part-00000.parquet", run / part)
    for name in ("verify", "report", "export", "paste-back"):
        named(call(*commands(run)[name]), f"part-{shard:05d}.parquet")


WRONG: dict[str, list[dict[str, Any]]] = {
    SHARD: [
        *(
            {"ok": "x"},
            {"errors": 5},
            {"files": {"images": 5}},
            {"files": {"images": {"rows": "x"}}},
        ),
        *({"models": 5}, {"stage_seconds": {"align": "x"}}, {"faces": {"a": "x"}}, {"worker": [1]}),
        *({"failures": [5]}, {"attempt": ["a"]}, {"clocked": [1]}),
    ],
    "plan.json": [
        *({"config": []}, {"config": {"refine": 5}}, {"config": {"refine": {}}}, {"dataset": 5}),
        *({"fingerprint": {"config": 5}}, {"fingerprint": {"origin": 5}}, {"ignored": 5}),
        *({"versions": 5}, {"config": {"gpus": "x"}}, {"shards": {"a": 1}}, {"rules": 5}),
    ],
}


@pytest.mark.parametrize("key", WRONG)
def test_values_of_wrong_types_are_named(run: Path, key: str) -> None:
    """In records that were changed by hand, and without their checksum, as the message says."""
    before = (run / key).read_bytes()
    for change in WRONG[key]:
        told(run, lambda content, new=change: content.update(new), key)  # type: ignore[misc]
        for name in ("verify", "status", "report", "quarantine"):
            result = call(*commands(run)[name])
            named(result, f"{key}", code=1 if key == SHARD else 2)
        (run / key).write_bytes(before)


# ---------------------------------------------------------------------------------- other records


@pytest.mark.parametrize(
    "key", ["README.md", "report/index.html", "report/metrics.csv", "_state/owner.json"]
)
def test_files_that_the_marker_lists_are_verified(run: Path, key: str) -> None:
    content = (run / key).read_bytes()
    (run / key).write_bytes(content.replace(b"a", b"b", 1))
    result = call("verify", run)
    named(result, f"problem:{key}")
    assert "writes them again" in result.output
    (run / key).unlink()
    if key != "_state/owner.json":
        assert call("verify", run).exit_code == 0


def test_parts_are_compared_once(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sums: list[Path] = []
    real = Parts._difference

    def counted(self: Parts, key: str) -> str:
        sums.append(Path(key))
        return real(self, key)

    monkeypatch.setattr(Parts, "_difference", counted)
    assert call("report", run).exit_code == 0
    assert len(sums) == len(set(sums))
    assert {path.parent.name for path in sums} == {"images", "masks", "metrics", "quarantine"}


@pytest.mark.parametrize("command", ["report", "export", "render", "quarantine"])
def test_the_plan_is_read_once(command: str, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[str] = []
    real = LocalStorage.get

    def counted(self: LocalStorage, key: str) -> Object | None:
        reads.append(key)
        return real(self, key)

    monkeypatch.setattr(LocalStorage, "get", counted)
    assert call(*commands(run)[command]).exit_code == 0
    assert reads.count("plan.json") == 1


def test_runs_without_checksums_are_read_with_a_note(run: Path) -> None:
    for path in [run / "plan.json", *(run / "_state" / "shards").iterdir()]:
        content = json.loads(path.read_bytes())
        del content["sha256"]
        path.write_text(json.dumps(content))
    result = call("verify", run)
    assert result.exit_code == 0, result.output
    assert "note: without a checksum of themselves" in result.output
    for words in commands(run).values():
        assert call(*words).exit_code == 0
    assert len(Parts(RunRecords(run)).table("images")) == 3

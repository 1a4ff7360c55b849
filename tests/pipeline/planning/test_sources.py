"""Finished runs from which others begin: what their damage costs, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

import dhr_batch
from dhr_batch.pipeline.errors import Refused, StorageError
from dhr_batch.pipeline.files import sha256
from dhr_batch.pipeline.planning.prepare import describe, place, prepare
from dhr_batch.pipeline.planning.request import Request
from dhr_batch.pipeline.runs.folder import RunFolder
from dhr_batch.tests.pipeline.later import IDS, PTI, compute, made


def unsealed(path: Path) -> dict[str, Any]:
    """The content of a record without its checksum, so that it may be changed."""
    content = json.loads(path.read_text())
    content.pop("sha256", None)
    return content


def refused(source: Path, first: str, message: str, **settings: Any) -> None:
    with pytest.raises(Refused, match=message):
        prepare(Request(settings={"dataset": str(source), "first_stage": first} | settings))


def test_quarantined_images_are_left_out_and_counted(source: Path) -> None:
    planned = prepare(Request(settings={"dataset": str(source), "first_stage": "edit", "gpus": 0}))
    assert [item.image_id for shard in planned.shards for item in shard.items] == IDS
    assert "5 images" in describe(planned, "out")
    assert "1 more are in quarantine and left out" in describe(planned, "out")


def test_a_damaged_file_costs_its_images_alone(copy: Path, tmp_path: Path) -> None:
    """As nobody can tell which of its rows are sound, none of them is taken."""
    path = copy / "images" / "part-00001.parquet"
    content = path.read_bytes()
    pixels = pq.read_table(path, filters=[("image_id", "=", "c.png"), ("kind", "=", "refined")])
    data = pixels["image"][0].as_py()["bytes"]
    middle = content.index(data) + len(data) // 2
    path.write_bytes(content[:middle] + bytes(16) + content[middle + 16 :])
    out = made(tmp_path / "out", dataset=str(copy), first_stage="edit")
    failed = dhr_batch.open(out).quarantine
    assert list(zip(failed["image_id"], failed["stage"], failed["error_class"], strict=True)) == [
        ("c.png", "read", "unreadable"),
        ("sub/d.png", "read", "unreadable"),
    ]
    for message in failed["message"]:
        assert "its rows in the earlier run are damaged" in message
        assert "images/part-00001.parquet: its sha256 is not the one in its manifest" in message
        assert "dhr-batch verify" in message
    assert dhr_batch.open(out).ids == ["a.png", "b.png", "sub/e.png"]


def test_a_missing_row_costs_its_image_alone(copy: Path, tmp_path: Path) -> None:
    path = copy / "latents" / "part-00000.parquet"
    table = pq.read_table(path)
    planned = prepare(Request(settings={"dataset": str(copy), "first_stage": "refine", "gpus": 0}))
    pq.write_table(table.filter([i != "b.png" for i in table["image_id"].to_pylist()]), path)
    manifest = unsealed(copy / "_state" / "shards" / "00000.json")
    facts = {"rows": 1, "bytes": path.stat().st_size, "sha256": sha256(path)}
    manifest["files"]["latents"] = facts
    (copy / "_state" / "shards" / "00000.json").write_text(json.dumps(manifest))
    folder = RunFolder(tmp_path / "out")
    folder.lock()
    compute(planned, folder)
    folder.unlock()
    failed = pq.read_table(tmp_path / "out" / "quarantine" / "part-00000.parquet").to_pylist()
    assert [row["image_id"] for row in failed] == ["b.png"]
    assert "no latent of 'b.png'" in failed[0]["message"]


def test_a_run_that_went_away_stops_the_new_one(copy: Path, tmp_path: Path) -> None:
    planned = prepare(Request(settings={"dataset": str(copy), "first_stage": "edit", "gpus": 0}))
    shutil.rmtree(copy / "masks")
    folder = RunFolder(tmp_path / "out")
    folder.lock()
    with pytest.raises(StorageError, match="copy: it cannot be read: No such file"):
        compute(planned, folder)
    folder.unlock()


def test_settings_that_a_run_is_too_old_for_are_at_their_own_defaults(copy: Path) -> None:
    stored = unsealed(copy / "plan.json")
    del stored["config"]["segment"]["source"], stored["config"]["segment"]["error_layers"]
    del stored["config"]["segment"]["thresholds"]["mouth"]
    (copy / "plan.json").write_text(json.dumps(stored))
    planned = prepare(Request(settings={"dataset": str(copy), "first_stage": "segment"}))
    segment = planned.config.segment
    assert (segment["source"], segment["error_layers"]) == ("embedding", None)
    assert segment["thresholds"]["mouth"] == 1


def test_what_cannot_be_begun_from_is_refused(
    source: Path, copy: Path, photographs: str, tmp_path: Path
) -> None:
    refused(tmp_path, "edit", "it is not a run")
    refused(source, "foo", "first_stage: input should be")
    refused(source, "align", r"is a run; name the stage to begin at with --from \(one of: embed")
    refused(
        source, "refine", r"(?s)embed.steps: 2 -> 3\n.*seed: 0 -> 7\n", seed=7, embed={"steps": 3}
    )
    refused(
        source, "refine", "generator: tiny -> mobilestylegan-256", generator="mobilestylegan-256"
    )
    refused(source, "edit", "store_deltas=fine.* made with store_deltas=small", store_deltas="fine")
    # Of a stage that is part of the run anything may be set.
    prepare(Request(settings={"dataset": str(source), "first_stage": "refine", **PTI}))

    stored = unsealed(copy / "plan.json")
    stored["config"]["store_deltas"] = "none"
    (copy / "plan.json").write_text(json.dumps(stored))
    refused(copy, "edit", "store_deltas=none, so it has no refined weights.*begin at refine")
    prepare(Request(settings={"dataset": str(copy), "first_stage": "refine"}))

    (copy / "masks" / "part-00001.parquet").write_bytes(b"")
    refused(
        copy, "edit", "masks/part-00001.parquet: its size is not .* manifest; .*: dhr-batch verify"
    )
    (copy / "_state" / "shards" / "00001.json").unlink()
    refused(copy, "edit", "is not finished: 1 of 3 shards are to do")


def test_other_weights_are_refused(copy: Path) -> None:
    stored = unsealed(copy / "plan.json")
    stored["config"]["generator"] = "mobilestylegan-256"
    stored["fingerprint"]["models"]["mobilestylegan-ffhq"] = "0" * 16
    (copy / "plan.json").write_text(json.dumps(stored))
    refused(copy, "edit", "made with other weights of mobilestylegan-ffhq")


def test_the_run_itself_is_no_place_for_the_new_one(source: Path) -> None:
    settings = {"dataset": str(source), "first_stage": "edit", "gpus": 0}
    request = Request(settings=settings, out=source, fresh=True, confirmed=True)
    with pytest.raises(
        Refused, match="is the run that the new run begins from; choose another folder"
    ):
        place(prepare(request), request)


def test_a_changed_source_is_not_mixed_in(copy: Path, tmp_path: Path) -> None:
    settings = {"dataset": str(copy), "first_stage": "edit", "limit": 3}
    out = made(tmp_path / "out", **settings)
    made(out, **settings)  # The same again is nothing to do.

    path = copy / "_state" / "shards" / "00000.json"
    manifest = unsealed(path)
    manifest["files"]["latents"]["sha256"] = "0" * 64
    path.write_text(json.dumps(manifest))
    stored = unsealed(copy / "plan.json")
    stored["fingerprint"]["config"]["embed"]["steps"] = 5
    (copy / "plan.json").write_text(json.dumps(stored))
    with pytest.raises(Refused) as refusal:
        made(out, **settings)
    assert "origin.config.embed.steps: 2 -> 5" in str(refusal.value)
    assert "images: 2 with different content: a.png (etag), b.png (etag)" in str(refusal.value)

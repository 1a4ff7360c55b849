"""Runs that begin from a finished run: the same rows as a whole run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

import dhr_batch
from dhr_batch.pipeline.cli.edits import sweep
from dhr_batch.pipeline.datasets import parquet, synthetic
from dhr_batch.pipeline.errors import Refused
from dhr_batch.pipeline.planning.prepare import prepare
from dhr_batch.pipeline.planning.request import Request
from dhr_batch.pipeline.runs.folder import RunFolder
from dhr_batch.pipeline.runs.verify import verify
from dhr_batch.pipeline.storage.connect import connect
from dhr_batch.pipeline.worker.settings import Settings
from dhr_batch.pipeline.worker.worker import Worker
from dhr_batch.stages.networks.generators.mobilestylegan import MobileStyleGAN
from dhr_batch.stages.record import TRUTH
from dhr_batch.tests.pipeline import discs
from dhr_batch.tests.pipeline.later import IDS, PTI, made, whole


def rows(run: Path, name: str) -> list[dict[str, Any]]:
    """All rows of a table; files differ in the settings that their metadata name."""
    paths = sorted(run.glob(f"{name}/part-*.parquet"))
    return [row for path in paths for row in pq.read_table(path).to_pylist()]


def same(one: Any, other: Any) -> bool:
    """Equal, also where both are nan."""
    return repr(one) == repr(other)


def assert_same(one: Path, other: Path, *but: str) -> None:
    names = {path.name for path in one.iterdir() if path.name in RunFolder(one).storage.tables()}
    assert {"images", "latents", "masks", "deltas", "edits", "metrics"} <= names
    for name in names - {"quarantine", *but}:
        pairs = zip(rows(one, name), rows(other, name), strict=True)
        # Values are long, and pytest would print how they differ.
        differ = [(a["image_id"], key) for a, b in pairs for key in a if not same(a[key], b[key])]
        assert differ == [], name


@pytest.mark.parametrize("first", ["embed", "segment", "refine", "measure"])
def test_later_stages_give_the_rows_of_the_whole_run(
    source: Path, tmp_path: Path, first: str
) -> None:
    out = made(tmp_path / "out", dataset=str(source), first_stage=first)
    assert dhr_batch.open(out).ids == IDS
    assert_same(out, source)
    found = verify(out)
    assert (found.complete, found.problems, found.done) == (True, [], 5)


def test_edits_with_targets_are_repeated_by_later_stages_and_rendered_again(
    source: Path, photographs: str, tmp_path: Path
) -> None:
    """GANSpace: 0 is an edit, and where each face lies before it stays with its rows."""
    draw = torch.Generator().manual_seed(0)
    comp = torch.nn.functional.normalize(torch.randn(4, 1, 512, generator=draw), dim=2)
    torch.save(
        {"mean": torch.zeros(1, 512), "comp": comp, "std": torch.ones(4)}, tmp_path / "pca.pt"
    )
    chosen = {"ganspace": str(tmp_path / "pca.pt"), "component": 2, "rows": [0, 5]}
    (tmp_path / "mine.yaml").write_text(json.dumps(chosen))
    own = {"edit": {"edits": [chosen | {"strengths": [-4, 0, 4], "label": "mine"}]}}
    expected = whole(photographs, tmp_path / "whole", **own)
    by_file = {"edit": {"edits": sweep.parse([f"{tmp_path / 'mine.yaml'}=-4:4:3"])}}
    swept = made(tmp_path / "swept", dataset=str(source), first_stage="edit", **by_file)
    plans = (RunFolder(swept).plan(), RunFolder(expected).plan())
    assert len({json.dumps(plan.settings.values["edit"]) for plan in plans if plan}) == 1
    for out, first in ((swept, "edit"), (tmp_path / "again", "measure")):
        if first == "measure":
            made(out, dataset=str(expected), first_stage=first)
        starts = [row for row in rows(out, "metrics") if row["metric"] == "start_mine"]
        assert [row["image_id"] for row in starts] == IDS
        assert len({row["value"] for row in starts}) == len(IDS)
    assert_same(tmp_path / "again", expected)
    run = dhr_batch.open(expected)
    assert dict(run.edits["effect"][0]).keys() >= {"start_mine"}
    again = run.render(IDS[0], {str(tmp_path / "mine.yaml"): 0.0})
    assert (again.refined, [(e.name, e.strength) for e in again.edits]) == (None, [("mine", 0.0)])
    mine = run.edits.query(f"image_id == {IDS[0]!r} and strength == 0").iloc[0]
    np.testing.assert_array_equal(again.edits[0].latent, mine["latent"])
    then = run.edited("mine", 0.0)[IDS[0]].astype(int)
    assert np.abs(then - again.edits[0].image).mean() < 1


def test_edits_of_channels_are_swept_and_rendered_again(
    source: Path, photographs: str, tmp_path: Path
) -> None:
    """StyleSpace: the picture depends on offsets that are no part of the edited code."""
    chosen = {"stylespace": "layers.1.conv1/2, -layers.0.up/5"}
    (tmp_path / "mine.yaml").write_text(json.dumps(chosen))
    own = {"edit": {"edits": [chosen | {"strengths": [-5, 5], "label": "mine"}]}}
    expected = whole(photographs, tmp_path / "whole", **own)
    by_file = {"edit": {"edits": sweep.parse([f"{tmp_path / 'mine.yaml'}=-5,5"])}}
    swept = made(tmp_path / "swept", dataset=str(source), first_stage="edit", **by_file)
    run = dhr_batch.open(expected)
    again = run.render(IDS[0], {str(tmp_path / "mine.yaml"): 5.0})
    then = run.edited("mine", 5.0)[IDS[0]].astype(int)
    change = np.abs(then - run.edited("mine", -5.0)[IDS[0]]).mean()
    assert change > 1
    # Stored refinements are rounded, which the tiny generator with random weights amplifies.
    for picture in (again.edits[0].image, dhr_batch.open(swept).edited("mine", 5.0)[IDS[0]]):
        assert np.abs(then - picture).mean() < change / 5


def test_combined_edits_are_swept_and_rendered_again(
    source: Path, photographs: str, tmp_path: Path
) -> None:
    edits = {"edit": {"edits": sweep.parse(["smile=1+yaw=-0.5,0.5", "smile=1"])}}
    expected = whole(photographs, tmp_path / "whole", **edits)
    swept = made(tmp_path / "swept", dataset=str(source), first_stage="edit", **edits)
    both = "smile=1+yaw=-0.5"
    for out in (expected, swept):
        run = dhr_batch.open(out)
        stored = run.edits.query(f"image_id == {IDS[0]!r}")
        names = ["smile", both, "smile=1+yaw=0.5"]
        assert stored[["edit", "strength"]].to_numpy().tolist() == [[name, 1] for name in names]
        assert set(run.metrics["stage"]) >= {"edit:smile:1", f"edit:{both}:1"}
        again = run.render(IDS[0], [both]).edits[0]
        np.testing.assert_array_equal(again.latent, stored["latent"].iloc[1])
        then = run.edited(both, 1)[IDS[0]].astype(int)
        assert np.abs(then - again.image).mean() < 1
        assert verify(out).problems == []


def test_another_refiner_gives_the_rows_of_its_own_whole_run(
    source: Path, photographs: str, tmp_path: Path
) -> None:
    out = made(tmp_path / "out", dataset=str(source), first_stage="refine", **PTI)
    assert_same(out, whole(photographs, tmp_path / "whole", **PTI))
    assert not same(rows(out, "deltas"), rows(source, "deltas"))
    # Nothing else is a stage of it, so nothing else can have taken time.
    manifests = RunFolder(out).manifests().values()
    assert {stage for m in manifests for stage in m.stage_seconds} == {
        "refine",
        "edit",
        "measure",
    }


def test_synthetic_pictures_keep_their_truth(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(synthetic, "context", lambda generator: discs.context())
    described = synthetic.write_dataset(tmp_path / "pictures", 3, generator="tiny")
    base = whole(str(described), tmp_path / "base")
    for first, begins in (("refine", base), ("measure", tmp_path / "refine")):
        made(tmp_path / first, dataset=str(begins), first_stage=first, shard_size=2)
        assert_same(tmp_path / first, base)
    names = [row["metric"] for row in rows(tmp_path / "measure", "metrics")]
    assert names.count("truth_psnr") == 3 * 2
    assert not caplog.records

    # One that was begun goes on with the same truth only.
    files = tmp_path / "pictures"
    files.rename(tmp_path / "away")
    with pytest.raises(Refused, match="truths: 3 -> not set"):
        made(tmp_path / "measure", dataset=str(base), first_stage="measure", shard_size=2)
    assert "all images get no metrics against the ground truth: " in caplog.text
    assert "synthetic.yaml: it does not exist" in caplog.text
    (tmp_path / "away").rename(files)

    # Pictures of another seed under the same names.
    synthetic.write_dataset(tmp_path / "pictures", 3, seed=1, generator="tiny")
    for kept in (parquet._kept, parquet._image_rows, parquet._other_rows):
        kept.cache_clear()
    other = made(tmp_path / "other", dataset=str(base), first_stage="measure")
    assert not [row for row in rows(other, "metrics") if row["metric"].startswith(TRUTH)]
    assert "changed since the run (3x)" in caplog.text


def test_damaged_metrics_do_not_matter_where_they_are_made_anew(
    copy: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (copy / "metrics" / "part-00000.parquet").write_bytes(b"damaged")
    made(tmp_path / "out", dataset=str(copy), first_stage="measure", shard_size=2)
    assert "its metrics cannot be read" in caplog.text
    assert len(rows(tmp_path / "out", "latents")) == len(IDS)


def test_edits_are_those_that_the_tables_give(source: Path, tmp_path: Path) -> None:
    edits = [{"direction": "yaw", "strengths": [0, 1]}, {"direction": "smile", "strengths": [-2]}]
    out = made(tmp_path / "out", dataset=str(source), first_stage="edit", edit={"edits": edits})
    for name in ("latents", "masks", "deltas"):
        assert same(rows(out, name), rows(source, name)), name
    run, then = dhr_batch.open(out), dhr_batch.open(source)
    for kind in ("aligned", "inverted", "refined"):
        for image_id, pixels in then.images(kind).items():
            np.testing.assert_array_equal(run.images(kind)[image_id], pixels)
    for image_id in IDS:
        again = then.render(image_id, {"yaw": 1, "smile": -2})
        for edit in again.edits:
            stored = run.edited(edit.name, edit.strength)[image_id]
            np.testing.assert_array_equal(stored, edit.image)
        refined = then.images("refined")[image_id]
        np.testing.assert_array_equal(run.edited("yaw", 0)[image_id], refined)
        # What a reader of the new run renders is what one of the old run renders.
        np.testing.assert_array_equal(run.render(image_id).refined, then.render(image_id).refined)
        assert not np.array_equal(again.edits[0].image, refined)


def test_the_run_begun_from_may_lie_in_an_object_store(
    source: Path, bucket: str, tmp_path: Path
) -> None:
    url = f"{bucket}/source"
    store = connect(url)
    for path in (path for path in source.rglob("*") if path.is_file()):
        store.replace(path.relative_to(source).as_posix(), path.read_bytes())
    out = made(tmp_path / "out", dataset=url, first_stage="measure")
    assert_same(out, source)


def test_one_and_a_half_forward_passes_per_picture(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """3 edits of 5 strengths each: 15 pictures of an image, and nothing else goes through.

    A plain render of each edit, and one of the image, show the motion.
    """
    passes = {"trunk": 0, "from_feature": 0, "calls": 0}

    def counted(name: str) -> Any:
        plain = getattr(MobileStyleGAN, name)

        def call(self: Any, first: torch.Tensor, *rest: Any, **more: Any) -> Any:
            assert not torch.is_grad_enabled()
            passes[name] += len(first)
            passes["calls"] += name == "trunk"
            return plain(self, first, *rest, **more)

        return call

    names = ("smile", "yaw", "pitch")
    edits = [{"direction": name, "strengths": [-2, -1, 0.5, 1, 2]} for name in names]
    settings = {"dataset": str(source), "first_stage": "edit", "edit": {"edits": edits}}
    planned = prepare(Request(settings=settings | {"gpus": 0}))
    worker = Worker(Settings(planned.config, True, "", "cpu", str(tmp_path)))
    worker.setup()
    # No network of an earlier stage is there that could run: neither embedder nor parser.
    assert [stage.family for stage in worker.stages] == ["edit", "measure"]
    for name in ("trunk", "from_feature"):
        monkeypatch.setattr(MobileStyleGAN, name, counted(name))
    for shard in planned.shards:
        worker.run_shard(shard, f"{shard.index}")
    images = planned.images
    assert images == 5
    # A batch holds 8 renders, so 15 take two.
    trunk, half = (15 + 1) * images, (2 * 15 + 1) * images
    assert passes == {"trunk": trunk, "from_feature": half, "calls": (2 + 1) * images}

    edits[0]["strengths"] = [-2, -1, 0, 1, 2]
    settings["edit"] = {"edits": edits}
    planned = prepare(Request(settings=settings | {"gpus": 0}))
    worker = Worker(Settings(planned.config, True, "", "cpu", str(tmp_path)))
    worker.setup()
    passes.update(dict.fromkeys(passes, 0))
    worker.run_shard(planned.shards[0], "again")
    trunk = (14 + 1) * len(planned.shards[0].items)
    assert passes["trunk"] == trunk, "strength 0 is there already"

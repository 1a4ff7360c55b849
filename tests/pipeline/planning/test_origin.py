"""Runs that begin from a finished run: the same rows as a whole run, and what is refused."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image

import dhr_batch
from dhr_batch.cli import main
from dhr_batch.pipeline.cli import start, sweep
from dhr_batch.pipeline.datasets import parquet, synthetic
from dhr_batch.pipeline.errors import Refused, StorageError
from dhr_batch.pipeline.files import sha256
from dhr_batch.pipeline.planning import resume
from dhr_batch.pipeline.planning.command import goes_on
from dhr_batch.pipeline.planning.plan import Plan
from dhr_batch.pipeline.planning.prepare import describe, place, prepare
from dhr_batch.pipeline.planning.request import Request
from dhr_batch.pipeline.runs.folder import RunFolder
from dhr_batch.pipeline.runs.verify import verify
from dhr_batch.pipeline.storage.connect import connect
from dhr_batch.pipeline.worker.settings import Settings
from dhr_batch.pipeline.worker.worker import Worker
from dhr_batch.stages.networks.generators.mobilestylegan import MobileStyleGAN
from dhr_batch.stages.record import TRUTH
from dhr_batch.tests.faults import harness
from dhr_batch.tests.pipeline import discs

IDS = ["a.png", "b.png", "c.png", "sub/d.png", "sub/e.png"]
BROKEN = "z.png"
EDITS = {"edit": {"edits": [{"direction": "smile", "strengths": [-1, 0, 2]}]}}
PTI = {"refine": {"name": "pti", "steps": 2, "perceptual": "tiny"}}


def made(out: Path, **settings: Any) -> Path:
    """A finished run without Ray: planned, computed and committed as the driver does it."""
    request = Request(settings={"gpus": 0} | settings, out=out)
    planned = prepare(request)
    folder = RunFolder(place(planned, request))
    folder.lock()
    planned = resume.continued(folder, out, planned)
    if folder.plan() is None:
        folder.write_plan(planned.stored())
    compute(planned, folder)
    folder.unlock()
    return out


def compute(planned: Plan, folder: RunFolder) -> None:
    aligned, out = planned.dataset.aligned, folder.storage.address
    worker = Worker(Settings(planned.config, aligned, "", "cpu", out, truths=planned.truths))
    worker.setup()
    done = folder.recover()
    for shard in planned.shards:
        if shard.index not in done:
            receipt = worker.run_shard(shard, folder.new_attempt(shard.index, 1))
            folder.commit(shard.index, receipt, len(shard.items))


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("photographs")
    for seed, name in enumerate(IDS):
        pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)
        (folder / name).parent.mkdir(exist_ok=True)
        # Smooth, so that masks and codes differ from picture to picture.
        Image.fromarray(pixels).resize((64, 64), Image.Resampling.BICUBIC).save(folder / name)
    (folder / BROKEN).write_bytes(b"no picture")
    description = folder / "small.yaml"
    description.write_text(f"root: {folder}\naligned: true\nsplit: test\nextensions: [.png]\n")
    return str(description)


def whole(photographs: str, out: Path, **settings: Any) -> Path:
    plain = {"dataset": photographs, "preset": "tiny", "shard_size": 2} | EDITS
    return made(out, **plain | settings)


@pytest.fixture(scope="module")
def source(photographs: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return whole(photographs, tmp_path_factory.mktemp("runs") / "source")


@pytest.fixture
def copy(source: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(source, tmp_path / "copy"))


def unsealed(path: Path) -> dict[str, Any]:
    """The content of a record without its checksum, so that it may be changed."""
    content = json.loads(path.read_text())
    content.pop("sha256", None)
    return content


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


def refused(source: Path, first: str, message: str, **settings: Any) -> None:
    with pytest.raises(Refused, match=message):
        prepare(Request(settings={"dataset": str(source), "first_stage": first} | settings))


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


def test_the_command_sweeps_and_goes_on(copy: Path) -> None:
    words = ["edits", "sweep", copy, "--edit", "smile=-1:1:3", "--edit", "yaw=2", "--gpus", "0"]
    out = copy.with_name("copy-sweep")
    with harness.session():
        done = call(*words, "--limit", "3")
        assert "report/index.html" in done.output
        assert call(*words).exit_code == 2, "images were added"
        grown = call(*words, "--extend", "--set", "max_quarantined=0")
    assert grown.exit_code == 0, grown.output
    run = dhr_batch.open(out)
    assert run.ids == IDS
    assert run.plan["fingerprint"]["origin"] == dhr_batch.open(copy).plan["fingerprint"]
    named = [("smile", -1.0), ("smile", 0.0), ("smile", 1.0), ("yaw", 2.0)] * len(IDS)
    assert list(zip(run.edits["edit"], run.edits["strength"], strict=True)) == named
    stages = {"inverted", "refined", "edit:smile:-1", "edit:smile:0", "edit:smile:1", "edit:yaw:2"}
    assert set(run.metrics["stage"]) == stages
    page = (out / "report" / "index.html").read_text("utf-8")
    assert all(name in page for name in [*IDS, "begins at"])
    assert verify(out).problems == []
    for command in ("status", "verify"):
        assert call(command, out).exit_code == 0


def test_a_sweep_in_its_run_is_refused(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["edits", "sweep", copy, "--edit", "smile=1", "--gpus", "0"]
    for out in (copy, copy / "sweep"):
        done = call(*words, "--out", out)
        assert done.exit_code == 2
        assert "choose a" in done.output
    assert not (copy / "sweep").exists()
    monkeypatch.chdir(copy)
    started = {}
    monkeypatch.setattr(start, "start", lambda **asked: started.update(asked))
    assert call("edits", "sweep", ".", "--edit", "smile=1").exit_code == 0
    assert started["out"] == str(copy.with_name("copy-sweep"))
    assert started["settings"]["dataset"] == str(copy)


def test_the_command_that_goes_on_names_what_differs(source: Path, tmp_path: Path) -> None:
    settings = {"dataset": str(source), "first_stage": "refine", "refine": {"name": "none"}}
    out = made(tmp_path / "out", **settings)
    words = shlex.split(goes_on(dhr_batch.open(out).stored, str(out)))
    named = ["--dataset", str(source), "--gpus", "0", "--from", "refine"]
    assert words == ["dhr-batch", "run", *named, "--set", "refine.name=none", "--out", str(out)]
    again = call(*words[1:], "--dry-run")
    assert again.exit_code == 0, again.output
    assert "3 of 3 shards" in again.output


def call(*words: object) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


@pytest.mark.parametrize(
    ("texts", "edits"),
    [
        (["smile=-2:2:5"], {"smile": [-2, -1, 0, 1, 2]}),
        (["age.npy=-1,0.5,1"], {"age.npy": [-1, 0.5, 1]}),
        (["smile=-0.3:0.3:7"], {"smile": [-0.3, -0.2, -0.1, 0, 0.1, 0.2, 0.3]}),
        (["a=1:2:2,5", "b=1", "a=2,3"], {"a": [1, 2, 5, 3], "b": [1]}),
        (["set.npz#x=y=1"], {"set.npz#x=y": [1]}),
    ],
)
def test_strengths_are_read(texts: list[str], edits: dict[str, list[float]]) -> None:
    found = {e["direction"]: e["strengths"] for e in sweep.parse(tuple(texts))}
    assert found == edits


@pytest.mark.parametrize(
    "text",
    [
        *("smile", "=1", "smile=", "smile=x", "smile=1,", "smile=nan", "smile=1:2", "smile=1:2:1"),
        *("smile=1:2:2.5", "smile=1:2:3:4", "smile=0:inf:3"),
    ],
)
def test_other_strengths_are_refused(text: str) -> None:
    done = call("edits", "sweep", "nowhere", "--edit", text)
    assert done.exit_code == 2
    assert f"--edit {text!r}: it is not of the form NAME=STRENGTHS" in done.output

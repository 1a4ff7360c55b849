"""A run with HFGI on a narrow generator: its tables alone repeat its pictures and edits."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

import dhr_batch
from dhr_batch.pipeline.errors import Refused
from dhr_batch.pipeline.models.catalogue import ModelMissing
from dhr_batch.pipeline.planning import resume
from dhr_batch.pipeline.planning.prepare import check_models, place, prepare
from dhr_batch.pipeline.planning.request import Request
from dhr_batch.pipeline.runs.folder import RunFolder
from dhr_batch.pipeline.worker.settings import Settings
from dhr_batch.pipeline.worker.worker import Worker
from dhr_batch.stages.networks.generators import stylegan2_layouts
from dhr_batch.tests.stages import narrow
from dhr_batch.tests.stages.edit.test_ganspace import components

# 4 to 64 px, and the rows of its codes.
WIDTHS, ROWS = (16,) * 5, 10
IDS = ["a.png", "b.png", "c.png"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photographs, a generator, a direction and the files of users."""
    root = tmp_path_factory.mktemp("hfgi")
    (root / "files").mkdir()
    (root / "photographs").mkdir()
    for seed, name in enumerate(IDS):
        pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)
        picture = Image.fromarray(pixels).resize((64, 64), Image.Resampling.BICUBIC)
        picture.save(root / "photographs" / name)
    text = f"root: {root / 'photographs'}\naligned: true\nextensions: [.png]\n"
    (root / "small.yaml").write_text(text)
    stylegan2_layouts.save(narrow.stylegan2(WIDTHS), root / "narrow.safetensors", {})
    np.save(root / "push.npy", np.random.default_rng(1).normal(size=512).astype(np.float32))
    torch.save(narrow.hfgi(16, ROWS), root / "files" / "hfgi_ffhq_official.pt")
    torch.save(components(), root / "files" / "ffhq_pca.pt")
    return root


def request(folder: Path) -> Request:
    settings = {
        "dataset": str(folder / "small.yaml"),
        "preset": "tiny",
        "gpus": 0,
        "shard_size": 2,
        "generator": str(folder / "narrow.safetensors"),
        "embed": {"name": "e4e", "model": "hfgi-ffhq"},
        "refine": "hfgi",
        "edit": {
            "edits": [
                {"direction": str(folder / "push.npy"), "strengths": [-1, 0, 2]},
                {"direction": "eyes", "strengths": [0, 20]},
            ]
        },
    }
    return Request(settings=settings, out=folder / "run")


@pytest.fixture(scope="module")
def made(folder: Path) -> Path:
    """A finished run without Ray: planned, computed and committed as the driver does it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DHR_BATCH_HOME", str(folder))
        asked = request(folder)
        planned = prepare(asked)
        check_models(planned, asked)
        run = RunFolder(place(planned, asked))
        run.lock()
        run.write_plan(planned.stored())
        out = run.storage.address
        worker = Worker(Settings(planned.config, planned.dataset.aligned, "", "cpu", out))
        worker.setup()
        for shard in planned.shards:
            receipt = worker.run_shard(shard, run.new_attempt(shard.index, 1))
            run.commit(shard.index, receipt, len(shard.items))
        run.unlock()
        yield folder / "run"


def test_tables_alone_repeat_pictures_and_edits(made: Path, folder: Path) -> None:
    run = dhr_batch.open(made)
    assert run.ids == IDS
    refined = run.images("refined")
    edits = {str(folder / "push.npy"): 2.0, "eyes": 0.0}
    for image_id in IDS:
        again = run.render(image_id).refined
        assert again is not None
        assert np.abs(again.astype(int) - refined[image_id]).max() <= 1
        push, eyes = run.render(image_id, edits).edits
        assert np.abs(push.image.astype(int) - run.edited("push", 2.0)[image_id]).max() <= 1
        assert np.abs(eyes.image.astype(int) - run.edited("eyes", 0.0)[image_id]).max() <= 1
        assert np.abs(push.image.astype(int) - refined[image_id]).mean() > 1
        np.testing.assert_array_equal(run.edited("push", 0.0)[image_id], refined[image_id])


def test_the_residual_is_all_that_is_stored(made: Path) -> None:
    rows = [row for path in made.glob("deltas/*") for row in pq.read_table(path).to_pylist()]
    assert [row["tensor"] for row in rows] == ["residual"] * len(IDS)
    assert {(row["kind"], row["dtype"], tuple(row["shape"])) for row in rows} == {
        ("state", "float16", (3, 256, 256))
    }
    # 393 kB of numbers, less by compression; maps of the features would be 17 MB.
    assert all(len(row["data"]) <= 2 * 3 * 256 * 256 + 100 for row in rows)


def test_another_file_of_the_user_is_refused(
    made: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    shutil.copytree(folder / "files", home / "files")
    monkeypatch.setenv("DHR_BATCH_HOME", str(home))
    other = narrow.hfgi(16, ROWS)
    other["state_dict"]["residue.condition_scale3.0.bias"] += 1
    torch.save(other, home / "files" / "hfgi_ffhq_official.pt")
    with pytest.raises(Refused, match="made with other weights of hfgi-ffhq"):
        dhr_batch.open(made).render(IDS[0])
    begun = {"dataset": str(made), "first_stage": "edit", "gpus": 0}
    with pytest.raises(Refused, match="made with other weights of hfgi-ffhq"):
        prepare(Request(settings=begun, out=tmp_path / "sweep"))
    again = request(folder)
    planned = prepare(again)
    with pytest.raises(Refused, match=r"models\.hfgi-ffhq: \w{16} -> \w{16}"):
        resume.continued(RunFolder(place(planned, again)), folder / "run", planned)


def test_a_missing_file_is_reported_before_the_run(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DHR_BATCH_HOME", str(tmp_path))
    asked = request(folder)
    with pytest.raises(ModelMissing, match=r"pull ganspace-ffhq --file ffhq_pca\.pt"):
        check_models(prepare(asked), asked)

"""The tiny generator through the whole pipeline on Ray: outcome, resume, refusal, interruption."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image
from skimage import data

import dhr_batch
from dhr_batch.cli import main
from dhr_batch.pipeline.engine import runner
from dhr_batch.pipeline.engine.progress import Progress, RunCounters
from dhr_batch.pipeline.report import write
from dhr_batch.pipeline.storage.connect import connect
from dhr_batch.pipeline.tables import codec
from dhr_batch.stages.edit.rerender import Rerender
from dhr_batch.stages.networks.generators import stylegan2_layouts
from dhr_batch.stages.networks.generators.stylegan2 import StyleGAN2
from dhr_batch.stages.record import required
from dhr_batch.tests.faults import driven
from dhr_batch.tests.pipeline.noise import noisy

IDS = ["astronaut.png", "sub/gespiegelt ä.jpg"]


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two faces, one file that is no picture, one picture without a face."""
    folder = tmp_path_factory.mktemp("photographs")
    (folder / "sub").mkdir()
    face = Image.fromarray(data.astronaut())
    face.save(folder / IDS[0])
    face.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(folder / IDS[1])
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 not a picture")
    Image.fromarray(data.coffee()).save(folder / "coffee.jpg")
    return folder


@pytest.fixture(scope="module")
def words(photographs: Path) -> list[str]:
    np.save(photographs / "direction.npy", np.ones(512, np.float32))
    edits = f"edit.edits=[{{direction: {photographs / 'direction.npy'}, strengths: [-1, 1]}}]"
    options = ["--dataset", str(photographs), "--preset", "tiny", "--gpus", "0", "--set", edits]
    # On noise of random weights, all is out-of-domain, and the rounding of weights turns the flow.
    options += ["--set", "measure.features=tiny", "--set", "edit.rows=all"]
    options += ["--set", "edit.follow=none"]
    return [*options, "--set", "shard_size=2", "--json"]


def dhr(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "dhr_batch.cli", "run", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=900)


def without_ray(*words: str) -> Result:
    with driven.without_ray():
        return CliRunner().invoke(main, ["run", *words])


@pytest.fixture(scope="module")
def finished(
    words: list[str], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any], str]:
    out = tmp_path_factory.mktemp("run") / "out"
    done = dhr(*words, "--out", str(out))
    assert done.returncode == 0, done.stderr
    return out, json.loads(done.stdout), done.stderr


def published(out: Path) -> dict[str, bytes]:
    return {str(p.relative_to(out)): p.read_bytes() for p in sorted(out.glob("*/part-*.parquet"))}


def test_every_image_is_in_the_tables_or_in_quarantine(
    finished: tuple[Path, dict[str, Any], str],
) -> None:
    out, outcome, said = finished
    run = dhr_batch.open(out)
    assert run.ids == IDS
    assert dict(zip(run.quarantine["image_id"], run.quarantine["stage"], strict=True)) == {
        "broken.jpg": "align",
        "coffee.jpg": "align",
    }
    assert outcome | {"seconds": 0} == {
        "out": str(out),
        "images": 4,
        "done": 2,
        "quarantined": 2,
        "exit_code": 0,
        "seconds": 0,
        "report": str(out / "report" / "index.html"),
    }
    assert (out / "report" / "index.html").stat().st_size > 1000
    assert "\x1b" not in said
    assert re.search(r"first image: .*; about .* left", said)
    assert "free space" in said
    assert not (out / "_staging").exists()


def test_the_tables_render_the_pictures_of_the_run_again(
    finished: tuple[Path, dict[str, Any], str], photographs: Path
) -> None:
    run = dhr_batch.open(finished[0])
    generator, steps = run.networks.network("generator", "tiny"), codec.LEVELS["small"]

    def distance(one: np.ndarray, other: np.ndarray) -> float:
        return float(np.abs(one.astype(float) - other).mean())

    for image_id in IDS:
        made = run.images("refined")[image_id]
        again = required(run.render(image_id).refined)
        # Within what the codec rounds, and nearer than without the refinement. Known noise of the
        # size of its rounding gives the distance to be expected; half as much again is left for
        # what noise varies from draw to draw.
        known = required(
            Rerender(run.networks)(noisy(run.record(image_id), generator, steps)).refined
        )
        assert distance(again, made) < 1.5 * distance(known, again)
        assert distance(again, made) < 0.5 * distance(run.images("inverted")[image_id], made)
        made = run.edited("direction", 1.0)[image_id]
        (edit,) = run.render(image_id, {str(photographs / "direction.npy"): 1.0}).edits
        assert distance(edit.image, made) < 0.1 * distance(run.images("refined")[image_id], made)


def test_all_stages_leave_their_rows(finished: tuple[Path, dict[str, Any], str]) -> None:
    run = dhr_batch.open(finished[0])
    for kind in ("aligned", "inverted", "refined"):
        assert [p.shape for p in run.images(kind).values()] == [(32, 32, 3)] * 2
    assert len(run.edits) == 4
    assert set(run.metrics["stage"]) >= {"inverted", "refined"}
    assert run.delta(IDS[0]).keys() >= {"layers.1.conv1.weight", "feature"}
    assert run.masks[IDS[0]].dtype == bool
    wide = run.metrics_wide()
    assert np.isfinite(wide["psnr"]).all()
    kinds = ["aligned", "inverted", "refined", "edit:direction:-1", "edit:direction:1"]
    assert run.table("features")["kind"].to_pylist() == kinds * 2
    page = (finished[0] / "report" / "metrics.md").read_text("utf-8")
    rows = re.findall(r"\| (\S+) +\| frechet_tiny \| \S+ \| 2 \| (.*) \|", page)
    assert rows == [
        (kind, "tiny (random weights); generator=tiny (random weights)") for kind in kinds[1:]
    ]


def test_the_same_command_again_has_nothing_to_do(
    words: list[str], finished: tuple[Path, dict[str, Any], str]
) -> None:
    out = finished[0]
    before = published(out)
    again = without_ray(*words, "--out", str(out), "--no-report")
    assert again.exit_code == 0, again.stderr
    assert "nothing to do" in again.stderr
    assert published(out) == before


def test_other_settings_are_refused(
    words: list[str], finished: tuple[Path, dict[str, Any], str]
) -> None:
    refused = without_ray(*words, "--out", str(finished[0]), "--set", "embed.steps=3")
    assert refused.exit_code == 2
    assert "embed.steps: 2 -> 3" in refused.stderr
    assert "--out" in refused.stderr


def test_lost_shard_is_made_again_with_the_same_bytes(
    words: list[str], finished: tuple[Path, dict[str, Any], str]
) -> None:
    out = finished[0]
    before = published(out)
    (out / "_state" / "shards" / "00001.json").unlink()
    for path in out.glob("*/part-00001.parquet"):
        path.unlink()
    budget = dhr(*words, "--out", str(out), "--no-report", "--set", "max_quarantined=0.1")
    assert budget.returncode == 3, budget.stderr
    assert "resuming: 1 shards are finished" in budget.stderr
    assert published(out) == before


def test_a_converted_generator_goes_through_all_stages(
    words: list[str], photographs: Path, tmp_path: Path
) -> None:
    net, draw = StyleGAN2((8, 6, 5, 4), mapping_layers=2), torch.Generator().manual_seed(0)
    for tensor in stylegan2_layouts.named_tensors(net).values():
        tensor.data.copy_(0.5 * torch.randn(tensor.shape, generator=draw))
    file, out = tmp_path / "mine.safetensors", tmp_path / "run"
    stylegan2_layouts.save(net, file, {})
    options = [*words, "--set", f"generator={file}", "--limit", "1", "--out", str(out)]
    options += ["--set", "segment.source=projection", "--set", "segment.coarse_steps=2"]
    done = without_ray(*options)
    assert done.exit_code == 0, done.stderr
    run = dhr_batch.open(str(out))
    assert run.ids == IDS[:1]
    assert run.latents[IDS[0]].shape == (net.num_ws, 512)
    assert run.images("refined")[IDS[0]].shape == (32, 32, 3)
    assert {"convs.2.weight", "to_rgbs.2.weight"} <= set(run.delta(IDS[0]))
    models = pq.read_table(out / "metrics", columns=["model"])["model"].to_pylist()
    assert all(model.endswith("generator=mine") for model in models)

    with torch.no_grad():
        net.weight("input").add_(1)
    stylegan2_layouts.save(net, file, {})
    again = without_ray(*options)
    assert again.exit_code == 2
    assert "models.mine" in again.stderr


@pytest.mark.parametrize("error", [OSError("the disk is away"), ZeroDivisionError("a bug")])
def test_a_finished_run_does_not_fail_through_its_report(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
) -> None:
    def fails(_: object) -> str:
        raise error

    monkeypatch.setattr(write, "write_report", fails)
    progress = Progress(RunCounters(total=0, shards=0), "none", quiet=False)
    assert runner._report(connect(tmp_path), progress) is None
    assert f"no report: {type(error).__name__}: {error}" in capsys.readouterr().err
    assert "Traceback" in caplog.text

"""A run with HyperStyle: its tables hold codes, from which its pictures are rendered again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import dhr_batch
from dhr_batch.cli import main
from dhr_batch.stages.networks.generators import stylegan2_layouts as layouts
from dhr_batch.tests.faults import driven
from dhr_batch.tests.pipeline.conftest import picture
from dhr_batch.tests.stages import narrow

WIDTHS = (16, 16, 16, 16, 8)


def test_pictures_and_edits_are_rendered_again_from_codes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, photographs, out = tmp_path / "home", tmp_path / "photographs", tmp_path / "run"
    (home / "files").mkdir(parents=True)
    torch.save(narrow.w_encoder(), home / "files" / "faces_w_encoder.pt")
    torch.save(narrow.hyperstyle(WIDTHS), home / "files" / "hyperstyle_ffhq.pt")
    layouts.save(narrow.stylegan2(WIDTHS), tmp_path / "narrow.safetensors", {})
    np.save(tmp_path / "move.npy", np.random.default_rng(0).normal(size=512).astype(np.float32))
    photographs.mkdir()
    for seed in range(3):
        picture(photographs / f"{seed}.png", seed)
    (tmp_path / "made.yaml").write_text(f"name: made\nroot: {photographs}\naligned: true\n")
    settings = {
        "generator": tmp_path / "narrow.safetensors",
        "embed.name": "w-encoder",
        "refine.name": "hyperstyle",
        "refine.passes": 3,
        "edit.edits": f"[{{direction: {tmp_path / 'move.npy'}, strengths: [2]}}]",
        "workers": 1,
    }
    words = ["run", "--dataset", tmp_path / "made.yaml", "--preset", "tiny", "--gpus", "0"]
    words += [w for k, v in settings.items() for w in ("--set", f"{k}={v}")]
    monkeypatch.setenv("DHR_BATCH_HOME", str(home))
    with driven.without_ray():
        done = CliRunner().invoke(main, [*map(str, words), "--out", str(out), "--no-report"])
    assert done.exit_code == 0, done.output

    run = dhr_batch.open(out)
    refined, inverted = run.images("refined"), run.images("inverted")
    (name,) = {row["edit_name"] for row in run.table("images").to_pylist() if row["edit_name"]}
    edited = run.edited(name, 2)
    for image_id in run.ids:
        record = run.record(image_id)
        assert record.delta == {}
        assert record.state is not None
        assert {k: (v.shape, v.dtype.name) for k, v in record.state.items()} == {
            "codes": ((9, 32), "float32"),
            "passes": ((1,), "uint8"),
        }
        again = run.render(image_id).refined
        moved = run.render(image_id, {str(tmp_path / "move.npy"): 2}).edits[0].image
        # A batch of another size rounds differently.
        assert np.abs(again.astype(int) - refined[image_id]).max() <= 1
        assert np.abs(moved.astype(int) - edited[image_id]).max() <= 1
        assert np.abs(refined[image_id].astype(int) - inverted[image_id]).mean() > 5
        assert np.abs(edited[image_id].astype(int) - refined[image_id]).mean() > 1

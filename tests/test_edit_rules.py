"""The benchmark of rules of edits, on the tiny generator and on made rows."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from dhr_batch.benchmarks import edit_rules
from dhr_batch.stages.edit.scene import seen
from dhr_batch.stages.motion import SIDE, Motion
from dhr_batch.stages.networks.parsers.face_parts import INDEX
from dhr_batch.stages.tensors import tensor_to_images
from dhr_batch.tests.stages.edit import test_rows_and_motion as edited


def test_rules_are_compared_on_faces_whose_edits_are_known(tmp_path: Path) -> None:
    np.save(tmp_path / "push.npy", np.random.default_rng(0).normal(size=512).astype(np.float32))
    file, strips = tmp_path / "found.json", tmp_path / "strips"
    words = ["--preset", "tiny", "--faces", "1", "--edit", str(tmp_path / "push.npy")]
    words += ["--strength", "2", "--json", str(file), "--pictures", str(strips)]
    result = CliRunner().invoke(edit_rules.main, words)
    assert result.exit_code == 0, result.output
    found = json.loads(file.read_text())
    assert [row["rule"] for row in found["rows"]] == list(edit_rules.RULES)
    rows = {row["rule"]: row for row in found["rows"]}
    # A rule that edits other rows than the truth is not compared with it.
    assert "truth_psnr" not in rows["all rows"]
    for rule in ("fixed", "warp", "layers"):
        assert 5 < rows[rule]["truth_psnr"] < 60
        assert rows[rule]["truth_st_lpips"] > 0
    assert len({row["truth_psnr"] for row in found["rows"][1:]}) > 1
    (strip,) = strips.glob("*.png")
    assert strip.name == "face-0-0.push.2.png"


def test_truth_and_motion_are_those_of_the_edited_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    push = np.random.default_rng(0).normal(size=512).astype(np.float32)
    np.save(tmp_path / "push.npy", push)
    context = edited.context_of()
    net = context.network("generator", "tiny")
    compared = edit_rules.Compared(context, (str(tmp_path / "push.npy"),), (2.0,), "tiny", False)
    code = np.random.default_rng(1).normal(size=512).astype(np.float32)
    ws = net.broadcast(torch.from_numpy(code)[None]).clone()
    ws[:, net.trunk_rows] += 2 * torch.from_numpy(push)
    expected = tensor_to_images(net.synthesize(ws))[0]
    np.testing.assert_allclose(compared._truth(code, 0).astype(int), expected, atol=1)

    monkeypatch.setattr("dhr_batch.stages.motion.motion", lambda *pictures: pictures)
    record = edited.record(context)
    before, after, _ = compared._motion(record, ws[0].numpy())  # type: ignore[misc]
    own = torch.from_numpy(record.latent)[None]
    for found, plain in ((before, own), (after, ws)):
        (known,) = seen(net.synthesize(plain))
        np.testing.assert_allclose(found.astype(int), known, atol=1)


def test_means_count_effects_towards_the_strength_and_leave_capped_edits_out() -> None:
    about = {"image": "a", "edit": "yaw", "rule": "layers", "capped": False}
    rows = [
        about | {"strength": -2.0, "effect": -20.0, "ghost": 0.1},
        about | {"strength": 2.0, "effect": 10.0},
        about | {"strength": 3.0, "effect": 99.0, "ghost": 9.0, "capped": True},
    ]
    line = next(line for line in edit_rules.summary(rows) if line["rule"] == "layers")
    assert (line["pictures"], line["capped"]) == (2, 1)
    assert (line["effect"], line["ghost"]) == (15, 0.1)
    assert line["truth_psnr"] is None


def test_the_colour_of_the_skin_is_compared_where_the_skin_is() -> None:
    labels = np.zeros((SIDE, SIDE), np.uint8)
    labels[100:150, 60:120] = INDEX["face"]
    shift = 40
    there = np.roll(labels, shift, 1)
    refined, edited = np.full((2, SIDE, SIDE, 3), 90, np.uint8)
    refined[labels > 0], edited[there > 0] = (200, 150, 130), (200, 150, 130)
    flow = np.broadcast_to(np.float32([-shift, 0]), (SIDE, SIDE, 2)).copy()
    moved = Motion(flow, flow, flow, labels > 0, (there > 0).astype(np.float32))
    same = edit_rules._skin(refined, edited, labels, moved)
    assert same["skin_chroma"] == pytest.approx(0, abs=0.1)
    edited[there > 0] = (200, 150, 60)
    assert edit_rules._skin(refined, edited, labels, moved)["skin_chroma"] > 20
    assert edit_rules._skin(refined, edited, labels & 0, moved) == {}


def test_what_moves_is_left_out_where_nothing_moves() -> None:
    flow = np.zeros((SIDE, SIDE, 2), np.float32)
    flow[:, :100] = 3
    here = np.zeros((SIDE, SIDE), bool)
    moved = Motion(flow, flow, flow, here, here.astype(np.float32))
    source = np.full((2 * SIDE, 2 * SIDE, 3), 90, np.uint8)
    edited = source.copy()
    edited[:, :220] = 0
    assert edit_rules._still(source, edited, moved)["still_psnr"] > 58
    edited[:, 230:] += 1
    assert edit_rules._still(source, edited, moved)["still_psnr"] == pytest.approx(48.13, abs=0.1)
    flow[:] = 3
    assert edit_rules._still(source, edited, moved) == {}

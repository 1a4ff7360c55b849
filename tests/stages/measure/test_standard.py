"""The rows of the stage: which there are, of what, and by which network."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import pytorch_msssim
import torch
from pydantic import ValidationError

from dhr_batch.stages import registry
from dhr_batch.stages.context import Context
from dhr_batch.stages.measure.standard import Standard
from dhr_batch.stages.record import EditedImage, Record
from dhr_batch.stages.tensors import images_to_tensor
from dhr_batch.tests.stages.pictures import blurred, grey, noise


def record(seed: int) -> Record:
    mask = np.zeros((32, 32), bool)
    mask[8:] = True
    refined = noise(seed + 2)
    edited = refined.copy()
    edited[8:] = 255 - edited[8:]
    edit = EditedImage("smile", -1.50, "0" * 64, np.zeros((8, 512), np.float32), edited)
    return Record(
        str(seed),
        "",
        image=noise(seed),
        inverted=noise(seed + 1),
        refined=refined,
        mask=mask,
        edits=(edit,),
    )


def no_models(name):
    raise AssertionError(f"asked for {name}")


@pytest.fixture
def tiny() -> Standard:
    options = Standard.Options(perceptual=("tiny",), identity="none", landmarks="none")
    stage = Standard(options)
    stage.setup(Context("cpu", "tiny", no_models))
    return stage


def test_rows_of_a_run_without_models(tiny):
    (done,) = tiny.run([record(0)])
    assert done.failure is None
    rows = {(m.stage, m.metric): m for m in done.metrics}
    assert len(rows) == len(done.metrics)
    names = {"psnr", "psnr_ganinverter", "mse", "ssim", "st_tiny_alex"}
    names |= {f"{n}_{part}" for n in names for part in ("in", "out")}
    changes = {"change_in", "change_out"}
    assert {s for s, _ in rows} == {"inverted", "refined", "edit:smile:-1.5"}
    assert {m for s, m in rows if s == "inverted"} == names
    assert {m for s, m in rows if s == "edit:smile:-1.5"} == names | changes
    assert rows["edit:smile:-1.5", "change_out"].value == 0
    assert rows["edit:smile:-1.5", "change_in"].value > 0.1
    assert rows["refined", "psnr"].value == pytest.approx(
        10 * math.log10(4 / np.square((noise(0) - noise(2).astype(float)) / 127.5).mean())
    )
    assert rows["refined", "psnr"].model == "generator=tiny (random weights)"
    assert rows["refined", "st_tiny_alex_in"].model == (
        "st_tiny_alex (random weights); generator=tiny (random weights)"
    )


def test_rows_do_not_depend_on_the_batch(tiny):
    together = tiny.run([record(0), record(10), record(20)])
    alone = [tiny.run([record(seed)])[0] for seed in (0, 10, 20)]
    assert [r.metrics for r in together] == [r.metrics for r in alone]


def test_degenerate_masks_are_legal(tiny):
    full = record(0)
    for value, missing in ((True, "_out"), (False, "_in")):
        full.mask[:] = value
        (done,) = tiny.run([full])
        assert done.failure is None
        assert not any(m.metric.endswith(missing) for m in done.metrics)


def measured(record: Record, models=no_models, **options) -> Record:
    """The record, measured by a stage without faces on the CPU."""
    stage = Standard(Standard.Options(identity="none", landmarks="none", **options))
    stage.setup(Context("cpu", "tiny", models))
    (done,) = stage.run([record])
    assert done.failure is None, done.failure
    return done


def test_large_pictures_are_compared_at_the_stated_and_at_full_size():
    checkers = np.tile(np.array([[0, 255], [255, 0]], np.uint8)[..., None], (32, 32, 3))
    mask = np.zeros((64, 64), bool)
    mask[:16] = True
    images = {"image": grey(0, 64), "inverted": grey(255, 64), "refined": checkers}
    edit = EditedImage("smile", 1, "0" * 64, np.zeros((8, 512), np.float32), checkers)
    big = Record("a", "", **images, mask=mask, edits=(edit,))
    done = measured(big, perceptual="tiny", size=32)
    rows = {(m.stage, m.metric): m for m in done.metrics}
    for metric, size in (("psnr", 32), ("psnr_64", 64), ("psnr_64_out", 64)):
        assert rows["inverted", metric].value == pytest.approx(0, abs=1e-12)
        assert rows["inverted", metric].model == f"generator=tiny (random weights); at {size} px"
    # Half of the pixels differ by 2; averaged over 2 x 2, all do by about 1.
    assert rows["refined", "mse_64"].value == pytest.approx(2)
    assert rows["refined", "mse"].value == pytest.approx(1, abs=0.02)
    wanted = {"psnr", "psnr_ganinverter", "mse", "ssim", "st_tiny_alex"}
    assert {m for s, m in rows if s == "refined"} == {
        f"{metric}{size}{part}"
        for metric in wanted
        for size in ("", "_64")
        for part in ("", "_in", "_out")
    }
    assert not any("_64" in m for s, m in rows if s.startswith("edit:"))


def test_ms_ssim_has_rows_from_161_px():
    a, b = blurred(0, 176)
    mask = np.zeros((176, 176), bool)
    mask[60:] = True
    done = measured(Record("a", "", image=a, inverted=b, refined=a, mask=mask), perceptual="none")
    rows = {(m.stage, m.metric): m.value for m in done.metrics}
    assert rows["refined", "ms_ssim"] == pytest.approx(1)
    x, y = (torch.from_numpy(i.astype(np.float64)).permute(2, 0, 1)[None] for i in (a, b))
    expected = pytorch_msssim.ms_ssim(x, y, data_range=255).item()
    assert rows["inverted", "ms_ssim"] == pytest.approx(expected, abs=2e-6)
    assert 0 < rows["inverted", "ms_ssim_in"] < 1


def test_lpips_of_both_backbones_can_be_chosen(tmp_path):
    draw = torch.Generator().manual_seed(0)
    widths = {"alex": (64, 192, 384, 256, 256), "vgg": (64, 128, 256, 512, 512)}
    sizes = {"alex": (11, 5, 3, 3, 3), "vgg": (3,) * 13}
    places = {
        "alex": (0, 3, 6, 8, 10),
        "vgg": (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28),
    }
    counts = {"alex": (1,) * 5, "vgg": (2, 2, 3, 3, 3)}
    for net, outs in widths.items():
        convs = [out for out, n in zip(outs, counts[net], strict=True) for _ in range(n)]
        backbone: dict[str, torch.Tensor] = {}
        for i, out, inp, k in zip(places[net], convs, (3, *convs), sizes[net], strict=False):
            weight = torch.randn(out, inp, k, k, generator=draw) / (inp * k**2) ** 0.5
            backbone |= {f"features.{i}.weight": weight, f"features.{i}.bias": torch.zeros(out)}
        linear = {f"lin{i}.model.1.weight": torch.ones(1, n, 1, 1) for i, n in enumerate(outs)}
        torch.save(backbone, tmp_path / f"lpips-{net}-backbone")
        torch.save(linear, tmp_path / f"lpips-{net}")
    names = ("lpips_alex", "lpips_vgg")
    done = measured(record(0), tmp_path.joinpath, perceptual=names)
    context = Context("cpu", "tiny", tmp_path.joinpath)
    for name in names:
        package = context.network("lpips", name).network
        expected = package(images_to_tensor([noise(2)]), images_to_tensor([noise(0)])).item()
        (found,) = [m for m in done.metrics if (m.stage, m.metric) == ("refined", name)]
        assert found.value == pytest.approx(expected)
        assert found.model == f"{name}; generator=tiny (random weights)"


def test_features_of_every_picture_are_kept(tiny):
    done = measured(record(0), perceptual="none", features="tiny")
    network = tiny.context.network("perceptual", "tiny")
    assert [f.kind for f in done.features] == ["aligned", "inverted", "refined", "edit:smile:-1.5"]
    for feature, seed in zip(done.features, (0, 1, 2), strict=False):
        expected = network.pooled(images_to_tensor([noise(seed)]))[0].numpy()
        assert feature.extractor == "tiny"
        assert feature.vector.dtype == np.float32
        np.testing.assert_allclose(feature.vector, expected, rtol=1e-5)
    assert tiny.run([record(0)])[0].features == ()


class Faces:
    """Landmarks of a drawn smile: the wider, the brighter the picture. Black shows no face."""

    def __init__(self) -> None:
        self.points = np.random.default_rng(0).uniform(0, 32, (68, 2))
        self.points[36:42, 0], self.points[42:48, 0] = 8, 24
        self.points[[36, 42], 0] -= 2
        self.points[[39, 45], 0] += 2

    def locate(self, rgb):
        return np.zeros(4), "hog" if rgb.any() else "ffhq"

    def sees(self, rgb):
        return self.locate(rgb)[1] == "hog"

    def find(self, rgb, box=None):
        points = self.points.copy()
        points[48], points[54] = (16 - rgb.mean() / 32, 24), (16 + rgb.mean() / 32, 24)
        return points


class Descriptions:
    """Where no picture shows a face to dlib, there are no landmarks to cut it out by."""

    label = "dlib-face-resnet"

    def describe(self, portraits):
        return [
            None if p.landmarks is None else np.array([1.0, p.rgb.mean() / 255]) for p in portraits
        ]


class Brightness:
    """Finds a face in what is brighter than `darkest`; orthogonal at grey level 255."""

    label = "brightness, whole picture"

    def __init__(self, darkest: float) -> None:
        self.darkest = darkest

    def describe(self, portraits):
        found = []
        for level in (portrait.rgb.mean() for portrait in portraits):
            turn = level / 255 * np.pi / 2
            visible = level > self.darkest
            found.append(np.array([np.cos(turn), np.sin(turn)]) if visible else None)
        return found


@pytest.fixture
def with_faces() -> Standard:
    stage = Standard(Standard.Options(perceptual=(), scores="landmarks"))
    context = Context("cpu", "mobilestylegan-256", no_models)
    context._networks[("landmarks", "dlib68")] = Faces()
    context._networks[("identity", "dlib")] = Descriptions()
    stage.setup(context)
    return stage


def face_record(source: int, edited: int) -> Record:
    edit = EditedImage("smile", 2, "0" * 64, np.zeros((23, 512), np.float32), grey(edited))
    images = {"image": grey(source), "inverted": grey(51), "refined": grey(102)}
    return Record("a", "", **images, mask=np.ones((32, 32), bool), edits=(edit,))


def test_identity_scores_and_effect(with_faces):
    (done,) = with_faces.run([face_record(51, 204)])
    rows = {(m.stage, m.metric): m for m in done.metrics}
    assert rows["inverted", "identity_dlib_distance"].value == 0
    assert rows["inverted", "identity_dlib_cosine"].value == pytest.approx(1)
    assert rows["refined", "identity_dlib_distance"].value == pytest.approx(0.2)
    assert rows["refined", "identity_dlib_distance"].model == (
        "dlib-face-resnet; generator=mobilestylegan-256"
    )
    assert ("source", "identity_dlib_distance") not in rows
    assert ("source", "realism") not in rows
    for stage in ("inverted", "refined", "edit:smile:2"):
        # Grey pictures have no structure to lose.
        assert rows[stage, "realism"].value == 0
        assert rows[stage, "realism"].model == "dlib-landmarks68; generator=mobilestylegan-256"
    assert rows["source", "score_smile"].model == "dlib-landmarks68"
    assert rows["edit:smile:2", "score_smile"].value == done.edits[0].effect["smile"]
    assert done.edits[0].effect["smile"] > rows["refined", "score_smile"].value
    assert done.notes == ()


def test_a_render_without_a_face_is_noted(with_faces):
    (done,) = with_faces.run([face_record(51, 0)])
    assert done.failure is None
    assert done.notes == (
        "measure: no face found in edit:smile:2: no scores_landmarks, identity_dlib, realism",
    )
    assert done.edits[0].effect == {}
    edited = {m.metric for m in done.metrics if m.stage == "edit:smile:2"}
    assert "psnr" in edited
    assert not any(name.startswith(("identity", "score", "realism")) for name in edited)


def test_notes_are_in_the_order_of_the_stages():
    stage = Standard(Standard.Options(perceptual=(), identity=(), scores=()))
    context = Context("cpu", "mobilestylegan-256", no_models)
    context._networks[("landmarks", "dlib68")] = Faces()
    stage.setup(context)
    black = face_record(51, 0)
    edits = tuple(replace(black.edits[0], strength=strength) for strength in range(1, 8))
    (done,) = stage.run([replace(black, edits=edits)])
    assert done.notes == tuple(
        f"measure: no face found in edit:smile:{n}: no realism" for n in range(1, 8)
    )


class Redness:
    """Scores what landmarks do not; sees no face in black."""

    label = "redness, whole picture"

    def __init__(self, *names: str) -> None:
        self.names = names

    def score(self, portrait):
        level = float(portrait.rgb.mean())
        return dict.fromkeys(self.names, level) if level else None


def with_scorer(*names: str) -> Standard:
    stage = Standard(Standard.Options(perceptual=(), scores=("landmarks", "a.b:Redness")))
    context = Context("cpu", "mobilestylegan-256", no_models)
    context._networks[("landmarks", "dlib68")] = Faces()
    context._networks[("identity", "dlib")] = Descriptions()
    context._networks[("scores", "a.b:Redness")] = Redness(*names)
    stage.setup(context)
    return stage


def test_a_scorer_of_ones_own_has_rows_and_effects():
    (done,) = with_scorer("red").run([face_record(51, 204)])
    rows = {(m.stage, m.metric): m for m in done.metrics}
    assert rows["source", "score_red"].value == 51
    assert rows["source", "score_red"].model == "redness, whole picture"
    assert rows["edit:smile:2", "score_red"].value == 204
    assert rows["edit:smile:2", "score_red"].model.endswith("; generator=mobilestylegan-256")
    assert done.edits[0].effect["red"] == 204
    assert done.edits[0].effect["smile"] == rows["edit:smile:2", "score_smile"].value
    (done,) = with_scorer("red").run([face_record(51, 0)])
    assert "no scores_landmarks, scores_a.b:Redness, identity_dlib" in done.notes[0]


def test_two_scorers_of_one_name_are_refused():
    with pytest.raises(ValueError, match=r"'landmarks' and 'a\.b:Redness' both give a score 'yaw'"):
        with_scorer("red", "yaw")


@pytest.fixture
def with_two() -> Callable[[float], Standard]:
    """Two identity networks; the second finds no face in what is darker than asked for."""

    def make(darkest: float) -> Standard:
        stage = Standard(
            Standard.Options(perceptual=(), identity=("dlib", "curricularface"), scores="landmarks")
        )
        context = Context("cpu", "mobilestylegan-256", no_models)
        context._networks[("landmarks", "dlib68")] = Faces()
        context._networks[("identity", "dlib")] = Descriptions()
        context._networks[("identity", "curricularface")] = Brightness(darkest)
        stage.setup(context)
        return stage

    return make


def test_several_identity_networks_report_under_their_names(with_two):
    (done,) = with_two(0).run([face_record(255, 1)])
    rows = {(m.stage, m.metric): m for m in done.metrics}
    angle = (255 - 102) / 255 * math.pi / 2
    row = rows["refined", "identity_curricularface_cosine"]
    assert row.value == pytest.approx(math.cos(angle))
    assert row.model == "brightness, whole picture; generator=mobilestylegan-256"
    assert ("refined", "identity_dlib_cosine") in rows
    assert ("refined", "identity_curricularface_distance") not in rows
    assert done.notes == ()


def test_a_face_that_one_network_misses_is_noted_for_it(with_two):
    (done,) = with_two(60).run([face_record(255, 204)])
    assert done.notes == ("measure: no face found in inverted: no identity_curricularface",)
    stages = {m.stage for m in done.metrics if m.metric == "identity_curricularface_cosine"}
    assert stages == {"refined", "edit:smile:2"}
    (done,) = with_two(60).run([face_record(51, 204)])
    assert done.notes == (
        "measure: no face found in source: no identity_curricularface of any picture",
    )
    assert not any("curricularface" in m.metric for m in done.metrics)
    assert ("refined", "identity_dlib_cosine") in {(m.stage, m.metric) for m in done.metrics}


def test_unknown_networks_are_refused_by_name():
    for family in ("perceptual", "identity", "features", "scores"):
        with pytest.raises(ValidationError, match=f"unknown {family} 'nothing'; choose from: "):
            Standard.Options(**{family: ["nothing"]})


def test_one_name_and_none_stand_for_lists():
    options = Standard.Options(perceptual="tiny", identity="none", features="st_alex")
    assert options.perceptual == ("tiny",)
    assert options.identity == ()
    assert options.features == ("st_alex",)


def test_identity_without_landmarks_is_refused():
    with pytest.raises(ValidationError, match="identity needs landmarks"):
        Standard.Options(landmarks="none")


def test_without_landmarks_only_scorers_that_need_none_are_used():
    scores = tuple(registry.TABLE["scores"])
    options = Standard.Options(identity="none", landmarks="none", scores=scores)
    assert options.scorers == ("mesh",)
    assert Standard.Options(scores=scores).scorers == scores

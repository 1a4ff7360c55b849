"""Metrics against analytic values, and the rows of the stage."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import pytorch_msssim
import torch
from PIL import Image
from pydantic import ValidationError
from skimage.metrics import structural_similarity

from dhr_batch.stages import metrics
from dhr_batch.stages.base import Context, Edit, Record
from dhr_batch.stages.measure import Standard
from dhr_batch.stages.tensors import images_to_tensor


def noise(seed: int, size: int = 32) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (size, size, 3), np.uint8)


def grey(level: int, size: int = 32) -> np.ndarray:
    return np.full((size, size, 3), level, np.uint8)


def test_psnr_of_known_pairs():
    assert metrics.mse(grey(0), grey(255)) == pytest.approx(4)
    assert metrics.psnr(grey(0), grey(255)) == pytest.approx(0, abs=1e-12)
    assert metrics.mse(grey(100), grey(151)) == pytest.approx(0.16)
    assert metrics.psnr(grey(100), grey(151)) == pytest.approx(10 * math.log10(25))
    assert metrics.psnr(grey(7), grey(7)) == math.inf


def test_ganinverter_psnr_is_three_decibels_lower():
    a, b = noise(0), noise(1)
    difference = metrics.psnr(a, b) - metrics.psnr_ganinverter(a, b)
    assert difference == pytest.approx(3.0103, abs=1e-4)


def test_parts_average_to_the_whole():
    a, b = noise(0), noise(1)
    part = np.zeros((32, 32), bool)
    part[:8] = True
    inside, outside = metrics.mse(a, b, part), metrics.mse(a, b, ~part)
    assert metrics.mse(a, b) == pytest.approx(0.25 * inside + 0.75 * outside)
    changed = a.copy()
    changed[:8] = 255 - changed[:8]
    assert metrics.mse(a, changed, ~part) == 0
    assert metrics.mse(a, changed, part) > 0


def test_ssim_equals_scikit_image():
    a = noise(0, 48)
    b = (0.7 * a + 0.3 * noise(1, 48)).astype(np.uint8)
    expected = structural_similarity(a, b, channel_axis=2, data_range=255)
    similarity = metrics.ssim_map(a, b)
    assert metrics.ssim(similarity) == pytest.approx(expected, abs=1e-12)
    assert metrics.ssim(similarity, np.ones((48, 48), bool)) == pytest.approx(expected, abs=1e-12)
    border = np.zeros((48, 48), bool)
    border[0] = True
    assert math.isnan(metrics.ssim(similarity, border))


def blurred(seed: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """A picture with structure at all scales, and a version without the finest."""
    picture = Image.fromarray(noise(seed, 8)).resize((size, size), Image.Resampling.BICUBIC)
    sharp = np.asarray(picture) // 2 + noise(seed + 1, size) // 2
    small = Image.fromarray(sharp).resize((size // 3, size // 3))
    return sharp, np.asarray(small.resize((size, size)))


@pytest.mark.parametrize("size", [161, 200, 256, 333])
def test_ms_ssim_equals_pytorch_msssim(size):
    a, b = blurred(0, size)
    x, y = (torch.from_numpy(i.astype(np.float64)).permute(2, 0, 1)[None] for i in (a, b))
    # Its window is float32.
    expected = pytorch_msssim.ms_ssim(x, y, data_range=255).item()
    assert 0.3 < expected < 0.95
    maps = metrics.ms_ssim_maps(a, b)
    assert metrics.ms_ssim(maps) == pytest.approx(expected, abs=2e-6)
    everything = np.ones((size, size), bool)
    assert metrics.ms_ssim(maps, everything) == pytest.approx(metrics.ms_ssim(maps), abs=1e-12)


def test_ms_ssim_of_known_pairs():
    a = noise(0, 176)
    assert metrics.ms_ssim(metrics.ms_ssim_maps(a, a)) == pytest.approx(1, abs=1e-12)
    # Flat pictures differ in luminance only, which the coarsest scale alone sees.
    x, y, c = 100, 200, (0.01 * 255) ** 2
    luminance = (2 * x * y + c) / (x**2 + y**2 + c)
    flat = metrics.ms_ssim(metrics.ms_ssim_maps(grey(x, 176), grey(y, 176)))
    assert flat == pytest.approx(luminance**0.1333, abs=1e-9)
    assert math.isnan(metrics.ms_ssim(metrics.ms_ssim_maps(a[:160, :160], a[:160, :160])))


def test_ms_ssim_of_a_part_sees_that_part():
    a = noise(0, 256)
    b = a.copy()
    b[:, 128:] = 255 - b[:, 128:]
    left = np.zeros((256, 256), bool)
    left[:, :96] = True
    maps = metrics.ms_ssim_maps(a, b)
    # Windows of the coarsest scale reach 80 px to each side.
    assert metrics.ms_ssim(maps[:2] + [np.ones_like(m) for m in maps[2:]], left) == pytest.approx(1)
    assert metrics.ms_ssim(maps, left) > 0.5 > metrics.ms_ssim(maps)
    edge = np.zeros((256, 256), bool)
    edge[:16] = True
    assert math.isnan(metrics.ms_ssim(maps, edge))


def test_perceptual_parts():
    maps = [torch.ones(2, 1, 8, 8), torch.zeros(2, 1, 4, 4)]
    maps[1][:, :, :2] = 3
    top = torch.zeros(2, 1, 32, 32)
    top[:, :, :16] = 1
    assert metrics.perceptual_distance(maps).tolist() == [2.5, 2.5]
    assert metrics.perceptual_distance(maps, torch.ones(2, 1, 32, 32)).tolist() == [2.5, 2.5]
    assert metrics.perceptual_distance(maps, top).tolist() == [4, 4]
    assert metrics.perceptual_distance(maps, 1 - top).tolist() == [1, 1]


def test_a_part_of_a_few_pixels_has_no_rows():
    mask = np.ones((32, 32), bool)
    assert set(metrics.parts_of(mask)) == {"", "_in"}
    assert set(metrics.parts_of(~mask)) == {"", "_out"}
    mask[0, :3] = False
    assert set(metrics.parts_of(mask)) == {"", "_in"}
    mask[:4] = False
    assert set(metrics.parts_of(mask)) == {"", "_in", "_out"}


def test_shrink_keeps_small_pictures_and_majorities():
    assert metrics.shrink(grey(9, 16), 32).shape == (16, 16, 3)
    assert metrics.shrink(grey(9, 64), 32).tolist() == grey(9, 32).tolist()
    mask = np.zeros((4, 4), bool)
    mask[0, :3] = mask[1, 0] = True
    assert metrics.shrink_mask(mask, 2).tolist() == [[True, False], [False, False]]


def record(seed: int) -> Record:
    mask = np.zeros((32, 32), bool)
    mask[8:] = True
    refined = noise(seed + 2)
    edited = refined.copy()
    edited[8:] = 255 - edited[8:]
    edit = Edit("smile", -1.50, "0" * 64, np.zeros((8, 512), np.float32), edited)
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
    assert rows["refined", "psnr"].value == pytest.approx(metrics.psnr(noise(0), noise(2)))
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
    edit = Edit("smile", 1, "0" * 64, np.zeros((8, 512), np.float32), checkers)
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
    assert rows["inverted", "ms_ssim"] == metrics.ms_ssim(metrics.ms_ssim_maps(a, b))
    assert 0 < rows["inverted", "ms_ssim_in"] < 1


def test_lpips_of_both_backbones_can_be_chosen(tmp_path):
    draw = torch.Generator().manual_seed(0)
    widths = {"alex": (64, 192, 384, 256, 256), "vgg": (64, 128, 256, 512, 512)}
    sizes = {"alex": (11, 5, 3, 3, 3), "vgg": (3,) * 13}
    counts = {"alex": (1,) * 5, "vgg": (2, 2, 3, 3, 3)}
    for net, outs in widths.items():
        convs = [out for out, n in zip(outs, counts[net], strict=True) for _ in range(n)]
        backbone: dict[str, torch.Tensor] = {}
        for i, (out, inp, k) in enumerate(zip(convs, (3, *convs), sizes[net], strict=False)):
            weight = torch.randn(out, inp, k, k, generator=draw) / (inp * k**2) ** 0.5
            backbone |= {f"features.{i}.weight": weight, f"features.{i}.bias": torch.zeros(out)}
        linear = {f"lin{i}.model.1.weight": torch.ones(1, n, 1, 1) for i, n in enumerate(outs)}
        torch.save(backbone, tmp_path / f"lpips-{net}-backbone")
        torch.save(linear, tmp_path / f"lpips-{net}")
    names = ("lpips_alex", "lpips_vgg")
    done = measured(record(0), tmp_path.joinpath, perceptual=names)
    context = Context("cpu", "tiny", tmp_path.joinpath)
    for name in names:
        network = context.network("perceptual", name)
        target = network.features(images_to_tensor([noise(0)]))
        expected = network.distance(images_to_tensor([noise(2)]), target).item()
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

    def find(self, rgb, box=None):
        points = self.points.copy()
        points[48], points[54] = (16 - rgb.mean() / 32, 24), (16 + rgb.mean() / 32, 24)
        return points


class Descriptions:
    """Where no picture shows a face to dlib, there are no landmarks to cut it out by."""

    label = "dlib-face-resnet"

    def describe(self, portrait):
        if portrait.landmarks is None:
            return None
        return np.array([1.0, portrait.rgb.mean() / 255])


class Brightness:
    """Finds a face in what is brighter than `darkest`; orthogonal at grey level 255."""

    label = "brightness, whole picture"

    def __init__(self, darkest: float) -> None:
        self.darkest = darkest

    def describe(self, portrait):
        turn = portrait.rgb.mean() / 255 * np.pi / 2
        return (
            np.array([np.cos(turn), np.sin(turn)]) if portrait.rgb.mean() > self.darkest else None
        )


@pytest.fixture
def with_faces() -> Standard:
    stage = Standard(Standard.Options(perceptual=()))
    context = Context("cpu", "mobilestylegan-256", no_models)
    context._networks[("landmarks", "dlib68")] = Faces()
    context._networks[("identity", "dlib")] = Descriptions()
    stage.setup(context)
    return stage


def face_record(source: int, edited: int) -> Record:
    edit = Edit("smile", 2, "0" * 64, np.zeros((23, 512), np.float32), grey(edited))
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
    assert rows["source", "score_smile"].model == "dlib-landmarks68"
    assert rows["edit:smile:2", "score_smile"].value == done.edits[0].effect["smile"]
    assert done.edits[0].effect["smile"] > rows["refined", "score_smile"].value
    assert done.notes == ()


def test_a_render_without_a_face_is_noted(with_faces):
    (done,) = with_faces.run([face_record(51, 0)])
    assert done.failure is None
    assert done.notes == (
        "measure: no face found in edit:smile:2: no scores_landmarks, identity_dlib",
    )
    assert done.edits[0].effect == {}
    edited = {m.metric for m in done.metrics if m.stage == "edit:smile:2"}
    assert "psnr" in edited
    assert not any(name.startswith(("identity", "score")) for name in edited)


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
        stage = Standard(Standard.Options(perceptual=(), identity=("dlib", "curricularface")))
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

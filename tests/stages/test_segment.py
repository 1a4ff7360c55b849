from __future__ import annotations

import json
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from scipy import ndimage

from dhr_batch.stages.context import Context
from dhr_batch.stages.networks.parsers.face_parts import INDEX
from dhr_batch.stages.record import Record
from dhr_batch.stages.segment import (
    NO_FACE_NOTE,
    DomainSpecific,
    Thresholds,
    at_mouth,
    domain_mask,
    nearest,
    superpixel_classes,
    superpixel_errors,
    superpixels,
)
from dhr_batch.stages.tensors import images_to_tensor
from dhr_batch.tests.stages.squares import Squares

CASES = ("face", "all_in", "all_out", "no_face")
FOREIGN = [0, 3, 16, 17, 18]
# added to the logits of FOREIGN before the softmax, as the fixture says in words
FOREIGN_LOGIT = {"face": 0.0, "all_in": -40.0, "all_out": 0.0}


def draw(spec: dict) -> np.ndarray:
    seed = zlib.crc32(("dhr:" + spec["key"]).encode())
    n = np.random.Generator(np.random.PCG64(seed)).standard_normal(spec["shape"], dtype=np.float32)
    return (np.abs(n) if spec.get("mode") == "abs" else n) * np.float32(spec["scale"])


def repeat(a: np.ndarray, times: int) -> np.ndarray:
    return a.repeat(times, -2).repeat(times, -1)


@pytest.fixture
def case(golden: Path):
    meta = json.loads((golden / "dhr_mask.json").read_text())["inputs"]
    stored = np.load(golden / "dhr_mask.npz")

    def load(name: str):
        deltas = [repeat(draw(meta[f"{name}.delta_{i}"]), 16 >> i) for i in range(5)]
        probs = None
        if name != "no_face":
            logits = draw(meta[f"{name}.parse_logits"])
            logits[FOREIGN] += np.float32(FOREIGN_LOGIT[name])
            logits[2] += np.float32(1.5)
            probs = torch.softmax(torch.from_numpy(repeat(logits, 8)), 0).numpy()
        want = {k: stored[f"{name}.{k}"] for k in ("m", "superpixel_mask", "d", "cls")}
        return deltas, stored["labels"].astype(np.int64), probs, want

    return load


@pytest.mark.parametrize("name", CASES)
def test_golden_mask(case, name: str) -> None:
    deltas, labels, probs, want = case(name)
    mask = domain_mask(deltas, labels, probs, Thresholds(face=0.7, parts=0.8, other=0.6))
    assert mask.dtype == bool
    np.testing.assert_array_equal(mask, np.unpackbits(want["m"]).reshape(256, 256))
    errors = superpixel_errors(deltas, labels)[1:]
    np.testing.assert_allclose(np.nan_to_num(errors, nan=-1), want["d"], atol=6e-5)
    if probs is not None:
        np.testing.assert_array_equal(superpixel_classes(probs, labels)[1:], want["cls"])


def test_vanished_superpixel_is_out_of_domain(case) -> None:
    deltas, labels, _, _ = case("all_in")
    errors = superpixel_errors(deltas, labels)
    assert np.isnan(errors[82])
    assert np.isfinite(errors[1:82]).all()
    mask = domain_mask(deltas, labels, None, Thresholds())
    assert not mask[labels == 82].any()
    assert mask[labels != 82].all()


@pytest.mark.parametrize("name", ["obama", "obama2", "biden"])
def test_golden_slic(golden: Path, shared: Path, name: str) -> None:
    stored = np.load(golden / "slic.npz")
    image = np.asarray(Image.open(shared / "golden" / "align" / f"{name}_crop256.png"))[..., :3]
    for bgr, segments in ((True, 60), (True, 200), (False, 60)):
        labels = superpixels(image, segments, bgr=bgr)
        key = f"{name}.{'bgr' if bgr else 'rgb'}{segments}"
        np.testing.assert_array_equal(labels, stored[key], err_msg=key)


@pytest.mark.parametrize("size", [(16, 16), (63, 63), (31, 30), (257, 257)])
def test_nearest_is_torch_nearest(size: tuple[int, int]) -> None:
    labels = np.arange(256 * 256).reshape(256, 256)
    want = F.interpolate(torch.from_numpy(labels).double()[None, None], size, mode="nearest")
    np.testing.assert_array_equal(nearest(labels, size), want[0, 0].numpy())


def two_halves() -> tuple[np.ndarray, np.ndarray]:
    labels = np.ones((32, 32), int)
    labels[:, 16:] = 2
    delta = np.where(labels == 1, 0.1, 0.5).astype(np.float32)
    return labels, delta


def test_class_picks_the_threshold() -> None:
    labels, delta = two_halves()
    probs = np.zeros((19, 32, 32), np.float32)
    probs[INDEX["face"]] = 1
    strict = Thresholds(face=0.3, parts=1.0, other=1.0)
    np.testing.assert_array_equal(domain_mask([delta], labels, probs, strict), labels == 1)
    assert domain_mask([delta], labels, np.roll(probs, 8, 0), strict).all(), "class 10 is a part"
    np.testing.assert_array_equal(
        domain_mask([delta], labels, None, Thresholds(face=9, parts=9, other=0.3)), labels == 1
    )


def test_a_well_inverted_face_has_smaller_thresholds_and_a_bad_one_the_given_ones() -> None:
    labels = np.ones((32, 32), int)
    labels[:, 24:] = 2
    face = np.zeros((19, 32, 32), np.float32)
    face[INDEX["face"]] = 1
    hair = np.roll(face, INDEX["hair"] - INDEX["face"], 0)
    part = np.where(labels == 1, face, hair)
    limits = Thresholds(face=0.6, parts=0.6, other=0.6, relative=2)
    well = np.where(labels == 1, 0.1, 0.25).astype(np.float32)
    for probs in (face, part):
        np.testing.assert_array_equal(domain_mask([well], labels, probs, limits), labels == 1)
    for error, inside in ((0.55, True), (0.65, False)):
        badly = np.where(labels == 1, 0.35, error).astype(np.float32)
        assert domain_mask([badly], labels, face, limits)[labels == 2].all() == inside, error
    assert domain_mask([well], labels, None, limits).all(), "no face to compare with"
    assert domain_mask([well], labels, hair, limits).all(), "no face to compare with"


@pytest.mark.parametrize("size", [64, 128])
@pytest.mark.parametrize("lip", ["inner_mouth", "lower_lip", "upper_lip"])
def test_the_mouth_reaches_a_share_of_the_side_beyond_the_lips(size: int, lip: str) -> None:
    labels = 1 + np.arange(size).repeat(size).reshape(size, size)
    probs = np.zeros((19, size, size), np.float32)
    probs[INDEX["face"]] = 1
    probs[INDEX[lip], 30:34, : size // 2] = 2
    reach = int(0.04 * size)
    np.testing.assert_array_equal(
        np.flatnonzero(at_mouth(probs, labels)) - 1, np.arange(30 - reach, 34 + reach)
    )
    columns = at_mouth(probs, np.ascontiguousarray(labels.T))
    np.testing.assert_array_equal(np.flatnonzero(columns) - 1, np.arange(size // 2 + reach))


def test_thresholds_are_larger_at_the_mouth() -> None:
    labels = 1 + np.arange(64).repeat(64).reshape(64, 64) // 4
    probs = np.zeros((19, 64, 64), np.float32)
    probs[INDEX["face"]] = 1
    probs[:, 32:36] = np.eye(19, dtype=np.float32)[INDEX["upper_lip"]][:, None, None]
    error = np.full((64, 64), 0.5, np.float32)
    limits = Thresholds(face=0.4, parts=0.4, other=0.4, mouth=1.5)
    inside = domain_mask([error], labels, probs, limits).all(1)
    np.testing.assert_array_equal(np.flatnonzero(inside), np.arange(28, 40))
    assert not domain_mask([error * 1.3], labels, probs, limits).any()
    assert not domain_mask([error], labels, probs, limits.model_copy(update={"mouth": 1.0})).any()
    # Limits relative to the face, here 0.9 medians, are enlarged as well.
    limits = Thresholds(face=0.7, parts=0.7, other=0.7, mouth=1.5, relative=0.9)
    inside = domain_mask([error], labels, probs, limits).all(1)
    np.testing.assert_array_equal(np.flatnonzero(inside), np.arange(28, 40))
    probs[INDEX["face"]] = 2
    assert not domain_mask([error], labels, probs, limits).any(), "no lips"
    limits = Thresholds(face=0.4, parts=0.4, other=0.4, mouth=1.5)
    assert not domain_mask([error], labels, None, limits).any(), "no face"


def test_foreign_classes_are_out_whatever_the_error() -> None:
    labels, delta = two_halves()
    for name in ("background", "cloth", "hat", "earring", "necklace"):
        probs = np.zeros((19, 32, 32), np.float32)
        probs[INDEX["face"], :16] = 1
        probs[INDEX[name], 16:] = 1
        mask = domain_mask([delta * 0], labels, probs, Thresholds())
        assert mask[:16].all()
        assert not mask[16:].any()


class HalfFace:
    name = "half"

    def parse(self, image: np.ndarray) -> np.ndarray | None:
        if image.max() == 0:
            return None
        probs = np.zeros((19, *image.shape[:2]), np.float32)
        half = image.shape[0] // 2
        probs[INDEX["face"], :half] = 1
        probs[INDEX["background"], half:] = 1
        return probs


def stage(**options) -> DomainSpecific:
    context = Context("cpu", "none", models=lambda name: Path(name))
    context._networks |= {
        ("parser", "landmarks+person"): HalfFace(),
        ("perceptual", "st_lpips_alex"): Squares(),
        ("generator", "none"): None,
    }
    made = DomainSpecific(DomainSpecific.Options(**options))
    made.setup(context)
    return made


def record(image: np.ndarray, inverted: np.ndarray, image_id: str = "a") -> Record:
    return Record(image_id, "", image=image, inverted=inverted, latent=np.zeros((1, 512)))


def test_stage_combines_parsing_and_error() -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(100, 140, (64, 64, 3)).astype(np.uint8)
    inverted = image.copy()
    inverted[:, :32] = 255
    options = {"segments": 16, "thresholds": {"face": 0.1, "parts": 0.1, "other": 0.1}}
    (done,) = stage(**options).run([record(image, inverted)])
    assert done.failure is None
    assert done.labels.dtype == np.uint8
    assert done.mask.dtype == bool
    assert done.labels[0, 0] == INDEX["face"]
    assert done.mask[:32, 40:].mean() > 0.9
    assert done.mask[:32, :24].mean() < 0.1
    assert not done.mask[32:].any()
    (without,) = stage(error=False, **options).run([record(image, inverted)])
    np.testing.assert_array_equal(without.mask, np.arange(64)[:, None].repeat(64, 1) < 32)


def test_large_pictures_may_be_segmented_at_a_smaller_size() -> None:
    rng = np.random.default_rng(2)
    image = rng.integers(100, 140, (64, 64, 3)).astype(np.uint8)
    inverted = image.copy()
    inverted[:, :24] = 255
    large = [np.repeat(np.repeat(picture, 4, 0), 4, 1) for picture in (image, inverted)]
    options = {"segments": 16, "thresholds": {"face": 0.1}, "error_size": 64}
    small = stage(**options).run([record(image, inverted)])[0]
    done = stage(size=64, **options).run([record(*large)])[0]
    np.testing.assert_array_equal(done.labels[::4, ::4], small.labels)
    assert done.labels.shape == done.mask.shape == (256, 256)
    assert done.mask.dtype == bool
    assert small.mask.any()
    assert not small.mask.all()
    # Only the pixels next to an edge of the mask may differ from its enlarged pixels.
    same = done.mask == np.repeat(np.repeat(small.mask, 4, 0), 4, 1)
    inner = ndimage.minimum_filter(small.mask, 3) | ~ndimage.maximum_filter(small.mask, 3)
    assert same[np.repeat(np.repeat(inner, 4, 0), 4, 1)].all()
    np.testing.assert_array_equal(
        stage(size=64, **options).run([record(image, inverted)])[0].mask, small.mask
    )


def test_no_face_is_noted_and_uses_the_error_alone() -> None:
    black, grey = np.zeros((64, 64, 3), np.uint8), np.full((64, 64, 3), 90, np.uint8)
    made = stage(segments=16, thresholds={"other": 0.1})
    same, other = made.run([record(black, black), record(black, grey, "b")])
    assert same.notes == (NO_FACE_NOTE,)
    assert same.mask.all()
    assert not other.mask.any()
    assert not same.labels.any()


def test_result_does_not_depend_on_batch_mates() -> None:
    rng = np.random.default_rng(1)
    pictures = [rng.integers(0, 255, (64, 64, 3)).astype(np.uint8) for _ in range(3)]
    records = [record(p, pictures[0], str(i)) for i, p in enumerate(pictures)]
    together = stage(segments=16).run(records)
    for one, done in zip(records, together, strict=True):
        np.testing.assert_array_equal(stage(segments=16).run([one])[0].mask, done.mask)


def test_errors_are_those_of_the_source() -> None:
    generator = Context("cpu", "tiny", models=lambda name: Path(name)).network("generator", "tiny")
    rng = np.random.default_rng(3)
    images = rng.integers(0, 255, (2, 32, 32, 3)).astype(np.uint8)
    latents = rng.standard_normal((2, generator.num_ws, 512)).astype(np.float32)
    rows = torch.from_numpy(latents)[:, generator.live_rows].mean(1)
    target = images_to_tensor(list(images), "cpu")
    records = [
        Record(f"{i}", "", image=image, inverted=image, latent=latent)
        for i, (image, latent) in enumerate(zip(images, latents, strict=True))
    ]

    def errors(**options) -> np.ndarray:
        made = stage(**options)
        made.generator = generator
        return np.stack([finest for finest, _ in made.errors(records)])

    def of(w: torch.Tensor) -> np.ndarray:
        with torch.no_grad():
            render = generator.synthesize(generator.broadcast(w))
        return (render - target).square().mean(1).numpy()

    assert not errors(source="embedding").any()
    np.testing.assert_allclose(errors(source="mean_row"), of(rows), atol=1e-5)
    mean = of(generator.w_mean.expand(2, -1))
    one = errors(source="coarse", coarse_steps=1, coarse_rate=1e-9)
    np.testing.assert_allclose(one, mean, atol=1e-5)
    assert errors(source="coarse", coarse_steps=8, coarse_rate=0.05).mean() < mean.mean()


@pytest.mark.parametrize("bgr", [False, True])
def test_superpixels_may_be_of_swapped_colours_as_published(bgr: bool) -> None:
    draw = np.random.default_rng(5).integers(0, 255, (8, 8, 3)).astype(np.uint8)
    image = draw.repeat(8, 0).repeat(8, 1)
    inverted = image.copy()
    inverted[20:50, 10:40] ^= 255
    (done,) = stage(segments=30, bgr=bgr, thresholds={"face": 0.1}).run([record(image, inverted)])
    masks = [
        domain_mask(
            stage().errors([record(image, inverted)])[0],
            superpixels(image, 30, bgr=swapped),
            HalfFace().parse(image),
            Thresholds(face=0.1),
        )
        for swapped in (False, True)
    ]
    assert not np.array_equal(*masks)
    np.testing.assert_array_equal(done.mask, masks[bgr])


def test_the_finest_layers_alone_may_count() -> None:
    black = np.zeros((64, 64, 3), np.uint8)
    for layers, kept in ((None, 2), (2, 2), (1, 1)):
        made = stage(error_layers=layers)
        (found,) = made.errors([record(black, black)])
        assert [delta.shape for delta in found] == [(64, 64), (32, 32)][:kept]


@pytest.mark.parametrize("source", ["coarse", "projection"])
def test_an_inversion_has_steps(source: str) -> None:
    with pytest.raises(ValueError, match="coarse_steps"):
        DomainSpecific.Options(source=source, coarse_steps=0)


def test_unknown_option_is_rejected() -> None:
    with pytest.raises(ValueError, match="skin"):
        DomainSpecific.Options(thresholds={"skin": 1.0})

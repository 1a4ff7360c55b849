"""The alignment stage: faces, policies, refusals and the folder of awkward files."""

from __future__ import annotations

import io
import json
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from dhr_batch.stages import align, ffhq
from dhr_batch.stages.align import FFHQAlign
from dhr_batch.stages.context import Context
from dhr_batch.stages.faces import further
from dhr_batch.stages.networks.faces.detect import Detector, Face
from dhr_batch.stages.record import Record

SIZE = 128


def png(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def record(name, pixels_or_data):
    data = pixels_or_data if isinstance(pixels_or_data, bytes) else png(pixels_or_data)
    return Record(name, f"/data/{name}", data=data)


@pytest.fixture(scope="module")
def detector():
    return Detector("cpu")


@pytest.fixture
def build(detector, request):
    """A set-up stage; `find` replaces the detector where the test plans its own faces."""

    def make(*, aligned=False, find=None, **options):
        def path(name):
            return request.getfixturevalue("models")(name)

        context = Context("cpu", "tiny", path, aligned=aligned)
        context._networks[("generator", "tiny")] = SimpleNamespace(resolution=SIZE)
        context._networks[("detector", "mtcnn")] = find or detector
        stage = FFHQAlign(FFHQAlign.Options(**options))
        stage.setup(context)
        return stage

    return make


class Planned:
    """A detector that returns the given faces for every image."""

    def __init__(self, *faces):
        self.faces = list(faces)

    def detect(self, images):
        return [self.faces for _ in images]

    def refine(self, images, faces):
        return list(faces)


def face(x, y, side, score=1.0):
    box = np.array([x - side / 2, y - side / 2, x + side / 2, y + side / 2])
    at = np.array([(-0.2, -0.1), (0.2, -0.1), (0, 0.1), (-0.17, 0.25), (0.17, 0.25)])
    return Face(box, score, at * side + [x, y])


def noise(height=300, width=400):
    return np.random.default_rng(0).integers(0, 255, (height, width, 3), np.uint8)


def test_portrait(build, astronaut):
    done = build().run([record("a.png", astronaut)])[0]
    assert done.failure is None
    assert done.data is None
    assert done.image.shape == (SIZE, SIZE, 3)
    assert done.image.dtype == np.uint8
    assert done.source_size == (512, 512)
    assert done.quad.shape == (4, 2)
    np.testing.assert_array_equal(done.image, ffhq.crop(astronaut, done.quad, SIZE))


def test_five_points_agree_with_the_68_landmarks(golden, shared, build):
    """Against the published quads of six photographs."""
    numbers = np.load(golden / "align.npz")
    names = [i["name"] for i in json.loads((golden / "align.json").read_text())["images"]]
    folder = shared / "golden" / "align"
    done = build().run([record(n, (folder / f"{n}_input.png").read_bytes()) for n in names])
    for result in done:
        expected = numbers[f"{result.image_id}.quad"]
        side = ffhq.quad_side(expected)
        assert np.hypot(*(result.quad.mean(0) - expected.mean(0))) < 0.02 * side
        assert ffhq.quad_side(result.quad) == pytest.approx(side, rel=0.08)


@pytest.mark.parametrize("name", ["obama", "biden", "astronaut_rot_tight"])
def test_68_landmarks_give_the_published_quad(golden, shared, build, name):
    expected = np.load(golden / "align.npz")[f"{name}.quad"]
    data = (shared / "golden" / "align" / f"{name}_input.png").read_bytes()
    quad = build(landmarks="dlib68").run([record(name, data)])[0].quad
    np.testing.assert_allclose(quad, expected, atol=1e-6)


def test_results_do_not_depend_on_batch_mates(build, astronaut):
    stage = build()
    others = [astronaut[:, ::-1].copy(), noise(), astronaut[::2, ::2].copy(), noise(8, 8)]
    batch = [record(f"{i}.png", p) for i, p in enumerate([astronaut, *others])]
    together = stage.run(batch)
    assert [r.failure is None for r in together] == [True, True, False, True, False]
    for one, same in zip(batch, together, strict=True):
        alone = stage.run([one])[0]
        assert alone.failure == same.failure
        if alone.failure is None:
            np.testing.assert_array_equal(alone.quad, same.quad)
            np.testing.assert_array_equal(alone.image, same.image)


def test_faces_come_largest_first_in_pixels_of_the_given_image(detector, astronaut):
    head = astronaut[:230, 100:350]
    wide = np.full((1400, 2000, 3), 255, np.uint8)
    wide[100:330, 100:350] = head
    large = np.asarray(Image.fromarray(head).resize((750, 690)))
    wide[500:1190, 1000:1750] = large
    faces = detector.detect([wide])[0]
    assert len(faces) == 2
    assert faces[0].box[0] > 1000
    assert faces[0].side == pytest.approx(3 * faces[1].side, rel=0.15)
    expected = (faces[1].points - [100, 100]) * 3 + [1000, 500]
    assert np.abs(faces[0].points - expected).max() < 0.06 * faces[0].side
    assert detector.detect([wide[:10, :10]]) == [[]]


def test_policies_for_several_faces(build):
    faces = Planned(face(80, 90, 90), face(210, 150, 60), face(330, 200, 30))
    photo = record("a.png", noise())

    largest = build(find=faces).run([photo])[0]
    assert (largest.face_index, largest.notes[0]) == (0, "largest of 3 faces taken")
    central = build(find=faces, face="central").run([photo])[0]
    assert (central.face_index, central.notes[0]) == (1, "central of 3 faces taken")
    assert np.abs(central.quad.mean(0) - [210, 150]).max() < 10
    only = build(find=faces, face="only").run([photo])[0]
    assert only.failure.error_class == "several_faces"
    single = build(find=faces, face="only", min_face=70).run([photo])[0]
    assert single.failure is None


def test_refused_faces(build):
    photo = record("x/a.png", noise())

    def failure(*faces, **options):
        return build(find=Planned(*faces), **options).run([photo])[0].failure

    unseen = failure()
    assert unseen.error_class == "no_face"
    assert "rotate it" in unseen.message
    unsure = failure(face(200, 150, 90, score=0.5))
    assert (unsure.stage, unsure.error_class) == ("align", "no_face")
    assert "x/a.png" in unsure.message
    assert "0.50" in unsure.message
    assert failure(face(200, 150, 12)).error_class == "face_too_small"
    assert failure(face(200, 150, 90), min_face=100).error_class == "face_too_small"
    assert failure(face(2, 2, 200)).error_class == "face_cut_off"


def test_the_filled_share_is_noted(build):
    done = build(find=Planned(face(60, 150, 90))).run([record("a.png", noise())])[0]
    share = ffhq.outside_share(done.quad, 400, 300)
    assert 0 < share < 0.7
    assert done.notes == (f"{share:.1%} of the crop lies outside the photograph and is filled",)


def test_aligned_datasets_are_only_resized(build, astronaut):
    stage = build(aligned=True)
    wide, square, exact = stage.run(
        [record("w.png", astronaut[:200]), record("s.png", astronaut),
         record("e.png", astronaut[:SIZE, :SIZE])]
    )  # fmt: skip
    assert wide.failure.error_class == "not_square"
    assert "w.png" in wide.failure.message
    resized = Image.fromarray(astronaut).resize((SIZE, SIZE), Image.Resampling.LANCZOS)
    np.testing.assert_array_equal(square.image, np.asarray(resized))
    np.testing.assert_array_equal(square.quad, [(0, 0), (0, 512), (512, 512), (512, 0)])
    np.testing.assert_array_equal(exact.image, astronaut[:SIZE, :SIZE])


def test_awkward_folder(build, astronaut, awkward_folder, tmp_path):
    expected = awkward_folder(tmp_path, astronaut)
    assert len(expected) == 12
    photos = [record(name, (tmp_path / name).read_bytes()) for name in expected]
    done = {r.image_id: r for r in build().run(photos)}
    reference = done["16bit.png"].image.astype(int)
    for name, error_class in expected.items():
        result = done[name]
        if error_class is None:
            assert result.failure is None, result.failure
            assert np.abs(result.image - reference).mean() < 12
        else:
            assert result.failure.error_class == error_class
            assert name in result.failure.message
            assert len(result.failure.message) > len(name) + 10
    assert "first of 3 frames taken" in done["animated.gif"].notes
    assert "EXIF orientation 6 applied" in done["rotated_exif.jpg"].notes
    assert "80.0 megapixels" in done["80_megapixels.png"].failure.message


def test_the_crop_functions_are_public():
    for name in ("crop", "quad_from_landmarks", "quad_from_points"):
        assert callable(getattr(align, name))


def test_every_face_becomes_a_record(build):
    faces = Planned(face(80, 90, 90), face(210, 150, 60), face(330, 200, 30), face(20, 20, 9))
    stage, photo = build(find=faces, face="all"), record("a.png", noise())
    (first,) = stage.run([photo])
    rest = stage.run(further(photo, first))
    assert [(r.image_id, r.face_index, r.faces) for r in (first, *rest)] == [
        ("a.png", 0, 3), ("a.png#1", 1, 3), ("a.png#2", 2, 3),
    ]  # fmt: skip
    assert [r.ends_photograph for r in (first, *rest)] == [False, False, True]
    assert rest[1].notes[0] == "face 2 of 3, where 0 is the largest"
    # One at a time and by a stage that has not seen the photograph: the same crops.
    for asked, expected in zip(further(photo, first), rest, strict=True):
        again = build(find=faces, face="all").run([asked])[0]
        np.testing.assert_array_equal(again.image, expected.image)
        by_number = build(find=faces, face=expected.face_index).run([photo])[0]
        assert (by_number.image_id, by_number.faces) == ("a.png", 1)
        np.testing.assert_array_equal(by_number.quad, expected.quad)
    missing = build(find=faces, face=3).run([photo])[0]
    assert missing.failure.error_class == "no_such_face"
    assert missing.failure.message.endswith("no face 3: faces 0 (the largest) to 2 were found")
    alone = build(find=Planned(face(80, 90, 90)), face=1).run([photo])[0]
    assert alone.failure.message.endswith("only one face was found, which is face 0")
    assert further(photo, build(find=Planned(), face="all").run([photo])[0]) == []
    square = record("b.png", noise(300, 300))
    assert build(aligned=True, face="all").run([square])[0].faces == 1


def test_a_photograph_is_decoded_once_for_all_its_faces(build, monkeypatch):
    decoded = []
    decode = align.decode
    monkeypatch.setattr(align, "decode", lambda *a: decoded.append(1) or decode(*a))
    stage = build(find=Planned(*(face(80 + 9 * i, 90, 60) for i in range(7))), face="all")
    photo = record("a.png", noise())
    (first,) = stage.run([photo])
    rest = further(photo, first)
    for part in (rest[:2], rest[2:5], rest[5:]):
        assert all(r.failure is None for r in stage.run(part))
    assert (len(decoded), stage._last) == (1, None)


def test_a_face_at_the_border_does_not_fail_the_others(build):
    stage = build(find=Planned(face(2, 2, 90), face(210, 150, 60)), face="all")
    photo = record("a.png", noise())
    (first,) = stage.run([photo])
    assert (first.failure.error_class, first.faces) == ("face_cut_off", 2)
    assert [r.failure for r in stage.run(further(photo, first))] == [None]

"""`datasets check`: what is wrong with a dataset, and the exit code."""

from __future__ import annotations

import json
import shutil
import tarfile
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from skimage import data

from dhr_batch.cli import main
from dhr_batch.pipeline.datasets import check as module
from dhr_batch.pipeline.models import catalogue
from dhr_batch.stages import ffhq
from dhr_batch.stages.networks.faces.detect import Detector

EYE_SHIFT = module.eye_shift


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DHR_BATCH_HOME", str(tmp_path / "home"))
    # The pictures are noise; the tests of alignment restore this.
    monkeypatch.setattr(module, "eye_shift", lambda detector, pixels: 0.0)


@pytest.fixture
def faces(tmp_path: Path) -> Path:
    """Six good pictures of an aligned dataset and its description."""
    folder = tmp_path / "faces"
    folder.mkdir()
    for number in range(6):
        pixels = np.random.default_rng(number).integers(0, 256, (300, 300, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    (tmp_path / "faces.yaml").write_text("root: faces\naligned: true\nimages: 6\n")
    return folder


def check(faces: Path, *words: str, code: int) -> dict[str, Any]:
    command = ["datasets", "check", str(faces.with_suffix(".yaml")), "--json", *words]
    done = CliRunner().invoke(main, command)
    assert done.exit_code == code, done.output
    return json.loads(done.output)


def kinds(found: list[dict[str, Any]]) -> dict[str, list[str]]:
    return {finding["kind"]: finding["image_ids"] for finding in found}


def test_a_sound_dataset(faces: Path) -> None:
    (faces / "notes.txt").write_text("no image")
    found = check(faces, code=0)
    assert (found["found"], found["sampled"], found["ignored"]) == (6, 6, {".txt": 1})
    assert (found["broken"], found["noted"]) == ([], [])
    assert found["smallest"] == found["largest"] == [300, 300]
    assert check(faces, "--sample", "3", code=0)["sampled"] == 3


def test_everything_that_is_wrong_is_listed(faces: Path) -> None:
    Image.new("RGB", (300, 301)).save(faces / "0.png")
    Image.new("RGB", (64, 64)).save(faces / "1.png")
    (faces / "2.png").write_bytes((faces / "2.png").read_bytes()[:5000])
    (faces / "3.png").write_bytes((faces / "4.png").read_bytes())
    (faces / "5.png").unlink()
    (faces / "6.png").symlink_to(faces / "nothing")
    (faces / "7.png").write_bytes(b"")
    found = check(faces, code=1)
    assert kinds(found["broken"]) == {
        "count": [],
        "not_square": ["0.png"],
        "truncated": ["2.png"],
        "unreadable": ["6.png"],
        "empty": ["7.png"],
    }
    assert kinds(found["noted"]) == {"small": ["1.png"], "duplicate": ["3.png", "4.png"]}
    # One file of seven is looked at: the count is still wrong, the rest is not seen.
    assert set(kinds(check(faces, "--sample", "1", code=1)["broken"])) == {"count", "not_square"}


def test_text_names_what_is_wrong(faces: Path) -> None:
    (faces / "2.png").write_bytes(b"<html>")
    done = CliRunner().invoke(main, ["datasets", "check", str(faces)])
    assert done.exit_code == 1
    assert "faces: 6 images in" in done.output
    assert "broken: not_an_image: 2.png" in done.output


def test_parts_that_cannot_be_read_are_broken(faces: Path, tmp_path: Path) -> None:
    (faces / "again").symlink_to(faces)
    assert check(faces, code=0)["broken"] == []
    for number in range(22):
        (faces / f"loop{number:02}.png").symlink_to(f"loop{number:02}.png")
    messages = [finding["message"] for finding in check(faces, code=1)["broken"]]
    # The link that is listed again is one of those that are not named.
    assert len(messages) == 21
    assert messages[0] == "3 further files or folders"
    assert messages[1].startswith("loop")
    with tarfile.open(tmp_path / "1.tar", "w") as archive:
        archive.add(faces / "0.png", "0.png")
    (tmp_path / "2.tar").write_bytes(b"")
    shutil.rmtree(faces)
    (tmp_path / "faces.yaml").write_text("root: .\n")
    (broken,) = check(faces, code=1)["broken"]
    assert broken["message"].startswith("2.tar (it cannot be read as")


def test_collisions_and_absent_places_are_broken(faces: Path, tmp_path: Path) -> None:
    path = tmp_path / "twice.tar"
    with tarfile.open(path, "w") as archive:
        for form in ("NFC", "NFD"):
            archive.add(faces / "0.png", unicodedata.normalize(form, "é.png"))
    done = CliRunner().invoke(main, ["datasets", "check", str(path)])
    assert done.exit_code == 1
    assert "have the same id 'é.png'" in done.output
    done = CliRunner().invoke(main, ["datasets", "check", "celebahq"])
    assert done.exit_code == 1
    assert "CelebA-HQ-to-CelebA-mapping.txt" in done.output


def test_unknown_dataset_is_a_usage_error() -> None:
    done = CliRunner().invoke(main, ["datasets", "check", "celebhq"])
    assert done.exit_code == 2
    assert "did you mean 'celebahq'" in done.output


def test_square_pictures_that_are_not_aligned(faces: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "eye_shift", EYE_SHIFT)
    photograph = data.astronaut()
    face = Detector("cpu").detect([photograph])[0][0]
    crop = ffhq.crop(photograph, ffhq.quad_from_mtcnn(face.points), 300)
    for number in range(2, 6):
        (faces / f"{number}.png").unlink()
    Image.fromarray(crop).save(faces / "0.png")
    Image.fromarray(photograph).save(faces / "1.png")
    faces.with_suffix(".yaml").write_text("root: faces\naligned: true\n")
    assert kinds(check(faces, code=1)["broken"]) == {"unaligned": ["1.png"]}
    Image.new("RGB", (300, 300)).save(faces / "1.png")
    assert kinds(check(faces, code=0)["noted"]) == {"no_face": ["1.png"]}
    faces.with_suffix(".yaml").write_text("root: faces\n")
    assert check(faces, code=0)["noted"] == []


def test_alignment_that_cannot_be_checked_is_said(
    faces: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str) -> Path:
        raise catalogue.ModelMissing(f"model {name!r} is damaged")

    monkeypatch.setattr(catalogue, "path", missing)
    (note,) = check(faces, code=0)["noted"]
    assert note["kind"] == "unchecked"
    assert "mtcnn" in note["message"]

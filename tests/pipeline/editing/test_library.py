"""`dhr_batch.edit`: what it takes, returns and keeps."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import dhr_batch
from dhr_batch.pipeline.editing import chain
from dhr_batch.pipeline.editing.choice import Choice
from dhr_batch.pipeline.editing.library import NotEdited
from dhr_batch.pipeline.errors import Refused
from dhr_batch.tests.pipeline.edited import EDITS, NAMES, QUADS, SIZE, edit, picture, pixels

pytestmark = pytest.mark.usefixtures("without_ray")


@pytest.mark.parametrize("kind", ["path", "image", "array", "array with alpha"])
def test_the_library_takes_paths_images_and_arrays(kind: str, photograph: Path) -> None:
    image = Image.open(photograph)
    alpha = np.asarray(image.convert("RGBA"))
    arrays = {"array": np.asarray(image), "array with alpha": alpha}
    given = {"path": photograph, "image": image, **arrays}[kind]
    made = edit(given, {"smile": 2})
    assert list(made.pictures) == ["smile=2"]
    assert made.pictures["smile=2"].size == (140, 120)
    assert made.crops[0]["smile=2"].size == (SIZE, SIZE)
    assert made.notes == ("darker",)
    np.testing.assert_array_equal(made.photograph, pixels(photograph))


@pytest.mark.parametrize("shape", [(9,), (3, 9, 9), (9, 9, 2), (0, 9, 3)])
def test_other_arrays_are_refused(shape: tuple[int, ...]) -> None:
    for array in (np.zeros((9, 9, 3), np.float32), np.zeros(shape, np.uint8)):
        with pytest.raises(Refused, match=r"not a picture of type uint8 and shape \[H, W\]"):
            edit(array)


def test_an_image_that_lies_on_its_side_is_turned(photograph: Path) -> None:
    turned = Image.open(photograph)
    turned.getexif()[0x0112] = 6
    assert edit(turned).photograph.shape == (140, 120, 3)


def test_all_faces_of_a_photograph_are_edited_together(tmp_path: Path, photograph: Path) -> None:
    told: list[tuple[str, int, int]] = []
    made = edit(photograph, face="all", progress=lambda *step: told.append(step))
    assert [face.image_id for face in made.faces] == ["photo.png", "photo.png#1"]
    stages = ["align", "embed", "segment", "refine", "edit", "measure"]
    assert list(dict.fromkeys(stage for stage, *_ in told)) == stages
    assert [step for step in told if step[0] == "refine"] == [
        ("refine", 0, 0), ("refine", 1, 2), ("refine", 2, 2)
    ]  # fmt: skip
    assert list(made.pictures) == list(EDITS)
    changed = (np.asarray(made.pictures["smile=2"]) != made.photograph).any(2)
    for quad in QUADS:
        assert changed[tuple(quad.mean(0).astype(int)[::-1])]
    assert not changed[:, 52:68].any()
    assert made.metrics.loc[("photo.png#1", "refined"), "psnr"] == 30
    names = {path.name for path in made.save(tmp_path / "out")}
    assert {"photo.png.smile+2.png", "photo.png#1.smile+2.png", "photo.png#1.refined.png"} <= names
    assert len(names) == 10
    html = made._repr_html_()
    assert html.count("<img ") == 3
    assert "smile=1+yaw=-0.5" in html

    one = edit(photograph, "smile=2", face=1, sweep="smile=1:2:2")
    np.testing.assert_array_equal(one.faces[0].quad, QUADS[1])
    assert (list(one.edits), list(one.chosen)) == (["smile=2", "smile=1"], ["smile=2"])
    dark = made.photograph.copy()
    dark[:, :60] = 0
    assert edit(dark, face="all").notes == ("darker", "image#1: the face is black")
    with pytest.raises(NotEdited, match="no face 2"):
        edit(photograph, face=2)


def test_edits_without_a_choice_are_those_of_the_settings(photograph: Path) -> None:
    assert list(edit(photograph, ()).pictures) == ["smile=-1", "smile=1"]


def test_networks_stay_loaded_until_the_settings_change(photograph: Path) -> None:
    def generator(edits: str, **settings: object) -> weakref.ref[object]:
        dhr_batch.edit(photograph, edits, settings=NAMES | settings, device="cpu")
        (networks,) = chain._KEPT.values()
        return weakref.ref(networks["generator", NAMES["generator"]])

    first = generator("smile=1")
    assert generator("smile=2") is first
    assert generator("smile=2", seed=7) is not first
    assert first() is None
    last = generator("smile=2")
    dhr_batch.unload()
    assert last() is None


def test_a_forked_process_is_refused_instead_of_waiting_forever(
    photograph: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    edit(photograph)
    monkeypatch.setattr(chain, "_process", os.getppid())
    with pytest.raises(Refused, match=r"forked.*get_context\(\"spawn\"\)"):
        edit(photograph)


def test_texts_are_in_the_order_of_the_stage() -> None:
    choice = Choice.of(["smile=1", "yaw=5deg", "smile=2+yaw=-5deg"], "smile=1:2:2")
    assert choice.texts() == ["smile=1", "smile=2", "yaw=5deg", "smile=2+yaw=-5deg"]
    assert Choice.of({"smile": 2, "yaw": 1}).texts() == ["smile=2", "yaw=1"]


@pytest.mark.parametrize("strength", ["2", None, float("nan")])
def test_strengths_are_numbers(strength: Any) -> None:
    with pytest.raises(Refused, match=r"of the edit 'smile'.*not a finite number"):
        Choice.of({"smile": strength})


def test_the_stages_of_a_preset_edit_an_aligned_face(photograph: Path, tmp_path: Path) -> None:
    """With real stages. The order of their edits is that of the texts."""
    texts = ["smile=200", "yaw=100", "smile=100+yaw=100", "smile=400"]
    square = picture(64, 64)
    made = dhr_batch.edit(square, texts, preset="tiny", device="cpu", aligned=True)
    names = {text: (e.name, e.strength) for text, i in made.edits.items()
             for e in [made.faces[0].edits[i]]}  # fmt: skip
    assert names == {
        "smile=200": ("smile", 200),
        "smile=400": ("smile", 400),
        "yaw=100": ("yaw", 100),
        "smile=100+yaw=100": ("smile=100+yaw=100", 1),
    }
    assert made.crops[0]["smile=400"].size == (32, 32)
    with pytest.raises(Refused, match="smirk"):
        dhr_batch.edit(square, "smirk=1", preset="tiny", device="cpu", aligned=True)


def test_importing_the_modules_of_edits_imports_and_sets_nothing() -> None:
    code = (
        "import os, sys\n"
        "import dhr_batch.pipeline.cli.edit\n"
        "from dhr_batch.pipeline.editing import chain, files, library, photographs\n"
        "assert 'OMP_WAIT_POLICY' not in os.environ, 'set'\n"
        "assert not {'ray', 'torch'} & {*sys.modules}, 'imported'"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_notebook_was_executed(root: Path) -> None:
    file = root / "docs" / "notebook.ipynb"
    cells = [c for c in json.loads(file.read_text("utf-8"))["cells"] if c["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == [*range(1, len(cells) + 1)]
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert {output["output_type"] for output in outputs} <= {"execute_result", "display_data"}
    assert sum("data:image/jpeg" in str(output) for output in outputs) == 1
    assert file.stat().st_size < 600_000


def test_a_device_is_no_photograph() -> None:
    with pytest.raises(OSError, match="a pipe or a device"):
        dhr_batch.edit("/dev/zero", "smile=1")

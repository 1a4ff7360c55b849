"""What `dhr_batch.edit` and `dhr_batch.run` take and refuse, before networks are loaded."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image

import dhr_batch
from dhr_batch.pipeline.editing import library
from dhr_batch.pipeline.errors import Refused
from dhr_batch.stages.decode import decode
from dhr_batch.stages.record import required

GREY = np.zeros((8, 8), np.uint8)


@pytest.mark.parametrize(
    ("image", "options", "said"),
    [
        (None, {}, "an image of type NoneType: it is neither a file, nor"),
        (["a.jpg"], {}, "an image of type list"),
        (GREY, {"edits": None}, "edits None: it must be a text, but is of type NoneType"),
        (
            GREY,
            {"edits": [("smile", 2)]},
            r"edits \('smile', 2\): it must be a text, but is of type tuple",
        ),
        (GREY, {"sweep": 9}, "sweep 9: it must be a text, but is of type int"),
        (GREY, {"settings": "seed=1"}, "settings: they must be a mapping, but are of type str"),
        (GREY, {"settings": {"embed.steps": 1}}, r"embed\.steps; write embed: {steps: VALUE}"),
    ],
)
def test_values_of_other_types_are_refused(image: Any, options: Any, said: str) -> None:
    with pytest.raises(Refused, match=said):
        dhr_batch.edit(image, **options)


def test_settings_of_a_run_are_a_mapping() -> None:
    with pytest.raises(Refused, match="they must be a mapping"):
        dhr_batch.run("photos", settings=["seed"])  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "LAB", "HSV", "YCbCr", "F"])
def test_pictures_of_all_modes_are_taken(mode: str) -> None:
    colours = Image.fromarray(np.full((16, 16, 3), (200, 90, 60), np.uint8))
    if mode == "LAB":
        picture = Image.fromarray(np.full((16, 16, 3), (128, 0, 0), np.uint8), "LAB")
        expected = np.full(3, 119)
    else:
        picture = colours.convert(mode)
        expected = np.asarray(picture.convert("RGB"))[0, 0]
    pixels, _ = decode(required(library._record(picture).data))
    np.testing.assert_allclose(pixels[0, 0], expected, atol=2)


def test_the_package_lists_what_it_offers() -> None:
    assert dir(dhr_batch) == ["__version__", "edit", "open", "run", "unload"]

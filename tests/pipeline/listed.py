"""Functions that make and list datasets."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dhr_batch.pipeline.datasets import celebahq, listing, named
from dhr_batch.pipeline.datasets.items import Item

Archive = dict[str, bytes | str | tuple[bytes, str]]
# In plan order: code point by code point.
FILES = {
    "a b#1.jpg": b"first",
    "sub/10.png": b"second",
    "sub/2.PNG": b"third one",
    "ä/%41.webp": b"fourth",
}
OTHERS = {"sub/notes.txt": b"no image", ".hidden.jpg": b"-", "sub/._2.png": b"-", "README": b"-"}


def listed(place: object, **settings: Any) -> list[Item]:
    dataset = named.find(str(place)).model_copy(update=settings)
    return named.list_images(dataset)


def content(items: list[Item]) -> dict[str, bytes]:
    return {item.image_id: listing.read_bytes(item) for item in items}


def scan(place: object, **settings: Any) -> tuple[list[str], dict[str, int]]:
    """Return the ids of the images, and what is left out."""
    found = named.scan(named.find(str(place)).model_copy(update=settings))
    return [item.image_id for item in found.items], dict(found.ignored)


def tar(members: Archive) -> bytes:
    """Return an archive. A text is the target of a hard link; a pair a type and its target."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for name, value in members.items():
            info = tarfile.TarInfo(name)
            if isinstance(value, bytes):
                info.size = len(value)
                archive.addfile(info, io.BytesIO(value))
                continue
            info.type, info.linkname = (tarfile.LNKTYPE, value) if isinstance(value, str) else value
            archive.addfile(info)
    return stream.getvalue()


def unpack(root: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def celeba(root: Path, originals: list[int]) -> Path:
    lines = [f"{n}\t{original}\t{original:06d}.jpg" for n, original in enumerate(originals)]
    unpack(root, {f"CelebA-HQ-img/{n}.jpg": bytes([n]) for n in range(len(originals))})
    unpack(root, {"CelebAMask-HQ-mask-anno/0/00000_hair.png": b"mask"})
    (root / celebahq.MAPPING).write_text("\n".join(["idx orig_idx orig_file", *lines]))
    return root


def pack(path: Path, files: dict[str, bytes], prefix: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(prefix + name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def write_table(path: Path, column: list[Any], group: int = 2, **others: list[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"image": column, **others}), path, row_group_size=group)
    return path

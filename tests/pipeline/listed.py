"""Functions that make and list datasets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dhr_batch.pipeline.datasets import celebahq, listing, named
from dhr_batch.pipeline.datasets.items import Item


def listed(place: object, **settings: Any) -> list[Item]:
    dataset = named.find(str(place)).model_copy(update=settings)
    return named.list_images(dataset)


def content(items: list[Item]) -> dict[str, bytes]:
    return {item.image_id: listing.read_bytes(item) for item in items}


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

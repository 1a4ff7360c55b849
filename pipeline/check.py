"""Is a dataset what it is said to be? Asked before a run takes any device."""

from __future__ import annotations

import hashlib
from collections import defaultdict

from pydantic import BaseModel, Field

from dhr_batch.pipeline import sources
from dhr_batch.pipeline.datasets import Dataset, scan
from dhr_batch.pipeline.model_spec import Strict
from dhr_batch.pipeline.sources import DatasetError, Item

# The smallest generator's pictures; smaller sources are enlarged before anything is measured.
SMALL = 256


class Finding(Strict):
    """One thing that was found. kind: a class of `stages/decode.py`, or a word of this module."""

    kind: str
    message: str
    image_ids: list[str] = Field(default_factory=list)


class Check(BaseModel):
    """A dataset's state. found: images listed; sampled: images decoded; sizes in pixels (W, H).

    broken: what a run would fail or quarantine for, or what makes its numbers incomparable.
    """

    name: str
    place: str
    aligned: bool
    expected: int | None
    found: int = 0
    ignored: dict[str, int] = Field(default_factory=dict)
    sampled: int = 0
    smallest: tuple[int, int] | None = None
    largest: tuple[int, int] | None = None
    broken: list[Finding] = Field(default_factory=list)
    noted: list[Finding] = Field(default_factory=list)


def check(dataset: Dataset, sample: int) -> Check:
    """List a dataset and decode `sample` images, evenly spread in plan order.

    Raises ModelMissing and StorageError; everything about the dataset is in the result.
    """
    result = Check(
        name=dataset.name,
        place=dataset.location,
        aligned=dataset.aligned,
        expected=dataset.images,
    )
    try:
        items, ignored = scan(dataset)
    except DatasetError as error:
        result.broken.append(Finding(kind="listing", message=str(error)))
        return result
    count = len(items)
    result.found, result.ignored = count, dict(ignored)
    if not count:
        message = f"no images in {dataset.location}"
        result.broken.append(Finding(kind="empty", message=message))
    elif dataset.images not in (None, count):
        message = f"{count} images, expected {dataset.images}"
        result.broken.append(Finding(kind="count", message=message))
    chosen = items if count <= sample else [items[i * count // sample] for i in range(sample)]
    result.sampled = len(chosen)
    _decode(result, chosen)
    return result


def _decode(result: Check, items: list[Item]) -> None:
    sizes: list[tuple[int, int]] = []
    same: defaultdict[str, list[str]] = defaultdict(list)
    for item in items:
        looked = _look(item, same)
        if isinstance(looked, Finding):
            result.broken.append(looked)
            continue
        sizes.append(looked)
        width, height = looked
        about, ids = f"{item.image_id}: {width} x {height} pixels", [item.image_id]
        if result.aligned and width != height:
            message = f"{about}; aligned faces are square"
            result.broken.append(Finding(kind="not_square", message=message, image_ids=ids))
        elif result.aligned and width < SMALL:
            message = f"{about}; less than {SMALL} are enlarged"
            result.noted.append(Finding(kind="small", message=message, image_ids=ids))
    for ids in same.values():
        if len(ids) > 1:
            message = f"the same file: {', '.join(ids)}"
            result.noted.append(Finding(kind="duplicate", message=message, image_ids=ids))
    if sizes:
        sizes.sort(key=lambda size: size[0] * size[1])
        result.smallest, result.largest = sizes[0], sizes[-1]


def _look(item: Item, same: defaultdict[str, list[str]]) -> tuple[int, int] | Finding:
    """Width and height of an image as the align stage would see it, or why it would not."""
    from dhr_batch.stages.base import ImageError
    from dhr_batch.stages.decode import decode

    try:
        data = sources.read(item)
        same[hashlib.sha256(data).hexdigest()].append(item.image_id)
        height, width = decode(data)[0].shape[:2]
    except (ImageError, sources.Unreadable) as error:
        kind = error.error_class if isinstance(error, ImageError) else "unreadable"
        message = f"{item.image_id}: {error}"
        return Finding(kind=kind, message=message, image_ids=[item.image_id])
    return width, height

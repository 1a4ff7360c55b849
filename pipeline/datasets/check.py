"""Is a dataset what it is said to be? Asked before a run takes any device."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from typing import TYPE_CHECKING

from pydantic import BaseModel, Field

from dhr_batch.pipeline.datasets import listing
from dhr_batch.pipeline.datasets.items import DatasetError, Item, Unreadable
from dhr_batch.pipeline.datasets.named import Dataset, scan
from dhr_batch.pipeline.models import catalogue as models
from dhr_batch.pipeline.strict import Strict

if TYPE_CHECKING:
    import numpy as np

    from dhr_batch.stages.networks.detect import Detector

# Eyes of an FFHQ crop lie within this share of the side of where its recipe puts them.
FAR = 0.06
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
    detector = _detector(result) if result.aligned else None
    for item in items:
        looked = _look(item, same)
        if isinstance(looked, Finding):
            result.broken.append(looked)
            continue
        height, width = looked.shape[:2]
        sizes.append((width, height))
        about, ids = f"{item.image_id}: {width} x {height} pixels", [item.image_id]
        if result.aligned and width != height:
            message = f"{about}; aligned faces are square"
            result.broken.append(Finding(kind="not_square", message=message, image_ids=ids))
        elif result.aligned and width < SMALL:
            message = f"{about}; less than {SMALL} are enlarged"
            result.noted.append(Finding(kind="small", message=message, image_ids=ids))
        if detector is not None and width == height:
            shift = eye_shift(detector, looked)
            if shift is None:
                message = f"{item.image_id}: no face was found, so its alignment is not checked"
                result.noted.append(Finding(kind="no_face", message=message, image_ids=ids))
            elif shift > FAR:
                message = (
                    f"{item.image_id}: the eyes are {shift:.0%} of the side from where FFHQ "
                    "alignment puts them; set aligned: false to have the faces aligned"
                )
                result.broken.append(Finding(kind="unaligned", message=message, image_ids=ids))
    for ids in same.values():
        if len(ids) > 1:
            message = f"the same file: {', '.join(ids)}"
            result.noted.append(Finding(kind="duplicate", message=message, image_ids=ids))
    if sizes:
        sizes.sort(key=lambda size: size[0] * size[1])
        result.smallest, result.largest = sizes[0], sizes[-1]


def _look(item: Item, same: defaultdict[str, list[str]]) -> np.ndarray | Finding:
    """Pixels of an image as the align stage would see them, or why it would not."""
    from dhr_batch.stages.base import ImageError
    from dhr_batch.stages.decode import decode

    try:
        data = listing.read(item)
        same[hashlib.sha256(data).hexdigest()].append(item.image_id)
        return decode(data)[0]
    except (ImageError, Unreadable) as error:
        kind = error.error_class if isinstance(error, ImageError) else "unreadable"
        message = f"{item.image_id}: {error}"
        return Finding(kind=kind, message=message, image_ids=[item.image_id])


def _detector(result: Check) -> Detector | None:
    """The face detector; None, and a note, where its weights are not there."""
    try:
        models.path("mtcnn")
    except models.ModelMissing as error:
        message = f"the alignment of the faces is not checked: {error}"
        result.noted.append(Finding(kind="unchecked", message=message))
        return None
    from dhr_batch.stages.networks.detect import Detector

    return Detector("cpu")


def eye_shift(detector: Detector, pixels: np.ndarray) -> float | None:
    """How far aligning a square picture again would move an eye at most, as a share of its side.

    pixels: uint8 [R, R, 3]. None where no face is found.
    """
    import numpy as np

    from dhr_batch.stages import ffhq

    faces = detector.detect([pixels])[0]
    if not faces:
        return None
    quad, eyes = ffhq.quad_from_mtcnn(faces[0].points), faces[0].points[:2]
    axes = np.stack([quad[3] - quad[0], quad[1] - quad[0]], axis=1)
    expected = np.linalg.solve(axes, (eyes - quad[0]).T).T
    return float(np.linalg.norm(expected - eyes / len(pixels), axis=1).max())

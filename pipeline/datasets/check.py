"""Check a dataset against its description, before a run uses a device."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from typing import TYPE_CHECKING

import numpy as np
from pydantic import BaseModel, Field

from dhr_batch.pipeline.datasets import listing
from dhr_batch.pipeline.datasets.items import DatasetError, Item, Unreadable
from dhr_batch.pipeline.datasets.named import Dataset, scan
from dhr_batch.pipeline.datasets.sieve import UNREADABLE
from dhr_batch.pipeline.models import catalogue
from dhr_batch.pipeline.printable import without_secrets
from dhr_batch.pipeline.storage.locations import LISTED
from dhr_batch.pipeline.strict import Strict
from dhr_batch.stages.decode import decode
from dhr_batch.stages.failures import ImageError
from dhr_batch.stages.options.align import MAX_MEGAPIXELS

if TYPE_CHECKING:
    from dhr_batch.stages.networks.faces.detect import Detector

# The eyes of an FFHQ crop are at most this fraction of the side away from where FFHQ's alignment
# puts them.
FAR = 0.06
# Resolution of the smallest generator. Smaller images are enlarged before they are processed.
SMALL = 256


class Finding(Strict):
    """One finding of a check.

    Attributes:
        kind: An error class of `stages/decode.py`, or one of this module such as `not_square`.
        message: What was found.
        image_ids: The images concerned; empty if the finding concerns the whole dataset.
    """

    kind: str
    message: str
    image_ids: list[str] = Field(default_factory=list)


class DatasetCheck(BaseModel):
    """The result of checking a dataset.

    Attributes:
        place: The location of the images.
        expected: The number of images according to the description; None if it is unknown.
        found: Number of images listed.
        ignored: Number of files and folders that are left out, by kind.
        sampled: Number of images decoded.
        smallest: Width and height in pixels.
        largest: Width and height in pixels.
        broken: Findings that make a run fail, quarantine images or give numbers that cannot be
            compared.
        noted: Other findings.
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


def check(dataset: Dataset, sample: int) -> DatasetCheck:
    """List a dataset and decode a sample of its images.

    Errors of the dataset are part of the result.

    Args:
        dataset: The dataset.
        sample: Number of images to decode, evenly spaced in the order of the plan.

    Raises:
        ModelMissing: If embedded photographs were not downloaded.
        StorageError: If the storage is unavailable.
    """
    result = DatasetCheck(
        name=dataset.name,
        place=without_secrets(dataset.location),
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
    for kind, parts in sorted(ignored.items()):
        if kind.startswith(UNREADABLE) and LISTED not in kind:
            further = f"{parts} further files or folders"
            message = further if kind == UNREADABLE else kind.removeprefix(f"{UNREADABLE}: ")
            result.broken.append(Finding(kind=UNREADABLE, message=message))
    if not count:
        message = f"no images in {dataset.location}"
        result.broken.append(Finding(kind="empty", message=message))
    elif dataset.images not in (None, count):
        message = f"{count} images, expected {dataset.images}"
        result.broken.append(Finding(kind="count", message=message))
    chosen = items if count <= sample else [items[i * count // sample] for i in range(sample)]
    result.sampled = len(chosen)
    _decode(result, chosen, _max_megapixels(dataset))
    return result


def _max_megapixels(dataset: Dataset) -> float:
    """Return the limit of a run on the dataset, if its description states one."""
    section = dataset.config.get("align")
    stated = section.get("max_megapixels") if isinstance(section, dict) else None
    # `plan` and `run` refuse an invalid value; here, the default takes its place.
    if isinstance(stated, (int, float)) and 0 < stated < float("inf"):
        return float(stated)
    return MAX_MEGAPIXELS


def _decode(result: DatasetCheck, items: list[Item], max_megapixels: float) -> None:
    """Decode the images and add the findings to the result."""
    sizes: list[tuple[int, int]] = []
    ids_by_digest: defaultdict[str, list[str]] = defaultdict(list)
    detector = _detector(result) if result.aligned else None
    for item in items:
        decoded = _decode_one(item, ids_by_digest, max_megapixels)
        if isinstance(decoded, Finding):
            result.broken.append(decoded)
            continue
        height, width = decoded.shape[:2]
        sizes.append((width, height))
        about, ids = f"{item.image_id}: {width} x {height} pixels", [item.image_id]
        if result.aligned and width != height:
            message = f"{about}; aligned faces are square"
            result.broken.append(Finding(kind="not_square", message=message, image_ids=ids))
        elif result.aligned and width < SMALL:
            message = f"{about}; less than {SMALL} are enlarged"
            result.noted.append(Finding(kind="small", message=message, image_ids=ids))
        if detector is not None and width == height:
            shift = eye_shift(detector, decoded)
            if shift is None:
                message = f"{item.image_id}: no face was found, so its alignment is not checked"
                result.noted.append(Finding(kind="no_face", message=message, image_ids=ids))
            elif shift > FAR:
                message = (
                    f"{item.image_id}: the eyes are {shift:.0%} of the side from where FFHQ "
                    "alignment puts them; set aligned: false to have the faces aligned"
                )
                result.broken.append(Finding(kind="unaligned", message=message, image_ids=ids))
    for ids in ids_by_digest.values():
        if len(ids) > 1:
            message = f"the same file: {', '.join(ids)}"
            result.noted.append(Finding(kind="duplicate", message=message, image_ids=ids))
    if sizes:
        sizes.sort(key=lambda size: size[0] * size[1])
        result.smallest, result.largest = sizes[0], sizes[-1]


def _decode_one(
    item: Item, ids_by_digest: defaultdict[str, list[str]], max_megapixels: float
) -> np.ndarray | Finding:
    """Decode an image like the align stage. Returns its pixels, or why it cannot be decoded."""
    try:
        data = listing.read_bytes(item, max_megapixels)
        ids_by_digest[hashlib.sha256(data).hexdigest()].append(item.image_id)
        return decode(data, max_megapixels)[0]
    except (ImageError, Unreadable) as error:
        message = f"{item.image_id}: {error}"
        return Finding(kind=error.error_class, message=message, image_ids=[item.image_id])


def _detector(result: DatasetCheck) -> Detector | None:
    """Return the face detector, or None and a finding if its weights are missing."""
    try:
        catalogue.path("mtcnn")
    except catalogue.ModelMissing as error:
        message = f"the alignment of the faces is not checked: {error}"
        result.noted.append(Finding(kind="unchecked", message=message))
        return None
    from dhr_batch.stages.networks.faces.detect import Detector

    return Detector("cpu")


def eye_shift(detector: Detector, pixels: np.ndarray) -> float | None:
    """Return how far aligning a square picture again would move the eyes.

    Args:
        detector: The face detector.
        pixels: uint8 [R, R, 3].

    Returns:
        The larger distance of the two eyes, as a fraction of R; None if no face is found.
    """
    from dhr_batch.stages import ffhq

    faces = detector.detect([pixels])[0]
    if not faces:
        return None
    quad, eyes = ffhq.quad_from_mtcnn(faces[0].points), faces[0].points[:2]
    axes = np.stack([quad[3] - quad[0], quad[1] - quad[0]], axis=1)
    expected = np.linalg.solve(axes, (eyes - quad[0]).T).T
    return float(np.linalg.norm(expected - eyes / len(pixels), axis=1).max())

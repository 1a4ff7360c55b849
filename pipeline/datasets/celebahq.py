"""The test split of CelebA-HQ, out of the 30,000 images of CelebAMask-HQ."""

from __future__ import annotations

import os
from pathlib import PurePosixPath

from dhr_batch.pipeline.datasets import listing as sources
from dhr_batch.pipeline.datasets.items import DatasetError, Listing, Rules
from dhr_batch.pipeline.storage import locations

MAPPING = "CelebA-HQ-to-CelebA-mapping.txt"
IMAGES = "CelebA-HQ-img"
# CelebA's published partition: images from this index on are its test split.
FIRST_TEST = 182_638
TEST_IMAGES = 2_824


def scan(root: str, rules: Rules) -> Listing:
    """The images whose original CelebA index belongs to the test split, sorted as text.

    root: the CelebAMask-HQ folder, its folder CelebA-HQ-img, or a folder with the test images
    only. Ids are relative to the folder of the images. Raises DatasetError where a folder has
    more images than the split and no mapping lies beside them.
    """
    folder = locations.join(root, IMAGES)
    listing = sources.scan(folder, rules) if _is_folder(folder) else sources.scan(root, rules)
    mapping = _mapping(root)
    if mapping is None:
        if len(listing.items) > TEST_IMAGES:
            raise DatasetError(
                f"{root} holds {len(listing.items)} images, the test split has {TEST_IMAGES}: put "
                f"{MAPPING} of CelebAMask-HQ there, or leave only the test images"
            )
        return listing
    original = parse_mapping(locations.fetch(mapping).decode("utf-8", "replace"), mapping)
    kept = []
    for item in listing.items:
        stem = PurePosixPath(item.image_id).stem
        if not stem.isdecimal() or int(stem) not in original:
            raise DatasetError(f"{item.location}: {mapping} has no line for an image {stem!r}")
        if original[int(stem)] >= FIRST_TEST:
            kept.append(item)
    return Listing(kept, listing.ignored)


def parse_mapping(text: str, name: str) -> dict[int, int]:
    """CelebA-HQ index -> CelebA index, from lines of `idx orig_idx orig_file` with or without head.

    Raises DatasetError naming file and line.
    """
    found: dict[int, int] = {}
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split()
        if not words or words[0] == "idx":
            continue
        if len(words) < 2 or not (words[0] + words[1]).isdecimal():
            raise DatasetError(
                f"{name}, line {number}: expected 'idx orig_idx orig_file', found {line[:80]!r}"
            )
        if int(words[0]) in found:
            raise DatasetError(f"{name}, line {number}: a second line for image {words[0]}")
        found[int(words[0])] = int(words[1])
    return found


def _mapping(root: str) -> str | None:
    """The mapping in the dataset's folder, also where the root is the folder of the images."""
    folder, _, last = root.rstrip("/").rpartition("/")
    places = [root, folder] if last == IMAGES else [root]
    candidates = [locations.join(place, MAPPING) for place in places]
    return next((place for place in candidates if locations.exists(place)), None)


def _is_folder(place: str) -> bool:
    if locations.is_url(place):
        return next(locations.walk(place), None) is not None
    return os.path.isdir(place)

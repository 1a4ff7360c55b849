"""The test split of CelebA-HQ, selected from the 30,000 images of CelebAMask-HQ, and attributes."""

from __future__ import annotations

import os
import re
from pathlib import PurePosixPath

from dhr_batch.pipeline.datasets import listing
from dhr_batch.pipeline.datasets.items import DatasetError, Listing, Rules
from dhr_batch.pipeline.storage import locations

MAPPING = "CelebA-HQ-to-CelebA-mapping.txt"
_MAPPED = re.compile(r"\s*([0-9]{1,9})\s+([0-9]{1,9})(\s|$)")
IMAGES = "CelebA-HQ-img"
# In CelebA's published partition, the images from this index on are the test split.
FIRST_TEST = 182_638
TEST_IMAGES = 2_824


def scan(root: str, rules: Rules) -> Listing:
    """List the images whose original CelebA index belongs to the test split, sorted by id.

    Args:
        root: The folder CelebAMask-HQ, its folder CelebA-HQ-img, or a folder that contains only the
            test images.
        rules: How images are listed.

    Returns:
        Images whose ids are relative to the folder with the images.

    Raises:
        DatasetError: If there are more images than the split has and the mapping file is missing,
            or if the mapping lacks an image.
    """
    folder = locations.join(root, IMAGES)
    listed = listing.scan(folder, rules) if _is_folder(folder) else listing.scan(root, rules)
    mapping = _mapping(root)
    if mapping is None:
        if len(listed.items) > TEST_IMAGES:
            raise DatasetError(
                str(root),
                f"it contains {len(listed.items)} images, but the test split has {TEST_IMAGES}",
                f"put {MAPPING} of CelebAMask-HQ there, or leave only the test images",
            )
        return listed
    original = parse_mapping(locations.fetch(mapping).decode("utf-8-sig", "replace"), mapping)
    kept = []
    for item in listed.items:
        stem = PurePosixPath(item.image_id).stem
        if not stem.isdecimal() or int(stem) not in original:
            raise DatasetError(
                item.location,
                f"{mapping} has no line for an image {stem!r}",
                "remove the image, or use the mapping of these images",
            )
        if original[int(stem)] >= FIRST_TEST:
            kept.append(item)
    return Listing(kept, listed.ignored)


def parse_mapping(text: str, name: str) -> dict[int, int]:
    """Parse lines of `idx orig_idx orig_file`, with or without a header.

    Args:
        text: The mapping file.
        name: Its name, for messages.

    Returns:
        The CelebA index of each CelebA-HQ index.

    Raises:
        DatasetError: If a line is malformed or repeated. The message names file and line.
    """
    found: dict[int, int] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.split() or line.split()[0] == "idx":
            continue
        if (words := _MAPPED.match(line)) is None:
            raise DatasetError(
                f"{name}, line {number}",
                f"expected 'idx orig_idx orig_file', found {line[:80]!r}",
                "use the published file",
            )
        if int(words[1]) in found:
            raise DatasetError(
                f"{name}, line {number}",
                f"it is a second line for image {words[1]}",
                "use the published file",
            )
        found[int(words[1])] = int(words[2])
    return found


def parse_attribute(text: str, name: str, attribute: str) -> dict[str, bool]:
    """Parse one attribute of `CelebAMask-HQ-attribute-anno.txt`, or of CelebA's file alike.

    The first line is the number of images, the second one has the names of the attributes, and each
    further line a file and 1 or -1 for every attribute.

    Args:
        text: The file.
        name: Its name, for messages.
        attribute: The attribute, such as `Smiling`.

    Returns:
        Whether each image shows the attribute, by the name of its file without extension.

    Raises:
        DatasetError: If the file has no such attribute, or a line is malformed.
    """
    lines = text.splitlines()
    names = lines[1].split() if len(lines) > 1 else []
    if attribute not in names:
        raise DatasetError(
            name,
            f"it has no attribute {attribute!r}",
            f"choose from: {', '.join(names[:50]) or 'none'}",
        )
    column = names.index(attribute) + 1
    found = {}
    for number, line in enumerate(lines[2:], 3):
        words = line.split()
        if not words:
            continue
        if len(words) != len(names) + 1 or words[column] not in ("1", "-1"):
            raise DatasetError(
                f"{name}, line {number}",
                f"expected a file and {len(names)} times 1 or -1, found {line[:80]!r}",
                "use the published file",
            )
        if (stem := PurePosixPath(words[0]).stem) in found:
            raise DatasetError(
                f"{name}, line {number}",
                f"it is a second line for image {stem}",
                "use the published file",
            )
        found[stem] = words[column] == "1"
    return found


def _mapping(root: str) -> str | None:
    """Return the location of the mapping in `root` or, for the folder of the images, beside it."""
    folder, _, last = root.rstrip("/").rpartition("/")
    folders = [root, folder] if last == IMAGES else [root]
    candidates = [locations.join(parent, MAPPING) for parent in folders]
    return next((file for file in candidates if locations.exists(file)), None)


def _is_folder(location: str) -> bool:
    if locations.is_url(location):
        return next(locations.walk(location), None) is not None
    return os.path.isdir(location)

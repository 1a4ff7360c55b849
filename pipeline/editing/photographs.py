"""The photographs that a user names: files, folders, globs and datasets."""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dhr_batch.pipeline.datasets import named
from dhr_batch.pipeline.datasets.items import DatasetError, Item, image_id, stamp
from dhr_batch.pipeline.datasets.listing import extension
from dhr_batch.pipeline.datasets.named import EXTENSIONS, Dataset
from dhr_batch.pipeline.errors import Refused
from dhr_batch.pipeline.storage.locations import describe, is_url

# Files that are or describe datasets.
_DATASETS = (".parquet", ".tar", ".yaml", ".yml")


class Found(NamedTuple):
    """Photographs.

    Attributes:
        items: Each photograph once, in the order in which they were named.
        aligned: Whether all of them are FFHQ crops.
        folders: The folders that were listed.
        ignored: The number of files that listings left out, by kind.
        settings: Settings of a run that their datasets change.
    """

    items: list[Item]
    aligned: bool
    folders: list[str]
    ignored: Counter[str]
    settings: list[dict[str, Any]]


def find(places: Sequence[str]) -> Found:
    """Find photographs.

    Args:
        places: A path of a file; a folder, archive, URL or name of a dataset, as in `named.find`;
            or a glob, in which `**` stands for any folders.

    Raises:
        DatasetError: A place does not exist, or has no photographs.
        Refused: Two photographs have the same name.
    """
    items: dict[str, Item] = {}
    datasets: list[Dataset] = []
    single = False
    ignored: Counter[str] = Counter()
    for place in places:
        path = os.path.expanduser(place)
        if os.path.isfile(path) and extension(path) not in _DATASETS:
            single, found = True, [_item(path)]
        elif glob.has_magic(path) and not is_url(path) and not os.path.exists(path):
            single, found = True, _matches(path)
        elif extension(path) in EXTENSIONS and not is_url(path) and not os.path.exists(path):
            raise DatasetError(path, "there is no such file", "check its name and folder")
        else:
            datasets.append(named.find(place))
            found, left_out = named.listed(datasets[-1])
            ignored += left_out
        for item in found:
            _add(items, item)
    return Found(
        list(items.values()),
        not single and all(dataset.aligned for dataset in datasets),
        [dataset.location for dataset in datasets],
        ignored,
        [dataset.config for dataset in datasets if dataset.config],
    )


def _item(path: str) -> Item:
    file, (folder, name) = describe(path), os.path.split(os.path.abspath(path))
    place = os.path.join(folder, "")
    return Item(image_id(name), place, name, stamp(file.size, file.time))


def _matches(pattern: str) -> list[Item]:
    found = sorted(glob.glob(pattern, recursive=True))
    photographs = [_item(path) for path in found if extension(path) in EXTENSIONS]
    if not photographs:
        why = "no photograph matches it" if found else "nothing matches it"
        raise DatasetError(pattern, why, "check the names, or give a folder")
    return photographs


def _add(items: dict[str, Item], item: Item) -> None:
    before = items.setdefault(item.image_id, item)
    if (before.location, before.at) != (item.location, item.at):
        raise Refused(
            f"{before.location} and {item.location}",
            f"their pictures would have the same name, {Path(item.image_id).name}",
            "edit them one after the other, with another --out",
        )

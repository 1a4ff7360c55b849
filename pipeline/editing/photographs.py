"""The photographs that a user names: files, folders, globs and datasets."""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dhr_batch.pipeline.datasets import named
from dhr_batch.pipeline.datasets.items import DatasetError, Item, Listing, image_id, stamp
from dhr_batch.pipeline.datasets.listing import extension
from dhr_batch.pipeline.datasets.named import EXTENSIONS, Dataset
from dhr_batch.pipeline.errors import Refused
from dhr_batch.pipeline.storage.locations import describe, is_url

# Files that are or describe datasets.
_DATASETS = (".parquet", ".tar", ".yaml", ".yml")


@dataclass(frozen=True)
class Found:
    """The places of photographs, in the order in which they were named.

    Attributes:
        places: A dataset, or the photographs that a path or glob names.
    """

    places: Sequence[Dataset | list[Item]]

    @property
    def datasets(self) -> list[Dataset]:
        """The datasets."""
        return [place for place in self.places if isinstance(place, Dataset)]

    @property
    def aligned(self) -> bool:
        """Whether all photographs are FFHQ crops."""
        return all(isinstance(place, Dataset) and place.aligned for place in self.places)

    def listed(self) -> Listing:
        """List the datasets, and return each photograph once.

        Raises:
            DatasetError: A dataset has no photographs.
            Refused: Two photographs have the same name.
        """
        items: dict[str, Item] = {}
        ignored: Counter[str] = Counter()
        for place in self.places:
            found = named.listed(place) if isinstance(place, Dataset) else Listing(place, Counter())
            ignored += found.ignored
            for item in found.items:
                _add(items, item)
        return Listing(list(items.values()), ignored)


def find(places: Sequence[str]) -> Found:
    """Find the places of photographs. Datasets are not listed.

    Args:
        places: A path of a file; a folder, archive, URL or name of a dataset, as in `named.find`;
            or a glob, in which `**` stands for any folders.

    Raises:
        DatasetError: A place does not exist, or a glob matches no photographs.
    """
    return Found([_find(place) for place in places])


def _find(place: str) -> Dataset | list[Item]:
    path = os.path.expanduser(place)
    if os.path.isfile(path) and extension(path) not in _DATASETS:
        return [_item(path)]
    if is_url(path) or os.path.exists(path):
        return named.find(place)
    if glob.has_magic(path):
        return _matches(path)
    if extension(path) in EXTENSIONS:
        raise DatasetError(path, "there is no such file", "check its name and folder")
    if "=" in path:
        raise DatasetError(
            path, "there is no such photograph", f"if it is an edit, write: --edit {path}"
        )
    return named.find(place)


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

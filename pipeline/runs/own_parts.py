"""Which files of tables belong to a run, so that no other file is overwritten or deleted.

These are parts of tables whose size a manifest gives, and attempts in staging, which are recognized
by their unguessable names. (Further files are listed in the marker of the run, see
`pipeline/storage/ownership.py`.) A start is refused if another file has the name of a part. In a
folder, this is checked again before each file is published; in an object store, the check would
cost a request per table.

A manifest may be withdrawn while its files stay published. Before that, their sizes are recorded in
`_state/earlier/00017.json`, which shows that these files belong to the run.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress

from dhr_batch.pipeline import sealed
from dhr_batch.pipeline.errors import Refused
from dhr_batch.pipeline.runs.names import PLAN, STAGING, earlier_key, manifest_key, part, shard_of
from dhr_batch.pipeline.runs.reading import damaged_record
from dhr_batch.pipeline.runs.records import plan_file
from dhr_batch.pipeline.runs.records.manifests import Manifest
from dhr_batch.pipeline.storage.base import Storage, is_part
from dhr_batch.pipeline.storage.local import LocalStorage
from dhr_batch.pipeline.storage.ownership import RUN, Owned, listed
from dhr_batch.pipeline.tables.schemas import TABLES

_STAGED = re.compile(rf"{STAGING}/\d{{5,}}\.\d+\.\w+/({'|'.join(TABLES)})\.parquet")


def is_staged(key: str) -> bool:
    """Whether a file belongs to an attempt, whose unguessable name a worker chose."""
    return _STAGED.fullmatch(key) is not None


def parts_among(sizes: Mapping[str, int]) -> dict[str, int]:
    """Select the files that have the name of a part of a table."""
    return {
        key: size for key, size in sizes.items() if is_part(key) and key.partition("/")[0] in TABLES
    }


class OwnParts:
    """The parts of tables in the place of a run.

    Args:
        storage: The place of the run.
    """

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    def sizes(self, shard: int, manifest: Manifest) -> dict[str, int]:
        """Return the sizes in bytes of the parts that a manifest names.

        Raises:
            StorageError: If the manifest is damaged.
        """
        if not manifest.attempt:
            raise damaged_record(self._storage, manifest_key(shard), "it names no attempt")
        return {part(table, shard): facts.bytes for table, facts in manifest.files.items()}

    def foreign(self, parts: Mapping[str, int], named: Mapping[str, int]) -> list[str]:
        """Return the parts that do not belong to this run.

        Args:
            parts: The size in bytes of each part.
            named: The sizes of the parts that manifests name.

        Raises:
            StorageError: If the record of a reopened shard is damaged.
        """
        earlier: dict[int, dict[str, list[int]]] = {}
        foreign = {}
        for key, size in parts.items():
            if named.get(key) != size:
                shard = shard_of(key)
                if shard not in earlier:
                    earlier[shard] = self._earlier(shard)
                if size not in earlier[shard].get(key, ()):
                    foreign[key] = shard
        if foreign and Owned(self._storage, RUN).unlisted:
            # Older versions kept no list of files, so any part of a planned shard may be their own.
            planned = len(plan_file.loads(self._storage.read(PLAN) or b"{}").shards)
            foreign = {key: shard for key, shard in foreign.items() if shard >= planned}
        return list(foreign)

    def require(self, parts: Mapping[str, int], named: Mapping[str, int]) -> None:
        """Raise Refused if a part does not belong to this run (see `foreign`)."""
        if foreign := self.foreign(parts, named):
            raise Refused(
                listed([self._storage.locate(key) for key in foreign]),
                "no manifest of the run names a file of this size, so the run did not write it, or "
                "it has been changed; it is not overwritten",
                "move it away or delete it, then give the same command again",
            )

    def require_free(self, key: str, size: int) -> None:
        """Check that no file which does not belong to the run has the name of a part.

        Args:
            key: The part.
            size: The size in bytes that its manifest gives.

        Raises:
            Refused: If there is such a file.
        """
        if isinstance(self._storage, LocalStorage):
            with suppress(FileNotFoundError):
                found = (self._storage.root / key).stat().st_size
                self.require({key: found}, {key: size})

    def _earlier(self, shard: int) -> dict[str, list[int]]:
        """Return the possible sizes in bytes that each file of a reopened shard had before."""
        key = earlier_key(shard)
        try:
            return sealed.loads(self._storage.read(key) or b"{}")
        except ValueError as error:
            raise damaged_record(self._storage, key, error) from error

    def note_earlier(self, shard: int, manifest: Manifest) -> None:
        """Record the sizes of the published files, to recognize them without their manifest."""
        earlier = self._earlier(shard)
        for key, size in self.sizes(shard, manifest).items():
            earlier[key] = sorted({size, *earlier.get(key, ())})
        self._storage.replace(earlier_key(shard), sealed.dumps(earlier))

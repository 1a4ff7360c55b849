"""Read the files of the tables of a run, the parts, and compare each with its manifest first.

Parquet has checksums of pages, which all reading here verifies, but none of the footer and of the
headers of pages. A damaged bit there may give other rows without an error. Therefore a part is read
only if it has the size and the sha256 that its manifest gives. This reads each part once more as a
whole. Without a manifest, only the parts of a shard that is to be computed again are read, as they
are. So are runs whose manifests have no checksums, and the parts of runs without a marker.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from dhr_batch.pipeline.errors import CommandError
from dhr_batch.pipeline.files import sha256
from dhr_batch.pipeline.runs.names import part, shard_of, staging
from dhr_batch.pipeline.runs.own_parts import OwnParts
from dhr_batch.pipeline.runs.reading import RunRecords
from dhr_batch.pipeline.runs.records.manifests import FileFacts, Manifest
from dhr_batch.pipeline.storage.base import Storage, in_order
from dhr_batch.pipeline.storage.ownership import RUN, Owned
from dhr_batch.pipeline.threads import together

if TYPE_CHECKING:
    import pyarrow.dataset as ds

# The number of parts that are compared at the same time.
_THREADS = 8


def wrong_sizes(
    storage: Storage,
    manifests: Mapping[int, Manifest],
    tables: Collection[str],
    sizes: Mapping[str, int],
) -> Iterator[tuple[str, str]]:
    """Yield the parts that are missing or have another size than in their manifest, and what it is.

    Args:
        storage: The place of the run.
        manifests: The manifests of the committed shards.
        tables: The tables whose parts are compared.
        sizes: The size of each part, listed after the manifests were read.
    """
    for shard, manifest in manifests.items():
        for table in tables:
            key, facts = part(table, shard), manifest.files.get(table)
            if facts is None:
                continue
            if (size := sizes.get(key)) is not None:
                # Without a checksum, the manifest was not written by dhr-batch, and its sizes mean
                # nothing.
                if facts.sha256 and (why := _wrong_size(size, facts)):
                    yield key, why
            # The files of a shard that was committed a moment ago may not be published yet.
            elif not storage.sizes(staging(manifest.attempt)) and key not in storage.sizes(table):
                yield key, "it is missing"


def _wrong_size(size: int, facts: FileFacts) -> str:
    return "" if size == facts.bytes else f"it has {size} bytes; its manifest says {facts.bytes}"


def difference(path: Path, facts: FileFacts) -> str:
    """Return how a part differs from what its manifest says of it, or "" if it does not."""
    if wrong := _wrong_size(path.stat().st_size, facts):
        return wrong
    return "" if sha256(path) == facts.sha256 else "its sha256 is not the one in its manifest"


class Damaged(CommandError, ValueError):
    """A part does not match its manifest, or cannot be read."""


class Parts:
    """The parts of the tables of a run. Each is compared with its manifest when it is first read.

    Args:
        records: The records of the run. If they have read the plan, it is not read once more.

    Attributes:
        records: The records of the run.
        storage: The place of the run.
    """

    def __init__(self, records: RunRecords) -> None:
        self.records, self.storage = records, records.storage
        self._single: dict[int, Manifest | None] = {}
        # What is wrong with each part that was compared, "" for nothing.
        self._checked: dict[str, str] = {}

    @classmethod
    def of(cls, run: Storage | Parts) -> Parts:
        """Return the parts of a run. `Parts` are returned as they are."""
        return run if isinstance(run, Parts) else cls(RunRecords(run))

    def table(self, table: str) -> list[str]:
        """Return the keys of the parts of a table, in the order of shards.

        Raises:
            Damaged: If a part that a manifest names is missing, or has another size.
            StorageError: If a manifest is damaged.
        """
        manifests, sizes = self.manifests, self.storage.sizes(table)
        for key, why in wrong_sizes(self.storage, manifests, [table], sizes):
            raise self.damaged(key, why)
        return in_order(sizes)

    @cached_property
    def manifests(self) -> dict[int, Manifest]:
        """The manifests of the committed shards, by shard number."""
        return self.records.manifests()

    def check(self, keys: Sequence[str]) -> None:
        """Compare parts with their manifests, each one once.

        Raises:
            Damaged: If one has another size or sha256.
        """
        new = [key for key in keys if key not in self._checked]
        self._checked |= zip(new, together(self._difference, new, _THREADS), strict=True)
        for key in keys:
            if why := self._checked[key]:
                raise self.damaged(key, why)

    def _difference(self, key: str) -> str:
        """Return how a part differs from its manifest, or "" if it does not."""
        manifest = self._manifest(shard_of(key))
        if manifest is None:
            if self._unlisted:
                return ""
            size = self.storage.files.get_file_info(key).size or 0
            foreign = OwnParts(self.storage).foreign({key: size}, {})
            return "no manifest names it, so the run has not written it" if foreign else ""
        facts = manifest.files.get(key.partition("/")[0])
        if facts is None or not facts.sha256:
            return ""
        with self.storage.local(key) as path:
            return difference(path, facts)

    @cached_property
    def _unlisted(self) -> bool:
        return Owned(self.storage, RUN).unlisted

    def _manifest(self, shard: int) -> Manifest | None:
        if "manifests" in vars(self) and shard in self.manifests:
            return self.manifests[shard]
        # For a few images, the manifests of all shards would be many requests to a store. And a
        # shard may have been committed since they were read.
        if shard not in self._single:
            self._single[shard] = self.records.manifest(shard)
        return self._single[shard]

    def damaged(self, what: str, why: str) -> Damaged:
        """Return the error for a part or a table that cannot be used."""
        place = self.storage.place
        name = self.storage.locate(what) if "/" in what else f"table {what!r} of {place}"
        return Damaged(name, why, f"see what to do with: dhr-batch verify {place}")

    @contextmanager
    def reading(self, what: str) -> Iterator[None]:
        """Convert the errors of reading damaged files.

        Args:
            what: The part or table that is read in the block.

        Raises:
            Damaged: If the block raises an error that damage explains.
        """
        try:
            yield
        except CommandError:
            raise
        except (OSError, ValueError, pa.ArrowException) as error:
            raise self.damaged(what, f"it cannot be read: {error}") from error

    def dataset(self, keys: Sequence[str], text: Sequence[str] = ()) -> ds.Dataset:
        """Return parts of one table as a dataset. Use it in a block of `reading`.

        Args:
            keys: The parts, at least one.
            text: Columns that are read as dictionaries.

        Raises:
            Damaged: If a part does not match its manifest.
        """
        # It imports pandas, which is 40 MB and a fifth of a second of each driver and worker.
        import pyarrow.dataset as ds

        self.check(keys)
        layout = ds.ParquetFileFormat(
            read_options=ds.ParquetReadOptions(dictionary_columns=text),
            default_fragment_scan_options=ds.ParquetFragmentScanOptions(
                page_checksum_verification=True
            ),
        )
        return ds.dataset(list(keys), format=layout, filesystem=self.storage.files)

    @contextmanager
    def open(self, key: str) -> Iterator[pq.ParquetFile]:
        """Open a part.

        Raises:
            Damaged: If it does not match its manifest, or the block cannot read it.
        """
        with self.reading(key):
            self.check([key])
            with (
                self.storage.files.open_input_file(key) as file,
                pq.ParquetFile(file, page_checksum_verification=True) as parquet,
            ):
                yield parquet

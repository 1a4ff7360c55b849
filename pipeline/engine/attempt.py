"""One attempt at a shard: the tables in the making, and the receipt that tells what is in them."""

from __future__ import annotations

import logging
import resource
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from dhr_batch.pipeline import crash
from dhr_batch.pipeline.engine.messages import Event
from dhr_batch.pipeline.files import sha256
from dhr_batch.pipeline.planning.plan import Shard
from dhr_batch.pipeline.runs.manifests import FailedImage, FileFacts, Manifest
from dhr_batch.pipeline.tables.files import TableFile
from dhr_batch.pipeline.tables.rows import Row, rows_of
from dhr_batch.pipeline.tables.schemas import RunInfo
from dhr_batch.stages import failures
from dhr_batch.stages.base import Record

log = logging.getLogger(__name__)


class Attempt:
    """Tables of a shard in an empty `folder`. Records are added in plan order.

    report: called with an event after each batch.
    """

    def __init__(
        self, shard: Shard, folder: Path, info: RunInfo, report: Callable[[Event], None]
    ) -> None:
        self.shard, self.folder, self.info, self.report = shard, folder, info, report
        self._files = {t: TableFile(folder / f"{t}.parquet", t, info) for t in info.tables}
        self._started = self._before = time.monotonic()
        self._done = 0
        self._errors: Counter[str] = Counter()
        self._failures: list[FailedImage] = []

    def add(self, records: Sequence[Record]) -> None:
        """Write the rows of finished records. Raises OSError where the disk refuses them."""
        failed = []
        for record in records:
            record, tables = self._rows(record)
            for table, rows in tables.items():
                self._files[table].append(rows)
            if record.failure is not None:
                failed.append(record.failure.error_class)
                self._note(record)
        self._done += len(records)
        self._errors.update(failed)
        now = time.monotonic()
        self.report(
            Event(
                what=f"shard {self.shard.index}: {self._done} of {len(self.shard.items)} done",
                done=len(records),
                failed=len(failed),
                errors=failed,
                seconds=now - self._before,
            )
        )
        self._before = now
        crash.at("mid-shard")

    def _rows(self, record: Record) -> tuple[Record, dict[str, list[Row]]]:
        try:
            return record, rows_of(record, self.shard.index, self.info)
        except Exception as error:
            # Values that no table can hold (a refined weight that is NaN) are about this image.
            if failures.kind_of(error) != "image":
                raise
            message = f"{record.image_id}: {failures.explain(error)}"
            record = record.failed("write", type(error).__name__, message)
            return record, rows_of(record, self.shard.index, self.info)

    def _note(self, record: Record) -> None:
        assert record.failure is not None
        where, why = record.failure.stage, record.failure
        text = f"{record.image_id} quarantined in {where} as {why.error_class}: {why.message}"
        log.warning("%s\n%s", text, why.details.rstrip())
        self._failures.append(FailedImage(record.image_id, where, why.error_class, why.details))

    def receipt(
        self, attempt: str, stage_seconds: Mapping[str, float], models: list[str]
    ) -> Manifest:
        """Close the files and describe them, and how many images ended where."""
        quarantined = self._errors.total()
        return Manifest(
            attempt=attempt,
            files={table: _finish(file) for table, file in self._files.items()},
            ok=self._done - quarantined,
            quarantined=quarantined,
            errors=dict(self._errors),
            failures=self._failures,
            seconds=round(time.monotonic() - self._started, 3),
            memory_peak=memory_peak(),
            stage_seconds=stage_seconds,
            models=models,
        )


def memory_peak() -> dict[str, int]:
    """The most bytes this process has held so far, on the host and on its GPU."""
    peak = {"host": _host_peak()}
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        peak["gpu"] = torch.cuda.max_memory_allocated()
    return peak


def _host_peak() -> int:
    # Linux begins `ru_maxrss` of a process with what the one that started it held.
    with suppress(OSError, IndexError):
        return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) * 1024
    # Elsewhere in kB, on macOS in bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _finish(file: TableFile) -> FileFacts:
    file.close()
    return FileFacts(file.rows, file.path.stat().st_size, sha256(file.path))

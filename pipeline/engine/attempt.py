"""One attempt at a shard: it writes the tables, and the receipt that describes them."""

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
from dhr_batch.pipeline.printable import without_secrets
from dhr_batch.pipeline.runs.manifests import FailedImage, FileFacts, Manifest
from dhr_batch.pipeline.tables.files import TableFile
from dhr_batch.pipeline.tables.rows import Row, rows_of
from dhr_batch.pipeline.tables.schemas import RunInfo
from dhr_batch.pipeline.threads import together
from dhr_batch.stages import failures
from dhr_batch.stages.base import Record

log = logging.getLogger(__name__)

# Threads that encode the images of a batch. At 1024 px one would be the slowest thread of a worker.
ENCODERS = 2


class Attempt:
    """The tables of a shard while they are written.

    Args:
        shard: The shard. Its records are added in plan order.
        folder: An empty folder for the tables.
        info: The facts about the run that the tables record.
        report: Called with an event after each batch.
        started: When the computation of the shard began, on the monotonic clock.
    """

    def __init__(
        self,
        shard: Shard,
        folder: Path,
        info: RunInfo,
        report: Callable[[Event], None],
        started: float,
    ) -> None:
        self.shard, self.folder, self.info, self.report = shard, folder, info, report
        self._files = {t: TableFile(folder / f"{t}.parquet", t, info) for t in info.tables}
        self._started = self._before = started
        self._done = 0
        self._errors: Counter[str] = Counter()
        self._failures: list[FailedImage] = []

    def add(self, records: Sequence[Record]) -> None:
        """Write the rows of finished records.

        Raises:
            OSError: If the disk is full or cannot be written.
        """
        failed = []
        for record, tables in together(self._rows, records, ENCODERS):
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
                shard=self.shard.index,
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
            # Values that a table cannot store, such as NaN in a refined weight, are a failure of
            # this image.
            if failures.kind_of(error) != "image":
                raise
            message = f"{record.image_id}: {failures.explain(error)}"
            record = record.failed("write", type(error).__name__, message)
            return record, rows_of(record, self.shard.index, self.info)

    def _note(self, record: Record) -> None:
        assert record.failure is not None
        stage, failure = record.failure.stage, record.failure
        text = f"{record.image_id} quarantined in {stage} as {failure.error_class}: "
        log.warning("%s%s", text, failure.message, extra={"details": failure.details.rstrip()})
        details = without_secrets(failure.details)
        self._failures.append(FailedImage(record.image_id, stage, failure.error_class, details))

    def receipt(
        self, attempt: str, stage_seconds: Mapping[str, float], models: list[str]
    ) -> Manifest:
        """Close the files and return the receipt of the shard.

        Args:
            attempt: The name under which the tables are staged.
            stage_seconds: The seconds that each stage has taken.
            models: The names of the models that were used.
        """
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
    """Return the peak memory of this process in bytes, on the host and on its GPU."""
    peak = {"host": _host_peak()}
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        peak["gpu"] = torch.cuda.max_memory_allocated()
    return peak


def _host_peak() -> int:
    # On Linux, `ru_maxrss` includes the peak of the parent process.
    with suppress(OSError, IndexError):
        return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) * 1024
    # `ru_maxrss` is in bytes on macOS, and in KiB on other systems.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _finish(file: TableFile) -> FileFacts:
    file.close()
    return FileFacts(file.rows, file.path.stat().st_size, sha256(file.path))

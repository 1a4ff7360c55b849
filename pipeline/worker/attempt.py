"""One attempt at a shard: it writes the tables, and the receipt that describes them."""

from __future__ import annotations

import logging
import resource
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from dhr_batch.pipeline import crash
from dhr_batch.pipeline.files import sha256
from dhr_batch.pipeline.planning.plan import Shard
from dhr_batch.pipeline.printable import without_secrets
from dhr_batch.pipeline.runs.records.manifests import FailedImage, FileFacts, Manifest
from dhr_batch.pipeline.tables.files import TableFile
from dhr_batch.pipeline.tables.rows import Row, rows_of
from dhr_batch.pipeline.tables.schemas import RunInfo
from dhr_batch.pipeline.threads import together
from dhr_batch.pipeline.worker.messages import Event
from dhr_batch.stages import failures
from dhr_batch.stages.faces import place
from dhr_batch.stages.record import Record

log = logging.getLogger(__name__)

Rows = dict[str, list[Row]]
# Threads that encode the images of a batch. At 1024 px one would be the slowest thread of a worker.
ENCODERS = 2
# What is kept of a face that failed until its photograph ends, which may have many.
_OF_FAILURES = ("image_id", "source", "source_bytes", "source_sha256", "failure")


@dataclass
class _Photograph:
    """The photograph whose records are being added.

    Attributes:
        faces: The numbers of the faces that have rows.
        waiting: The rows of the last of these, which note the faces that failed.
        failed: The records of the faces that failed, without their pictures.
    """

    faces: list[int] = field(default_factory=list)
    waiting: Rows = field(default_factory=dict)
    failed: list[Record] = field(default_factory=list)

    def noted(self) -> Rows:
        """Return the rows that wait, with a note of each face that failed."""
        notes = [_told("left out", record).replace("; ", ", ") for record in self.failed]
        for row in self.waiting.get("images", ()):
            row["note"] = "; ".join(filter(None, (row["note"], *notes)))
        return self.waiting


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
        self._photograph = _Photograph()
        self._faces: dict[str, list[int]] = {}
        self._errors: Counter[str] = Counter()
        self._failures: list[FailedImage] = []

    def add(self, records: Sequence[Record]) -> None:
        """Write the rows of finished records.

        A photograph ends in rows of its faces that worked, or in one row of the table `quarantine`.

        Raises:
            OSError: If the disk is full or cannot be written.
        """
        before, failed = self._done, []
        for record, rows in together(self._rows, records, ENCODERS):
            self._add(record, rows)
            if record.ends_photograph:
                failed += self._end()
        self._errors.update(failed)
        now, done = time.monotonic(), self._done - before
        self.report(
            Event(
                what=f"shard {self.shard.index}: {self._done} of {len(self.shard.items)} done",
                shard=self.shard.index,
                done=done,
                failed=len(failed),
                errors=failed,
                seconds=now - self._before if done else 0.0,
            )
        )
        if done:
            self._before = now
        crash.at("mid-shard")

    def _add(self, record: Record, rows: Rows) -> None:
        if record.failure is not None:
            kept = {name: getattr(record, name) for name in _OF_FAILURES}
            self._photograph.failed.append(Record(**kept))
            return
        self._append(self._photograph.waiting)
        self._photograph.waiting = rows
        image_id, number = place(record)
        self._photograph.faces.append(number)
        if record.faces > 1:
            self._faces[image_id] = self._photograph.faces

    def _end(self) -> list[str]:
        """End a photograph. Returns the class of its failure, if none of its faces has rows."""
        ended, self._photograph = self._photograph, _Photograph()
        self._done += 1
        if ended.faces:
            for record in ended.failed:
                _warn("left out", record)
            self._append(ended.noted())
            return []
        first, *others = ended.failed
        failure = first.failure
        assert failure is not None
        if others:
            message = f"{failure.message} (the other {len(others)} faces failed as well)"
            first = replace(first, failure=replace(failure, message=message))
        self._append(rows_of(first, self.shard.index, self.info))
        self._note(first)
        return [failure.error_class]

    def _append(self, rows: Rows) -> None:
        for table, own in rows.items():
            self._files[table].append(own)

    def _rows(self, record: Record) -> tuple[Record, Rows]:
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
        _warn("quarantined", record)
        failure = record.failure
        details = without_secrets(failure.details)
        self._failures.append(
            FailedImage(record.image_id, failure.stage, failure.error_class, details)
        )

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
            faces=self._faces or None,
            seconds=round(time.monotonic() - self._started, 3),
            memory_peak=memory_peak(),
            stage_seconds=stage_seconds,
            models=models,
        )


def _told(what: str, record: Record) -> str:
    """Return what became of a record that failed, and why."""
    failure = record.failure
    assert failure is not None
    text = f"{record.image_id} {what} in {failure.stage} as {failure.error_class}: "
    return text + failure.message


def _warn(what: str, record: Record) -> None:
    details = record.failure.details.rstrip() if record.failure else ""
    log.warning("%s", _told(what, record), extra={"details": details})


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

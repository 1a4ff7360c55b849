"""Logs of workers: uploaded as they grow, never waited for, and complete after a crash."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dhr_batch.pipeline.errors import StorageError
from dhr_batch.pipeline.runs.verify import verify
from dhr_batch.pipeline.storage.connect import connect
from dhr_batch.pipeline.storage.objects import ObjectStorage
from dhr_batch.pipeline.worker import worker_log
from dhr_batch.pipeline.worker.worker_log import WorkerLog
from dhr_batch.tests.faults import harness

Make = Callable[[str, int], WorkerLog]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    """Logs in a TMPDIR of their own."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(worker_log.faulthandler, "enable", lambda _: None)
    before, made = list(worker_log.log.handlers), []

    def start(place: str, number: int) -> WorkerLog:
        made.append(WorkerLog(connect(place), number))
        return made[-1]

    yield start
    worker_log.log.handlers = before
    worker_log.log.setLevel(logging.NOTSET)


def uploaded(place: str, number: int = -1) -> str:
    """One of the logs there are, in the order of starts."""
    storage = connect(place)
    key = sorted(storage.sizes(worker_log.LOGS))[number]
    return (storage.read(key) or b"").decode()


def test_what_is_new_is_uploaded_once(
    make: Make, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    uploads, replace = [], ObjectStorage.replace

    def counted(self: ObjectStorage, key: str, content: bytes) -> None:
        uploads.append(key)
        replace(self, key, content)

    monkeypatch.setattr(ObjectStorage, "replace", counted)
    log = make(f"{bucket}/run", 3)
    worker_log.log.warning("first")
    log.close()
    log = make(f"{bucket}/run", 3)
    log.sync()
    assert len(uploads) == 1, "nothing was logged"
    worker_log.log.warning("second")
    log.close()
    assert len(uploads) == 2
    assert "first" in uploaded(f"{bucket}/run", 0), "a later start keeps it"
    assert "second" in uploaded(f"{bucket}/run")
    assert not log.path.exists()
    assert log.key.startswith("_state/logs/worker-3-")


def test_the_next_worker_uploads_what_a_killed_one_left(make: Make, bucket: str) -> None:
    make(f"{bucket}/run", 0)
    worker_log.log.warning("Fatal Python error: Segmentation fault")
    make(f"{bucket}/run", 0).close()
    assert "Segmentation fault" in uploaded(f"{bucket}/run")


def test_of_a_long_log_the_end_is_uploaded(
    make: Make, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_log, "_LONGEST", 1000)
    log = make(f"{bucket}/run", 0)
    for number in range(100):
        worker_log.log.warning("line %d", number)
    log.close()
    text = uploaded(f"{bucket}/run")
    assert len(text) == 1000
    assert text.endswith("line 99\n")


def test_a_store_that_is_away_is_not_waited_for(
    make: Make, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer, asked, answered = threading.Event(), threading.Event(), threading.Event()

    def hanging(*_: Any) -> None:
        asked.set()
        answer.wait(20)
        answered.set()
        raise StorageError("the store is away")

    monkeypatch.setattr(ObjectStorage, "replace", hanging)
    log = make(f"{bucket}/run", 0)
    worker_log.log.warning("something")
    log.sync()
    assert asked.wait(60)
    log.sync()
    assert not answered.is_set(), "both came back before the store did"
    answer.set()
    log.close()


@pytest.mark.parametrize("remote", [False, True])
def test_a_deleted_log_ends_nothing(make: Make, tmp_path: Path, bucket: str, remote: bool) -> None:
    log = make(f"{bucket}/run" if remote else str(tmp_path / "run"), 0)
    log.path.unlink()
    worker_log.log.warning("something")
    log.sync()
    log.close()


def test_in_a_folder_the_log_is_part_of_the_run(make: Make, tmp_path: Path) -> None:
    log = make(str(tmp_path / "run"), 2)
    worker_log.log.warning("something")
    log.sync()
    log.close()
    assert "something" in (tmp_path / "run" / "_state" / "logs" / "worker-2.log").read_text()


def test_a_run_in_an_object_store_has_its_logs(bucket: str, tmp_path: Path) -> None:
    items = harness.photographs(tmp_path / "in", ["good-1.png", "noface-1.png"])
    out: Any = f"{bucket}/run"
    with harness.session():
        outcome = harness.run(harness.make(items, shard_size=1), out)
    assert (outcome.done, outcome.quarantined) == (1, 1)
    text = uploaded(out)
    assert "noface-1.png quarantined in embed as no_face" in text
    assert "Traceback" in text
    found = verify(out)
    assert (found.problems, found.verified) == ([], 2)

"""The progress of a run, read from its manifests, its `_state/status.json` and its lease."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, field_serializer

from dhr_batch.pipeline.runs.folder import RunFolder
from dhr_batch.pipeline.runs.lease import Holder
from dhr_batch.pipeline.runs.parts import wrong_sizes
from dhr_batch.pipeline.runs.reading import no_run
from dhr_batch.pipeline.runs.records import manifests, status_file
from dhr_batch.pipeline.runs.records.manifests import Summaries
from dhr_batch.pipeline.runs.records.status_file import Speed, StatusContent, WorkerStatus
from dhr_batch.pipeline.storage.base import Storage
from dhr_batch.pipeline.tables.schemas import TABLES
from dhr_batch.pipeline.units import duration

# The number of problems that the summary names.
_NAMED = 5


class Images(BaseModel):
    """Numbers of images.

    Attributes:
        total: Planned images.
        done: Images with rows in finished shards.
        quarantined: Images in quarantine in finished shards.
        in_work: Images that were computed, but whose shards are not finished.
    """

    total: int
    done: int
    quarantined: int
    in_work: int = 0


class Shards(BaseModel):
    """Numbers of shards.

    Attributes:
        total: Planned shards.
        done: Finished shards.
        running: The shards that are being computed, by number.
        tried_again: Finished shards that took more than one attempt.
    """

    total: int
    done: int
    running: list[int] = []
    tried_again: int = 0


class Overview(BaseModel):
    """The state of a run at this moment.

    Attributes:
        run: The folder or URL of the run.
        state: What the run is doing.
        driver: The process that is working on the run; None if there is none.
        updated: The Unix time at which a driver last wrote the status file.
        images: Numbers of images; None before the run has a plan.
        faces: Number of faces with rows in finished shards, if it is not that of the images.
        shards: Numbers of shards; None before the run has a plan.
        images_per_second: The speed that the driver measured.
        seconds_left: The remaining time that the driver expects.
        errors: The number of quarantined images of each class of error.
        workers: The workers of the driver.
        problems: Files of finished shards that are missing or have a wrong size. The content of
            files is not read.
    """

    run: str
    state: Literal["starting", "running", "interrupted", "finished"]
    driver: Holder | None = None
    updated: float | None = None
    images: Images | None = None
    faces: int | None = None
    shards: Shards | None = None
    images_per_second: Speed | None = None
    seconds_left: float | None = None
    errors: dict[str, int] = {}
    workers: list[WorkerStatus] = []
    problems: list[str] = []

    @field_serializer("driver")
    def _holder(self, driver: Holder | None) -> dict[str, Any] | None:
        return driver.to_json() if driver else None

    @field_serializer("images_per_second")
    def _speed(self, speed: Speed | None) -> dict[str, float]:
        return speed.to_json() if speed else {}

    @field_serializer("workers")
    def _workers(self, workers: list[WorkerStatus]) -> list[dict[str, Any]]:
        return [worker.to_json() for worker in workers]

    def lines(self) -> Iterator[str]:
        """Yield the lines of a summary for people."""
        yield f"run          {self.run}: {self.state}"
        yield f"driver       {self._driver()}"
        if self.images and self.shards:
            yield self._images(self.images)
            yield _shards(self.shards)
        if (rate := self.images_per_second) and rate.overall:
            recent = f", {rate.last_5_minutes:.3g} in the last 5 minutes"
            left = f"{recent}; {duration(self.seconds_left)} left" if self.driver else ""
            yield f"speed        {rate.overall:.3g} images/s{left}"
        if self.errors:
            counts = (f"{count} x {name}" for name, count in self.errors.items())
            yield f"quarantined  {', '.join(counts)}"
        for worker in self.workers:
            about = {"host": worker.host, "pid": worker.pid, "device": worker.device}
            known = [f"{name} {value}" for name, value in about.items() if value]
            where = f" ({', '.join(known)})" if known else ""
            yield f"worker {worker.worker:<5} {worker.what}{where}"
        for problem in self.problems[:_NAMED]:
            yield f"problem      {problem}"
        if self.problems:
            count = len(self.problems)
            yield f"problems     {count}; see what to do with: dhr-batch verify {self.run}"

    def _driver(self) -> str:
        if self.driver:
            return f"process {self.driver.pid or 'unknown'} on {self.driver.host or 'unknown'}"
        since = f" since {_clock(self.updated)}" if self.updated else ""
        more = "" if self.state == "finished" else "; the same command goes on from here"
        return f"not running{since}{more}"

    def _images(self, images: Images) -> str:
        left = images.total - images.done - images.quarantined
        work = f" ({images.in_work} already computed)" if images.in_work else ""
        faces = f" ({self.faces} faces)" if self.faces is not None else ""
        return (
            f"images       {images.done} of {images.total} done{faces}, "
            f"{images.quarantined} quarantined, {left} to do{work}"
        )


def _shards(shards: Shards) -> str:
    work = f", running: {', '.join(map(str, shards.running))}" if shards.running else ""
    again = f", {shards.tried_again} tried more than once" if shards.tried_again else ""
    return f"shards       {shards.done} of {shards.total} done{work}{again}"


def _clock(when: float) -> str:
    return datetime.fromtimestamp(when).astimezone().strftime("%Y-%m-%d %H:%M:%S %Z")


def overview(place: str | Path | Storage) -> Overview:
    """Return the state of a run. Nothing is written.

    Raises:
        NoRun: If the place is not a run.
        StorageError: If the storage does not answer, or the status file is damaged.
    """
    run = RunFolder(place)
    # Read the status before the manifests: a shard that is committed in between is then missing
    # from the status, but no image is counted twice.
    plan, holder = run.plan(), run.holder()
    if plan is None:
        if holder is None:
            raise no_run(run.storage)
        return Overview(run=run.storage.place, state="starting", driver=holder)
    status = status_file.read_status(run.storage)
    committed, summaries = run.manifests(), Summaries()
    done = [summaries.finished(manifest) for manifest in committed.values()]
    wrong = wrong_sizes(run.storage, committed, TABLES, run.storage.sizes())
    images = Images(
        total=plan.images,
        done=sum(shard.ok for shard in done),
        quarantined=sum(shard.quarantined for shard in done),
    )
    shards = Shards(
        total=len(plan.shards),
        done=len(done),
        tried_again=sum(shard.attempts > 1 for shard in done),
    )
    errors = manifests.total(shard.errors for shard in done)
    faces = manifests.total(shard.rows for shard in done)["latents"]
    complete = len(done) == len(plan.shards)
    found = Overview(
        run=run.storage.place,
        state="finished" if complete else "interrupted" if holder is None else "starting",
        driver=holder,
        updated=status.updated,
        images=images,
        faces=faces if any(manifest.faces for manifest in committed.values()) else None,
        shards=shards,
        errors=dict(errors.most_common()),
        images_per_second=status.images_per_second,
        problems=[f"{key}: {why}" for key, why in sorted(wrong)],
    )
    has_driver = holder is not None and holder.pid is not None
    return _with_driver(found, images, shards, status) if has_driver and not complete else found


def _with_driver(
    found: Overview, images: Images, shards: Shards, status: StatusContent
) -> Overview:
    """Add what the driver reports in the status file, unless an earlier driver wrote the file."""
    driver, writer = found.driver, status.driver
    if driver is None or (driver.host, driver.pid) != (writer.host, writer.pid):
        return found.model_copy(update={"images_per_second": None})
    computed = status.images.before + status.images.done - images.done - images.quarantined
    running = [worker.shard for worker in status.workers if worker.shard is not None]
    return found.model_copy(
        update={
            "state": "running",
            "images": images.model_copy(update={"in_work": max(0, computed)}),
            "shards": shards.model_copy(update={"running": sorted(running)}),
            "seconds_left": status.seconds_left,
            "workers": status.workers,
        }
    )

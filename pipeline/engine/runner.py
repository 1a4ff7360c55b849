"""The `run` command: checks, Ray, the driver loop and what is said at the end."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import ray

from dhr_batch.pipeline import stopping
from dhr_batch.pipeline.engine.driver import Driver
from dhr_batch.pipeline.engine.messages import WorkerFacts
from dhr_batch.pipeline.engine.progress import Progress, RunCounters
from dhr_batch.pipeline.engine.status import StatusWriter
from dhr_batch.pipeline.engine.worker import Settings
from dhr_batch.pipeline.errors import CommandError, Refused
from dhr_batch.pipeline.planning import devices, estimate, resume
from dhr_batch.pipeline.planning.plan import Plan, Shard
from dhr_batch.pipeline.planning.prepare import check_gpus, check_models, describe, place
from dhr_batch.pipeline.planning.request import Request
from dhr_batch.pipeline.report.write import write_report
from dhr_batch.pipeline.runs import card, status_file
from dhr_batch.pipeline.runs.folder import RunFolder
from dhr_batch.pipeline.runs.manifests import total
from dhr_batch.pipeline.storage.base import Storage
from dhr_batch.pipeline.storage.local import LocalStorage
from dhr_batch.pipeline.storage.locations import absolute
from dhr_batch.pipeline.storage.ownership import RUN, Owned, listed
from dhr_batch.pipeline.units import duration

DONE, ERROR, REFUSED, TOO_MANY_QUARANTINED, INTERRUPTED = 0, 1, 2, 3, 130
_OBJECT_STORE = 100 * 2**20

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunOutcome:
    """How a run ended. images: planned; done: in committed rows; seconds: of this start.

    stopped: the user asked for it, perhaps when nothing was left to do.
    """

    out: str
    images: int
    done: int
    quarantined: int
    exit_code: int
    seconds: float = 0.0
    report: str | None = None
    stopped: bool = False

    def to_json(self) -> dict[str, Any]:
        """What `--json` prints: without `stopped`, which only a benchmark acts upon."""
        content = asdict(self)
        del content["stopped"]
        return content


def run(plan: Plan, request: Request) -> RunOutcome:
    """Process the shards of a plan that are not committed yet.

    Raises Refused (another driver, changed settings, too little space, absent GPUs), ModelMissing
    before any worker is started, RunFailed, and StorageError where the place of the run does not
    answer or belongs to another driver now. Raises Interrupted after a second Ctrl-C where that
    place does not answer.
    """
    check_gpus(plan, request)
    run_folder = claimed(plan, request)
    out = run_folder.storage
    state, stopper = RunCounters(total=0, shards=0), stopping.Stopper()
    with stopping.scope(), Progress(state, request.progress, request.quiet) as progress:
        run_folder.lock()
        try:
            # Under the lease: until then another driver might still write the plan of this run.
            if request.fresh:
                check_models(plan, request)
                if left := resume.start_over(run_folder, out.place, request.confirmed):
                    progress.say(f"left in {out.place}, as no run wrote them: {listed(left)}")
            plan = resume.continued(run_folder, out.place, plan, request.extend)
            before = run_folder.recover()
            images = sum(shard.images for shard in before.values())
            state.before, state.total = images, plan.images - images
            state.shards = len(plan.shards) - len(before)
            started = time.monotonic()
            if not state.shards:
                progress.say(f"nothing to do: all {plan.images} images of {out.place} are finished")
                finished = True
            else:
                todo = (shard for shard in plan.shards if shard.index not in before)
                finished = _process(plan, request, run_folder, progress, todo, stopper)
            ended = _outcome(plan, request, run_folder, progress, finished, started)
            return replace(ended, stopped=stopper.requested)
        finally:
            run_folder.unlock()


def claimed(plan: Plan, request: Request) -> RunFolder:
    """The folder of a run, marked as one before anything else is written to it.

    Raises Refused where the place holds files that no run wrote.
    """
    out = place(plan, request)
    Owned(out, RUN).claim(dataset=absolute(plan.dataset.location))
    return RunFolder(out, plan.config.lease_timeout)


def _process(
    plan: Plan,
    request: Request,
    run_folder: RunFolder,
    progress: Progress,
    todo: Iterator[Shard],
    stopper: stopping.Stopper,
) -> bool:
    check_models(plan, request)
    config, state = plan.config, progress.state
    workers = devices.worker_count(config, state.shards)
    state.parallel = workers
    progress.say(describe(plan, run_folder.storage.place))
    if state.shards < len(plan.shards):
        progress.say(f"resuming: {len(plan.shards) - state.shards} shards are finished already")

    def on_ready(facts: WorkerFacts) -> None:
        tables = estimate.bytes_per_image(config, facts.generator)
        free = run_folder.storage.free()
        line = estimate.check_space(free, tables, state.total, state.shards, force=request.force)
        progress.say(line)
        keep_plan(run_folder, plan)
        progress.say(f"{state.total} images to do on {facts.device}; timing the first one")

    settings = worker_settings(plan, run_folder.storage)
    with _ray(request, plan, workers, stopper) as dashboard:
        if dashboard:
            progress.say(f"Ray dashboard: http://{dashboard}")
        status = _status(state, run_folder.storage)
        driver = Driver(run_folder, settings, todo, progress, workers, on_ready, status, stopper)
        try:
            return driver.process()
        except stopping.Interrupted:
            return False


def keep_plan(run_folder: RunFolder, plan: Plan) -> None:
    """Write the plan of a new run, or add to the stored one what a continued plan has behind it."""
    stored = run_folder.plan()
    if stored is None:
        run_folder.write_plan(plan.stored())
    elif len(stored.shards) < len(plan.shards) or resume.has_open_marks(stored):
        run_folder.replace_plan(resume.extended(stored, plan))


def worker_settings(plan: Plan, out: Storage) -> Settings:
    """What the workers of a run need to know."""
    fingerprint = plan.head().fingerprint
    return Settings(
        config=plan.config,
        aligned=plan.dataset.aligned,
        split=plan.dataset.split,
        device=devices.torch_device(plan.config),
        out=out.address,
        code=fingerprint.code,
        truths=plan.truths,
        metadata={
            "version": fingerprint.version,
            "generator": plan.config.generator,
            "seed": plan.config.seed,
            "config": fingerprint.config,
            "models": fingerprint.models,
        },
    )


def _status(state: RunCounters, out: Storage) -> StatusWriter:
    """The status file of a run, which goes on with the throughput of earlier starts."""
    points = status_file.throughput(out)
    every = 2.0 if isinstance(out, LocalStorage) else 10.0
    write = status_file.writer(out)
    return StatusWriter(state, write, every, points)


@contextmanager
def _ray(request: Request, plan: Plan, workers: int, stopper: stopping.Stopper) -> Iterator[str]:
    """A Ray session: the one that is there, the cluster at `address`, or a local one.

    Yields the address of its dashboard, empty where there is none. Signals tell the stopper until
    the session has ended: Ray that is interrupted while it ends takes the process with it.
    """
    already = ray.is_initialized()
    dashboard = "" if already else _joined(request, plan, workers)
    with stopping.signals(stopper):
        try:
            yield dashboard
        finally:
            if not already:
                ray.shutdown()


def _joined(request: Request, plan: Plan, workers: int) -> str:
    """Start Ray or join it; the address of its dashboard. Raises Refused."""
    # Read when Ray starts. The first leaves CUDA_VISIBLE_DEVICES of CPU workers alone; the last
    # keeps control codes out of what Ray prints about dead workers.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_COLOR_PREFIX", "0")
    config = plan.config
    quiet: dict[str, Any] = {
        "log_to_driver": request.verbose,
        "logging_level": logging.INFO if request.verbose else logging.ERROR,
    }
    if request.address:
        session = ray.init(address=request.address, **quiet)
        there = int(ray.cluster_resources().get("GPU", 0))
        if (config.gpus or 0) > there:
            ray.shutdown()
            raise Refused(
                f"--gpus {config.gpus}",
                f"the cluster at {request.address} has {there} GPUs",
                "ask for fewer",
            )
    else:
        # Without this word Ray joins whatever cluster somebody has started on this machine.
        session = ray.init(
            address="local",
            num_cpus=workers * config.threads,
            num_gpus=config.gpus or 0,
            include_dashboard=False,
            object_store_memory=_OBJECT_STORE,
            **quiet,
        )
    return session.dashboard_url or ""


def _outcome(
    plan: Plan,
    request: Request,
    run_folder: RunFolder,
    progress: Progress,
    finished: bool,
    started: float,
) -> RunOutcome:
    shards = run_folder.committed().values()
    ok = sum(shard.ok for shard in shards)
    bad = sum(shard.quarantined for shard in shards)
    seconds = time.monotonic() - started
    run_folder.clear_staging()
    code = INTERRUPTED
    page: str | None = None
    if finished:
        too_many = plan.images > 0 and bad / plan.images > plan.config.max_quarantined
        code = TOO_MANY_QUARANTINED if too_many else DONE
        rows = total(s.rows for s in shards)
        if not card.write_card(run_folder.storage, plan.head(), plan.images, rows):
            progress.say(
                f"{run_folder.storage.locate(card.NAME)} is left as it is: no run wrote it, or it "
                "was changed since. Move it away, and the same command writes that of this run"
            )
    progress.say(
        f"{ok} images finished, {bad} quarantined, {plan.images - ok - bad} to do "
        f"({duration(seconds)})"
    )
    for name, count in total(shard.errors for shard in shards).most_common():
        progress.say(f"  quarantined: {count} x {name}")
    if code == TOO_MANY_QUARANTINED:
        progress.say(
            f"more than max_quarantined={plan.config.max_quarantined:g} of the images failed; see "
            f"{run_folder.storage.locate('quarantine')}"
        )
    if finished and request.report:
        page = _report(run_folder.storage, progress)
    if not finished:
        progress.say("interrupted; the same command goes on from here")
    out = run_folder.storage.place
    return RunOutcome(out, plan.images, ok, bad, code, round(seconds, 3), report=page)


def _report(out: Storage, progress: Progress) -> str | None:
    try:
        return write_report(out)
    except CommandError as error:
        progress.say(f"no report: {error}")
    except Exception as error:
        # The run is finished, whatever becomes of its report.
        log.warning("no report", exc_info=True)
        progress.say(
            f"no report: {type(error).__name__}: {error}; "
            f"`dhr-batch report {out.place}` tries again"
        )
    return None

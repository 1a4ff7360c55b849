"""The `run` command: checks, Ray, the driver loop and the summary at the end."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import ray

from dhr_batch.pipeline import stopping
from dhr_batch.pipeline.engine.driver import Driver
from dhr_batch.pipeline.engine.progress import Progress, RunCounters
from dhr_batch.pipeline.engine.session import session
from dhr_batch.pipeline.engine.status import StatusWriter
from dhr_batch.pipeline.errors import CommandError
from dhr_batch.pipeline.planning import costs, devices, estimate, resume
from dhr_batch.pipeline.planning.plan import Plan, Shard
from dhr_batch.pipeline.planning.prepare import check_gpus, check_models, describe, notes, place
from dhr_batch.pipeline.planning.request import Request
from dhr_batch.pipeline.printable import without_secrets
from dhr_batch.pipeline.runs import card
from dhr_batch.pipeline.runs.folder import RunFolder
from dhr_batch.pipeline.runs.records import status_file
from dhr_batch.pipeline.runs.records.manifests import total
from dhr_batch.pipeline.storage.base import Storage
from dhr_batch.pipeline.storage.local import LocalStorage
from dhr_batch.pipeline.storage.locations import absolute
from dhr_batch.pipeline.storage.ownership import RUN, Owned, listed
from dhr_batch.pipeline.units import counted, duration
from dhr_batch.pipeline.worker.messages import WorkerFacts
from dhr_batch.pipeline.worker.settings import Settings

DONE, ERROR, REFUSED, TOO_MANY_QUARANTINED, INTERRUPTED = 0, 1, 2, 3, 130

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunOutcome:
    """The outcome of a start of a run.

    Attributes:
        out: The folder or URL of the run.
        images: The number of planned images.
        done: The number of finished images in committed shards.
        quarantined: The number of quarantined images in committed shards.
        exit_code: The exit code of the command.
        seconds: The duration of this start.
        report: The path of the report, if one was made.
        stopped: Whether the user has asked to stop, even if the run was finished by then.
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
        """Return what `--json` prints. `stopped` is for benchmarks only and is left out."""
        content = asdict(self)
        del content["stopped"]
        return content


def run(plan: Plan, request: Request) -> RunOutcome:
    """Process the shards of a plan that are not committed yet.

    Raises:
        Refused: If another driver works on the run, settings have changed, space or GPUs are
            missing, or the folder contains files of the user.
        ModelMissing: If a model is missing. No worker is started then.
        RunFailed: If the run cannot go on.
        StorageError: If the place of the run does not answer, or another driver has taken it over.
        Interrupted: After a second Ctrl-C, if the place of the run does not answer.
    """
    check_gpus(plan, request)
    run_folder = claimed(plan, request)
    out = run_folder.storage
    state, stopper = RunCounters(total=0, shards=0), stopping.Stopper()
    with stopping.scope(), Progress(state, request.progress, request.quiet) as progress:
        run_folder.lock()
        try:
            # Without the lease, another driver might still write the plan while it is read.
            if request.fresh:
                check_models(plan, request)
                if kept := resume.start_over(run_folder, out.place, request.confirmed):
                    progress.say(f"files in {out.place} that no run wrote are kept: {listed(kept)}")
            plan = continued(run_folder, plan, request)
            before = run_folder.recover()
            images = sum(shard.images for shard in before.values())
            state.before, state.total = images, plan.images - images
            state.before_failed = sum(shard.quarantined for shard in before.values())
            state.shards = len(plan.shards) - len(before)
            started = time.monotonic()
            if not state.shards:
                for line in notes(plan):
                    progress.say(line)
                if plan.compared:
                    keep_plan(run_folder, plan)
                progress.say(f"nothing to do: all {plan.images} images in {out.place} are finished")
                finished = True
            else:
                todo = (shard for shard in plan.shards if shard.index not in before)
                finished = _process(plan, request, run_folder, progress, todo, stopper)
            outcome = _outcome(plan, request, run_folder, progress, finished, started)
            return replace(outcome, stopped=stopper.requested)
        finally:
            run_folder.unlock()


def claimed(plan: Plan, request: Request) -> RunFolder:
    """Mark a place as a run before anything else is written to it, and return the run folder.

    Raises:
        Refused: If the place contains files that no run wrote.
    """
    out = place(plan, request)
    Owned(out, RUN).claim()
    return RunFolder(out, plan.config.lease_timeout)


def continued(run_folder: RunFolder, plan: Plan, request: Request) -> Plan:
    """Continue the plan of an earlier start, and record the location of the dataset in the marker.

    The caller holds the lease. If the start is refused, the marker is not changed.

    Returns:
        The plan, with the settings and images that an earlier start has stored.

    Raises:
        Refused: If the run was started with other settings or images.
    """
    out = run_folder.storage
    plan = resume.continued(run_folder, out.place, plan, request.extend)
    Owned(out, RUN).claim(dataset=without_secrets(absolute(plan.dataset.location)))
    return plan


def _process(
    plan: Plan,
    request: Request,
    run_folder: RunFolder,
    progress: Progress,
    todo: Iterator[Shard],
    stopper: stopping.Stopper,
) -> bool:
    config, state = plan.config, progress.state
    state.doing = "checking the models"
    check_models(plan, request)
    workers = devices.worker_count(config, state.shards)
    state.forecast = costs.forecast(config, costs.expected(config))
    progress.say(describe(plan, run_folder.storage.place))
    if state.shards < len(plan.shards):
        progress.say(f"resuming: {len(plan.shards) - state.shards} shards are finished already")

    def on_ready(facts: WorkerFacts) -> None:
        tables = estimate.bytes_per_image(config, facts.generator)
        free = run_folder.storage.free()
        line = estimate.check_space(free, tables, state.total, state.shards, force=request.force)
        progress.say(line)
        keep_plan(run_folder, plan)
        images = counted(state.total, "image")
        progress.say(f"{images} to process on {facts.device}; timing the first one")
        state.doing = ""

    state.doing = "starting Ray"
    with session(request, config, workers, stopper) as dashboard:
        cpus = devices.worker_cores(
            config, ray.nodes(), ray.available_resources().get("CPU", 0.0), workers
        )
        settings = replace(worker_settings(plan, run_folder.storage), cpus=cpus)
        if dashboard:
            progress.say(f"Ray dashboard: http://{dashboard}")
        state.doing = "loading the networks"
        status = _status(state, run_folder.storage)
        driver = Driver(run_folder, settings, todo, progress, workers, on_ready, status, stopper)
        try:
            return driver.process()
        except stopping.Interrupted:
            return False


def keep_plan(run_folder: RunFolder, plan: Plan) -> None:
    """Write the plan of a new run, or add new images and marks to the stored plan."""
    stored = run_folder.plan()
    if stored is None:
        run_folder.write_plan(plan.stored())
    elif len(stored.shards) < len(plan.shards) or plan.compared or resume.has_open_marks(stored):
        run_folder.replace_plan(resume.extended(stored, plan))


def worker_settings(plan: Plan, out: Storage) -> Settings:
    """Return the settings of the workers of a run.

    Args:
        plan: The plan of the run.
        out: The place of the run.
    """
    fingerprint = plan.head().fingerprint
    return Settings(
        config=plan.config,
        aligned=plan.dataset.aligned,
        split=plan.dataset.split,
        device=devices.torch_device(plan.config),
        # Metal is not used from several threads at once.
        divided=bool(plan.config.gpus) and plan.config.device != "mps",
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
    """Return a writer of the status file that keeps the throughput of earlier starts."""
    points = status_file.throughput(out)
    every = 2.0 if isinstance(out, LocalStorage) else 10.0
    write = status_file.writer(out)
    return StatusWriter(state, write, every, points)


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
                f"{run_folder.storage.locate(card.NAME)} is kept: no run wrote it, or it has been "
                "changed. Move it away and give the same command again to write it"
            )
    progress.say(
        f"{counted(ok, 'image')} finished, {bad} quarantined, {plan.images - ok - bad} remaining "
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
        progress.state.doing = "writing the report"
        page = _report(run_folder.storage, progress)
    if not finished:
        progress.say("interrupted; the same command goes on from here")
    out = run_folder.storage.place
    return RunOutcome(out, plan.images, ok, bad, code, round(seconds, 3), report=page)


def _report(out: Storage, progress: Progress) -> str | None:
    # A driver would keep what reports import, such as SciPy, during the run.
    from dhr_batch.pipeline.report.write import write_report

    try:
        return write_report(out)
    except CommandError as error:
        progress.say(f"no report: {error}")
    except Exception as error:
        # An error in the report is not an error of the run.
        log.warning("no report", exc_info=True)
        progress.say(
            f"no report: {type(error).__name__}: {error}; "
            f"`dhr-batch report {out.place}` tries again"
        )
    return None

"""The runs of a benchmark that take turns, so that their seconds can be compared.

Runs that are made one after the other are measured hours apart, and a machine that others use, or
that grows hot, is not the same machine by then. Here each run has one process, all of them stay,
and one shard after the other is computed by every run before the next one begins. The run that is
first changes from shard to shard. A drift of the machine then reaches all runs alike, and the
ratio of two runs is taken on each shard before anything is averaged.

Only the stages `segment` and `refine` are clocked: from a code to the mask and the refined picture.
The start of a process is outside the clock; the first shard of each still fills caches.

What is committed here is an ordinary shard, whose manifest has the clocks under `clocked`. A run
that fails drops out, and whatever is missing afterwards is left to `runner.run`.
"""

from __future__ import annotations

import multiprocessing
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from typing import Any, TypeVar

from dhr_batch.pipeline import stopping
from dhr_batch.pipeline.engine import runner
from dhr_batch.pipeline.engine.messages import WorkerFacts
from dhr_batch.pipeline.engine.worker import Settings, Worker
from dhr_batch.pipeline.planning import prepare, resume
from dhr_batch.pipeline.planning.plan import Shard
from dhr_batch.pipeline.planning.request import Request
from dhr_batch.pipeline.runs.folder import RunFolder
from dhr_batch.pipeline.runs.manifests import Manifest
from dhr_batch.stages.base import Record, Stage

T = TypeVar("T")


def in_turn(members: Sequence[T], number: int) -> list[T]:
    """The members in the order of a turn. Turns are counted from 0; the first member changes."""
    first = number % max(1, len(members))
    return [*members[first:], *members[:first]]


def take_turns(requests: Sequence[Request], say: Callable[[str], None]) -> set[str]:
    """Compute the missing shards of several runs in turn.

    Returns the places of the runs that had missing shards. Raises KeyboardInterrupt where the user
    asked to stop; shards that are finished by then are kept.
    """
    stopper, turns = stopping.Stopper(), []
    with stopping.scope(), ExitStack() as stack, stopping.signals(stopper):
        for request in requests:
            try:
                turns.append(stack.enter_context(_open(request)))
            except Exception as error:
                say(f"{request.out} takes no turns: {error}")
        computed = {str(turn.request.out) for turn in turns if turn.missing}
        shards = sorted({shard for turn in turns for shard in turn.missing})
        for number, shard in enumerate(shards):
            for turn in in_turn(turns, number):
                if shard not in turn.missing:
                    continue
                try:
                    turn.compute(shard)
                except Exception as error:
                    say(f"{turn.request.out} takes no more turns: {error}")
                    turn.missing.clear()
                stopper.announce(say)
                if stopper.requested:
                    raise KeyboardInterrupt
            say(f"turn {number + 1} of {len(shards)} is finished")
    return computed


@dataclass(frozen=True)
class _Turn:
    """A run with a process of its own. missing: its uncommitted shards by number."""

    request: Request
    folder: RunFolder
    missing: dict[int, Shard]
    connection: Connection

    def compute(self, number: int) -> None:
        shard = self.missing.pop(number)
        self.connection.send((shard, self.folder.new_attempt(number, 1)))
        try:
            receipt = stopping.interruptible(self.connection.recv)
        except EOFError as error:
            raise RuntimeError("its process has ended") from error
        if isinstance(receipt, str):
            raise RuntimeError(receipt)
        self.folder.commit(number, receipt, len(shard.items))


@contextmanager
def _open(request: Request) -> Iterator[_Turn]:
    """A run under its lease, and its process."""
    plan = prepare.prepare(request)
    folder = runner.claimed(plan, request)
    folder.lock()
    try:
        plan = resume.continued(folder, folder.storage.place, plan, request.extend)
        done = folder.recover()
        missing = {shard.index: shard for shard in plan.shards if shard.index not in done}
        spawn = multiprocessing.get_context("spawn")
        here, there = spawn.Pipe()
        settings = runner.worker_settings(plan, folder.storage)
        process = spawn.Process(target=_serve, args=(there, settings), daemon=True)
        if missing:
            runner.keep_plan(folder, plan)
            process.start()
        # The process then ends by itself where this one is killed.
        there.close()
        try:
            yield _Turn(request, folder, missing, here)
        finally:
            if process.pid is not None:
                process.kill()
                process.join()
    finally:
        folder.unlock()


def _serve(connection: Connection, settings: Settings) -> None:
    """The process of a run: receives shards with the names of attempts, sends receipts or why there
    is none."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    worker = None
    with suppress(EOFError):
        while True:
            shard, attempt = connection.recv()
            try:
                if worker is None:
                    worker = ClockedWorker(settings)
                    worker.setup()
                connection.send(worker.run_shard(shard, attempt))
            except Exception as error:
                connection.send(f"{type(error).__name__}: {error}")


class ClockedWorker(Worker):
    """A worker whose receipts say what mask and refinement took, and how many renders.

    Seconds of the processor are those of all threads of the process; a worker that writes one batch
    while it computes another has the writing in them, so shards should be of one batch.
    """

    def setup(self) -> WorkerFacts:
        facts = super().setup()
        self.clocks = {"seconds": 0.0, "cpu_seconds": 0.0, "generator_calls": 0.0}
        context = self.stages[0].context
        generator = context.network("generator", context.generator)
        original = generator.from_feature

        def counted(*arguments: Any, **options: Any) -> Any:
            self.clocks["generator_calls"] += 1
            return original(*arguments, **options)

        generator.from_feature = counted
        return facts

    def _run(self, stage: Stage, records: list[Record]) -> list[Record]:
        before = self.clocks | {"wall": time.perf_counter(), "cpu": time.process_time()}
        records = super()._run(stage, records)
        if stage.family in ("segment", "refine"):
            self.clocks["seconds"] += time.perf_counter() - before["wall"]
            self.clocks["cpu_seconds"] += time.process_time() - before["cpu"]
        else:
            self.clocks["generator_calls"] = before["generator_calls"]
        return records

    def run_shard(self, shard: Shard, attempt: str) -> Manifest:
        self.clocks |= dict.fromkeys(self.clocks, 0.0)
        return replace(super().run_shard(shard, attempt), clocked=dict(self.clocks))

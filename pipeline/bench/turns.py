"""Runs of a benchmark that process each shard in turn, so that their times can be compared.

Runs that are computed one after the other are measured hours apart, and the speed of the machine
may have changed by then, because of other programs or of heat. Therefore each run has a process of
its own, and every run processes a shard before the next shard begins. The run that is first changes
from shard to shard. Changes of the machine then affect all runs equally. The ratio of two runs is
taken for each shard before it is averaged.

Every stage that a run computes is measured. The start of a process is not, nor are the reading and
writing of files, but the first shard still fills caches.

The shards are committed like those of any other run. Their manifests have the times under
`clocked`. A run that fails takes no more turns, and its remaining shards are left to `runner.run`.
"""

from __future__ import annotations

import multiprocessing
import signal
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from typing import Any, TypeVar

from dhr_batch.pipeline import stopping
from dhr_batch.pipeline.engine import runner
from dhr_batch.pipeline.planning import prepare
from dhr_batch.pipeline.planning.plan import Shard
from dhr_batch.pipeline.planning.request import Request
from dhr_batch.pipeline.runs.folder import RunFolder
from dhr_batch.pipeline.runs.records.manifests import Manifest
from dhr_batch.pipeline.worker.messages import WorkerFacts
from dhr_batch.pipeline.worker.settings import Settings
from dhr_batch.pipeline.worker.worker import Worker
from dhr_batch.stages.base import Stage
from dhr_batch.stages.record import Record

T = TypeVar("T")
# What is measured of each stage.
CLOCKS = ("seconds", "cpu_seconds", "generator_calls")


def in_turn(members: Sequence[T], number: int) -> list[T]:
    """Return the members in the order of a turn.

    Args:
        members: The members.
        number: The number of the turn, from 0. The first member changes with it.
    """
    first = number % max(1, len(members))
    return [*members[first:], *members[:first]]


def take_turns(requests: Sequence[Request], say: Callable[[str], None]) -> set[str]:
    """Compute the missing shards of several runs in turn.

    Args:
        requests: The requests of the runs.
        say: Called with messages about the progress.

    Returns:
        The places of the runs that had missing shards.

    Raises:
        KeyboardInterrupt: If the user has asked to stop. Finished shards are kept.
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
    """A run with a process of its own.

    Attributes:
        request: The request of the run.
        folder: The folder of the run, whose lease is held.
        missing: The uncommitted shards by number.
        connection: The connection to the process.
    """

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
    """Take the lease of a run and start its process."""
    plan = prepare.prepare(request)
    folder = runner.claimed(plan, request)
    folder.lock()
    try:
        plan = runner.continued(folder, plan, request)
        done = folder.recover()
        missing = {shard.index: shard for shard in plan.shards if shard.index not in done}
        spawn = multiprocessing.get_context("spawn")
        connection, other_end = spawn.Pipe()
        settings = runner.worker_settings(plan, folder.storage)
        process = spawn.Process(target=_serve, args=(other_end, settings), daemon=True)
        if missing:
            runner.keep_plan(folder, plan)
            process.start()
        # If this process is killed, the other one then ends by itself.
        other_end.close()
        try:
            yield _Turn(request, folder, missing, connection)
        finally:
            if process.pid is not None:
                process.kill()
                process.join()
    finally:
        folder.unlock()


def _serve(connection: Connection, settings: Settings) -> None:
    """Process shards for a run. This is the main function of its process.

    It receives shards with the names of attempts, and sends receipts or messages about errors.
    """
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
    """A worker whose receipts have the time and the generator calls of each stage.

    Their keys are `seconds_embed`, `cpu_seconds_embed`, `generator_calls_embed` and so on. CPU
    seconds are those of all threads of the process. If a worker reads or writes one batch while it
    computes another, they include that, so a shard should have only one batch.
    """

    def setup(self) -> WorkerFacts:
        facts = super().setup()
        self.clocks: defaultdict[str, float] = defaultdict(float)
        self.calls = 0
        context = self.stages[0].context
        generator = context.network("generator", context.generator)
        original = generator.from_feature

        def counted(*arguments: Any, **options: Any) -> Any:
            self.calls += 1
            return original(*arguments, **options)

        generator.from_feature = counted
        return facts

    def _run(self, stage: Stage, records: list[Record]) -> list[Record]:
        before = self._now()
        records = super()._run(stage, records)
        for clock, now in self._now().items():
            self.clocks[f"{clock}_{stage.family}"] += now - before[clock]
        return records

    def _now(self) -> dict[str, float]:
        times = (time.perf_counter(), time.process_time(), self.calls)
        return dict(zip(CLOCKS, times, strict=True))

    def run_shard(self, shard: Shard, attempt: str) -> Manifest:
        self.clocks.clear()
        return replace(super().run_shard(shard, attempt), clocked=dict(self.clocks))

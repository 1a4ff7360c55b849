"""The handling of failed workers: another attempt, another worker, or the end of the run.

`pipeline/engine/blame.py` determines which image has crashed a worker. If a whole machine is lost,
no image is blamed.
"""

from __future__ import annotations

from collections import Counter

from ray.exceptions import RayTaskError

from dhr_batch.pipeline.engine import members
from dhr_batch.pipeline.engine.blame import ATTEMPTS, Blame, Death, Place
from dhr_batch.pipeline.engine.crew import Crew
from dhr_batch.pipeline.engine.members import Member
from dhr_batch.pipeline.engine.progress import Progress
from dhr_batch.pipeline.engine.tasks import CloseShard, Queue, ShardTask, Task
from dhr_batch.pipeline.errors import Refused, RunFailed, StorageError
from dhr_batch.pipeline.planning.plan import Shard
from dhr_batch.pipeline.runs.folder import RunFolder
from dhr_batch.stages import failures
from dhr_batch.stages.registry import InvalidInput

# The number of workers of a run that may crash in a row without any finished image in between.
DEATHS_IN_A_ROW = 20


class Losses:
    """Counts failures and replaces workers. Methods raise RunFailed if the run cannot go on.

    Args:
        run: The folder of the run.
        crew: The workers.
        queue: The shards that wait for a worker.
        blame: The histories of shards and GPUs.
        progress: The progress display.
        workers: The number of workers.
    """

    def __init__(
        self,
        run: RunFolder,
        crew: Crew,
        queue: Queue,
        blame: Blame,
        progress: Progress,
        workers: int,
    ) -> None:
        self._run, self._crew, self._queue, self._blame = run, crew, queue, blame
        self._progress = progress
        self._most_deaths = max(DEATHS_IN_A_ROW, 3 * workers)
        self._deaths_in_a_row = 0
        self._failed_starts: Counter[int] = Counter()

    def started(self, number: int) -> None:
        """Note that a worker has loaded its networks."""
        self._failed_starts.pop(number, None)

    def note_progress(self, member: Member) -> None:
        """Reset the counts of crashes if a worker has finished an image."""
        if member.has_progressed():
            self._deaths_in_a_row = 0
            self._blame.worked(member.place)

    def failed(self, task: Task, error: RayTaskError) -> None:
        """Handle an error of a worker that does not concern a single image."""
        reason, cause = members.short(error), error.cause
        if isinstance(cause, Exception) and failures.kind_of(cause) == "poisoned":
            self.lost(task, reason)
        elif not isinstance(task, ShardTask):
            if isinstance(cause, InvalidInput):
                # Other workers have the same settings, for example a generator of the wrong kind.
                raise Refused(cause.reason, way_out=cause.way_out) from error
            self._give_up(task.worker, reason)
        elif isinstance(cause, StorageError):
            raise RunFailed(reason, way_out=RunFailed.GOES_ON) from error
        elif isinstance(cause, OSError):
            raise RunFailed("the results cannot be written", reason, RunFailed.GOES_ON) from error
        else:
            member = self._crew.members[task.worker]
            if task.shard.index == member.shard:
                members.take_back(member, self._progress)
            self._retry(task, reason)
            self._count_error(task.shard, reason)
            self._crew.release(task)

    def lost(
        self, task: Task, reason: str, error_class: str = "crash", innocent: bool = False
    ) -> None:
        """Replace a worker whose process has ended or can no longer be used.

        Args:
            task: The task that the worker was working on.
            reason: The message.
            error_class: The class of the failure for an image that is the cause.
            innocent: Whether the machine was lost, in which case no image is blamed.
        """
        number, place = task.worker, self._crew.members[task.worker].place
        for other in reversed(self._end(number)):
            if other is not task:
                self.give_back(other)
                self._blame.history(other.shard.index).suspect |= not innocent
        if isinstance(task, ShardTask):
            self._retry(task, reason)
            if not innocent:
                self._note_crash(task, place, error_class, reason)
        elif not innocent and self._fails_to_start(number, place):
            self._give_up(number, f"it crashes while it loads the networks: {reason}")
            return
        self._deaths_in_a_row += 1
        if self._deaths_in_a_row >= self._most_deaths:
            raise RunFailed(
                f"{self._deaths_in_a_row} workers crashed in a row, and no image was finished in "
                "between",
                f"the last one: {reason}",
                RunFailed.GOES_ON,
            )
        if place and self._blame.is_broken(place):
            self._take_out(place, number, reason)
        self._progress.say(f"worker {number} is lost ({reason}); starting another one")
        self._crew.start(number)

    def park(self, number: int) -> None:
        """Let a worker occupy a GPU that is out of use, so that Ray does not assign it again."""
        workers = self._crew.members
        workers[number].parked = True
        self._crew.say(number, f"does nothing: {workers[number].place} is out of use")
        if len(workers) < self._crew.slots():
            self._crew.start(max(workers) + 1)
        elif all(member.parked for member in workers.values()):
            names = ", ".join(sorted(map(str, self._blame.broken)))
            raise RunFailed("no GPU is left", f"all workers crashed on {names}", RunFailed.GOES_ON)

    def _note_crash(
        self, task: ShardTask, place: Place | None, error_class: str, reason: str
    ) -> None:
        image_id = task.image.image_id if task.image else ""
        self._blame.died(task.shard.index, Death(place, error_class, reason, image_id))
        if isinstance(task, CloseShard):
            # All images are finished, so only this count ends the repetition.
            self._count_error(task.shard, reason)

    def _count_error(self, shard: Shard, reason: str) -> None:
        """Count a failure of a shard that no image has caused. The second one ends the run."""
        history = self._blame.history(shard.index)
        history.errors += 1
        if history.errors >= ATTEMPTS:
            raise RunFailed(
                _described(shard), f"failed {ATTEMPTS} times: {reason}", RunFailed.GOES_ON
            )

    def _fails_to_start(self, number: int, place: Place | None) -> bool:
        """Whether a worker crashed too often before it was ready, and no GPU can be the cause."""
        if place:
            self._blame.failed_start(place)
            return False
        self._failed_starts[number] += 1
        return self._failed_starts[number] >= ATTEMPTS

    def _take_out(self, place: Place, last: int, reason: str) -> None:
        """Take a GPU out of use. The shards of its workers, except the last one, are requeued."""
        self._blame.take_out(place)
        self._progress.say(
            f"{place} is taken out of use: its workers crashed in a row and finished no image; the "
            f"last one: {reason}. No image is blamed"
        )
        others = [n for n, m in self._crew.members.items() if m.place == place and n != last]
        for number in others:
            in_hand = self._end(number)
            for task in reversed(in_hand[1:]):
                self.give_back(task)
            for task in in_hand[:1]:
                self._retry(task, f"{place} was taken out of use")
            self._crew.start(number)

    def _give_up(self, number: int, reason: str) -> None:
        """Remove a worker that cannot start. Without any other worker, the run fails."""
        self._crew.end(number)
        del self._crew.members[number]
        self._progress.state.workers.pop(number, None)
        left = sum(not member.parked for member in self._crew.members.values())
        if not left:
            raise RunFailed(
                f"worker {number} cannot start",
                reason,
                "remove the cause, then start the run again",
            )
        self._progress.say(f"worker {number} cannot start: {reason}; going on with {left}")

    def _end(self, number: int) -> list[ShardTask]:
        """End a worker and return the tasks that it had in hand."""
        in_hand = self._crew.in_hand().get(number, [])
        members.take_back(self._crew.members[number], self._progress)
        self._crew.end(number)
        return in_hand

    def give_back(self, task: ShardTask) -> None:
        """Put a shard back into the queue. Nothing of it counts as an attempt."""
        self._run.discard(task.attempt)
        self._queue.give_back(task.shard)

    def _retry(self, task: ShardTask, reason: str) -> None:
        """Discard the results of a failed attempt and put its shard back into the queue."""
        self.give_back(task)
        self._blame.history(task.shard.index).reasons.append(reason)


def _described(shard: Shard) -> str:
    """Describe a shard by its number and first images."""
    names = ", ".join(item.image_id for item in shard.items[:3])
    return f"shard {shard.index} ({names}{', ...' if len(shard.items) > 3 else ''})"

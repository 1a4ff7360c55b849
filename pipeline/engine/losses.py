"""What follows where a worker ends or fails: blame, another attempt, another worker, or the end.

`pipeline/engine/blame.py` decides which image is blamed for a lost worker; a machine that goes
away blames none.
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
from dhr_batch.pipeline.errors import RunFailed, StorageError
from dhr_batch.pipeline.planning.plan import Shard
from dhr_batch.pipeline.runs.folder import RunFolder
from dhr_batch.stages import failures

# Workers that may end one after the other, in the whole run, without any image finished between.
DEATHS_IN_A_ROW = 20


class Losses:
    """Counts what went wrong, and replaces what can be replaced. Raises RunFailed where not.

    workers: how many the run has.
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
        """A worker has loaded its networks."""
        self._failed_starts.pop(number, None)

    def note_progress(self, member: Member) -> None:
        """Where a worker has finished an image, what ended before speaks no longer against it."""
        if member.has_progressed():
            self._deaths_in_a_row = 0
            self._blame.worked(member.place)

    def failed(self, task: Task, error: RayTaskError) -> None:
        """A worker reports an error that is not about one image."""
        reason, cause = members.short(error), error.cause
        if isinstance(cause, Exception) and failures.kind_of(cause) == "poisoned":
            self.lost(task, reason)
        elif not isinstance(task, ShardTask):
            self._give_up(task.worker, reason)
        elif isinstance(cause, StorageError):
            raise RunFailed(reason, way_out=RunFailed.GOES_ON) from error
        elif isinstance(cause, OSError):
            raise RunFailed("the results cannot be written", reason, RunFailed.GOES_ON) from error
        else:
            self._retry(task, reason)
            self._count_error(task.shard, reason)
            self._crew.idle.append(task.worker)

    def lost(
        self, task: Task, reason: str, error_class: str = "crash", innocent: bool = False
    ) -> None:
        """The process of a worker is gone, or is of no more use: take another one.

        innocent: its machine went away, so that no image is to blame.
        """
        number, place = task.worker, self._crew.members[task.worker].place
        self._crew.end(number)
        if isinstance(task, ShardTask):
            self._retry(task, reason)
            if not innocent:
                self._hold_against(task, place, error_class, reason)
        elif not innocent and self._fails_to_start(number, place):
            self._give_up(number, f"it ends while it loads the networks: {reason}")
            return
        self._deaths_in_a_row += 1
        if self._deaths_in_a_row >= self._most_deaths:
            raise RunFailed(
                f"{self._deaths_in_a_row} workers ended one after the other and no image was "
                "finished between",
                f"the last one: {reason}",
                RunFailed.GOES_ON,
            )
        if place and self._blame.is_broken(place):
            self._take_out(place, number, reason)
        self._progress.say(f"worker {number} is lost ({reason}); starting another one")
        self._crew.start(number)

    def park(self, number: int) -> None:
        """Let a worker hold a GPU that is out of use, or Ray would give it to the next one."""
        workers = self._crew.members
        workers[number].parked = True
        self._crew.say(number, f"does nothing: {workers[number].place} is out of use")
        if len(workers) < self._crew.slots():
            self._crew.start(max(workers) + 1)
        elif all(member.parked for member in workers.values()):
            names = ", ".join(sorted(map(str, self._blame.broken)))
            raise RunFailed("no GPU is left", f"{names} ended all workers", RunFailed.GOES_ON)

    def _hold_against(
        self, task: ShardTask, place: Place | None, error_class: str, reason: str
    ) -> None:
        image_id = task.image.image_id if task.image else ""
        self._blame.died(task.shard.index, Death(place, error_class, reason, image_id))
        if isinstance(task, CloseShard):
            # Its images are finished each time, so that nothing else would end this.
            self._count_error(task.shard, reason)

    def _count_error(self, shard: Shard, reason: str) -> None:
        """A shard failed, and none of its images is to blame: at the second time the run ends."""
        history = self._blame.history(shard.index)
        history.errors += 1
        if history.errors >= ATTEMPTS:
            raise RunFailed(
                _described(shard), f"failed {ATTEMPTS} times: {reason}", RunFailed.GOES_ON
            )

    def _fails_to_start(self, number: int, place: Place | None) -> bool:
        """Whether a worker ended too often before it was ready, and no GPU can be to blame."""
        if place:
            self._blame.failed_start(place)
            return False
        self._failed_starts[number] += 1
        return self._failed_starts[number] >= ATTEMPTS

    def _take_out(self, place: Place, last: int, reason: str) -> None:
        """Use a GPU no longer; what workers besides the `last` have in hand is done elsewhere."""
        self._blame.take_out(place)
        self._progress.say(
            f"{place} is taken out of use: workers ended there one after the other and finished no "
            f"image; the last one: {reason}. No image is held to blame"
        )
        others = [n for n, m in self._crew.members.items() if m.place == place and n != last]
        for number in others:
            for task in self._crew.shards_of(number):
                self._retry(task, f"{place} was taken out of use")
            self._crew.end(number)
            self._crew.start(number)

    def _give_up(self, number: int, reason: str) -> None:
        """A worker that cannot start is given up, and with the last one the run."""
        self._crew.end(number)
        del self._crew.members[number]
        self._progress.state.workers.pop(number, None)
        left = sum(not member.parked for member in self._crew.members.values())
        if not left:
            raise RunFailed(f"worker {number} cannot start", reason)
        self._progress.say(f"worker {number} cannot start: {reason}; going on with {left}")

    def _retry(self, task: ShardTask, reason: str) -> None:
        """Take back what an attempt reported, and queue its shard."""
        self._run.discard(task.attempt)
        members.take_back(self._crew.members[task.worker], self._progress)
        self._queue.give_back(task.shard)
        self._blame.history(task.shard.index).reasons.append(reason)


def _described(shard: Shard) -> str:
    """A shard by its number and first images."""
    names = ", ".join(item.image_id for item in shard.items[:3])
    return f"shard {shard.index} ({names}{', ...' if len(shard.items) > 3 else ''})"

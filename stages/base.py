"""The interface of the steps of the pipeline: a `Stage` and its settings."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict

from dhr_batch.stages import failures, registry
from dhr_batch.stages.context import Context
from dhr_batch.stages.failures import ImageError
from dhr_batch.stages.record import Record

_T = TypeVar("_T")


class StageOptions(BaseModel):
    """Settings of a stage. `name` selects the member of its family; unknown keys are refused.

    Attributes:
        earlier: What a run did that was made before an option existed, by the name of the option,
            where that differs from the default.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    earlier: ClassVar[Mapping[str, Any]] = {}

    name: str


class Stage(ABC):
    """A step of the pipeline, which maps N records to the same N records in the same order.

    A subclass implements `process`. `run` calls it and isolates failures, so that a bad image does
    not affect the others of its batch.

    Attributes:
        needs, gives: Fields of `Record` that the stage reads and fills.
        family: Name of the family, one of `registry.STAGES`.
        Options: Class of the settings.
    """

    needs: ClassVar[frozenset[str]]
    gives: ClassVar[frozenset[str]]
    family: ClassVar[str]
    Options: ClassVar[type[StageOptions]]

    def __init__(self, options: Any) -> None:
        self.options = options

    def setup(self, context: Context) -> None:
        """Load the networks of the stage. Called once per worker, before any record."""
        self.context = context

    def models(self, aligned: bool) -> set[str]:
        """Return the names of the models that `setup` loads, which are checked before a run starts.

        An option with the name of a network family names members of it, and these need the models
        in `registry.MODELS`. A stage that loads other models overrides this method.

        Args:
            aligned: As in `Context`.
        """
        found: set[str] = set()
        for family, chosen in self.options.model_dump().items():
            if family in registry.TABLE:
                for name in [chosen] if isinstance(chosen, str) else chosen:
                    found.update(registry.MODELS.get((family, name), ()))
        return found

    def counted(
        self, items: Sequence[_T], before: int = 0, total: int | None = None
    ) -> Iterator[_T]:
        """Yield the items of a loop, and tell `Context.progress` after each how many are done.

        Args:
            items: Optimisation steps, records, or anything else that takes about equal time.
            before: The number of steps of the stage before this loop.
            total: The number of steps of the stage; by default, this loop is all of them.
        """
        total = len(items) if total is None else total
        for done, item in enumerate(items, before + 1):
            yield item
            self.context.progress(self.family, done, total)

    @abstractmethod
    def process(self, records: Sequence[Record]) -> list[Record]:
        """Map records without failures to new records, one for one and in order.

        Raises:
            ImageError: With a single record, to quarantine the image.
        """

    def run(self, records: Sequence[Record]) -> list[Record]:
        """Process N records and return the same N. Failed records are returned unchanged.

        If a batch raises an exception, its images are processed one by one, and an image that
        raises on its own gets a failure. If memory is exhausted, the batch is halved and the same
        images are tried again; this worker does not try a size that failed once again.

        Raises:
            Poisoned: The process cannot be used any more.
            Exception: Any error that is not about one image (see `failures`).
        """
        alive = [r for r in records if r.failure is None]
        done = iter(self._run_in_batches(alive))
        return [r if r.failure is not None else next(done) for r in records]

    def save_memory(self) -> bool:
        """Use less memory for a single image from now on; return whether that is possible."""
        return False

    # Largest number of images at once that memory has not refused so far.
    _batch_limit = sys.maxsize

    def _run_in_batches(self, records: list[Record]) -> list[Record]:
        done: list[Record] = []
        while len(done) < len(records):
            part = records[len(done) :][: self._batch_limit]
            try:
                done += self._checked(part)
                continue
            except Exception as error:
                kind = failures.kind_of(error)
                if kind == "poisoned":
                    raise failures.Poisoned(f"{self.family}: {failures.explain(error)}") from error
                if kind in ("bug", "storage"):
                    raise
                if len(part) == 1 and not (kind == "capacity" and self.save_memory()):
                    done.append(self._failed(part[0], error, kind))
            # Only here the exception is deleted, and with it the tensors of its frames.
            if kind == "capacity":
                failures.free_memory()
                self._batch_limit = max(1, len(part) // 2)
            elif len(part) > 1:
                for record in part:
                    done += self._run_in_batches([record])
        return done

    def _checked(self, records: list[Record]) -> list[Record]:
        result = self.process(records)
        if [r.image_id for r in result] != [r.image_id for r in records]:
            raise AssertionError(f"{type(self).__name__} changed the number or order of records")
        return result

    def _failed(self, record: Record, error: Exception, kind: failures.Kind) -> Record:
        if isinstance(error, ImageError):
            return record.failed(self.family, error.error_class, str(error))
        name = "oom" if kind == "capacity" else type(error).__name__
        return record.failed(self.family, name, f"{record.image_id}: {failures.explain(error)}")

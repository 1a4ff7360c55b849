"""Work beside other work: a thread that reads ahead of a device, one that writes behind it, and
requests that wait at the same time.

The first two hold a bounded number of batches, so that a slow side makes the other wait instead of
filling the memory. All hand what their threads raise to the thread that uses them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from queue import SimpleQueue
from types import TracebackType
from typing import Generic, TypeVar

S = TypeVar("S")
T = TypeVar("T")


def ahead(items: Iterator[T], depth: int = 1) -> Generator[T]:
    """The items in order; a thread makes up to `depth` of them before they are asked for.

    What making an item raises is raised in its place. Closing the iterator ends the thread after
    the item it is at.
    """
    box: SimpleQueue[tuple[list[T], BaseException | None]] = SimpleQueue()
    slots, stop = threading.Semaphore(depth), threading.Event()

    def fill() -> None:
        try:
            slots.acquire()
            for item in items:
                box.put(([item], None))
                slots.acquire()
                if stop.is_set():
                    return
            box.put(([], None))
        except BaseException as error:
            box.put(([], error))

    thread = threading.Thread(target=fill, name="reader", daemon=True)
    thread.start()
    try:
        while True:
            made, error = box.get()
            slots.release()
            if error is not None:
                raise error
            if not made:
                return
            yield made[0]
    finally:
        stop.set()
        slots.release()
        thread.join()


class Behind(Generic[T]):
    """Does `work` on items in order, in a thread. Use as a context manager.

    `put` waits while `depth` items wait. What the work raises comes out of the next `put` or of
    the end of the block; later items are dropped.
    """

    def __init__(self, work: Callable[[T], None], depth: int = 1) -> None:
        self._work = work
        self._box: SimpleQueue[list[T]] = SimpleQueue()
        self._slots = threading.Semaphore(depth)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="writer", daemon=True)

    def _run(self) -> None:
        while taken := self._box.get():
            self._slots.release()
            try:
                if self._error is None:
                    self._work(taken.pop())
            except BaseException as error:
                self._error = error

    def put(self, item: T) -> None:
        self._slots.acquire()
        if self._error is not None:
            raise self._error
        self._box.put([item])

    def __enter__(self) -> Behind[T]:
        self._thread.start()
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self._box.put([])
        self._thread.join()
        if error is None and self._error is not None:
            raise self._error


def together(work: Callable[[S], T], items: Sequence[S], limit: int) -> list[T]:
    """`work` done on all items, up to `limit` at once; the results in order.

    Raises the first error, once no work is going on any more. Made for requests: a process may end
    while its threads hang in one.
    """
    waiting: SimpleQueue[int | None] = SimpleQueue()
    results: dict[int, T] = {}
    errors: list[BaseException] = []

    def run() -> None:
        while (index := waiting.get()) is not None and not errors:
            try:
                results[index] = work(items[index])
            except BaseException as error:
                errors.append(error)

    threads = [threading.Thread(target=run, daemon=True) for _ in range(min(limit, len(items)))]
    for index in (*range(len(items)), *[None] * len(threads)):
        waiting.put(index)
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return [results[index] for index in range(len(items))]

"""Background threads: reading ahead of a device, writing behind it, and concurrent requests.

The reader and the writer hold a bounded number of items, so a slow side blocks the other one
instead of filling the memory. Exceptions in a thread are raised in the thread that uses it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from queue import SimpleQueue
from types import TracebackType
from typing import Generic, TypeVar

S = TypeVar("S")
T = TypeVar("T")


def ahead(items: Iterator[T], depth: int = 1, name: str = "reader") -> Generator[T]:
    """Iterate over `items` in order, while a thread computes up to `depth` of them in advance.

    An exception that computing an item raises is raised in place of the item. Closing the
    generator ends the thread after the item that it is computing.
    """
    queue: SimpleQueue[tuple[list[T], BaseException | None]] = SimpleQueue()
    slots, stop = threading.Semaphore(depth), threading.Event()

    def fill() -> None:
        try:
            slots.acquire()
            for item in items:
                queue.put(([item], None))
                slots.acquire()
                if stop.is_set():
                    return
            queue.put(([], None))
        except BaseException as error:
            queue.put(([], error))

    thread = threading.Thread(target=fill, name=name, daemon=True)
    thread.start()
    try:
        while True:
            received, error = queue.get()
            slots.release()
            if error is not None:
                raise error
            if not received:
                return
            yield received[0]
    finally:
        stop.set()
        slots.release()
        thread.join()


class Behind(Generic[T]):
    """Calls a function on items in order, in a thread. Use as a context manager.

    `put` blocks while `depth` items are waiting. An exception that the function raises is raised
    by the next `put` or at the end of the block, and all later items are dropped.
    """

    def __init__(self, work: Callable[[T], None], depth: int = 1) -> None:
        self._work = work
        self._queue: SimpleQueue[list[T]] = SimpleQueue()
        self._slots = threading.Semaphore(depth)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="writer", daemon=True)

    def _run(self) -> None:
        while taken := self._queue.get():
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
        self._queue.put([item])

    def __enter__(self) -> Behind[T]:
        self._thread.start()
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self._queue.put([])
        self._thread.join()
        if error is None and self._error is not None:
            raise self._error


def together(work: Callable[[S], T], items: Sequence[S], limit: int) -> list[T]:
    """Call `work` on all items in up to `limit` threads, and return the results in order.

    The threads are daemons, so a request that never returns does not keep the
    process alive.

    Raises:
        BaseException: The first error of `work`, after all threads have ended.
    """
    indices: SimpleQueue[int | None] = SimpleQueue()
    results: dict[int, T] = {}
    errors: list[BaseException] = []

    def run() -> None:
        while (index := indices.get()) is not None and not errors:
            try:
                results[index] = work(items[index])
            except BaseException as error:
                errors.append(error)

    threads = [threading.Thread(target=run, daemon=True) for _ in range(min(limit, len(items)))]
    for index in (*range(len(items)), *[None] * len(threads)):
        indices.put(index)
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return [results[index] for index in range(len(items))]

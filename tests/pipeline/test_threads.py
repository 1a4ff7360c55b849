"""The reader that runs ahead and the writer that runs behind: order, limits, errors."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from dhr_batch.pipeline.threads import Behind, ahead, together


def counting(made: list[int], stop: int = 10) -> Iterator[int]:
    for i in range(stop):
        made.append(i)
        yield i


def settled(made: list[int]) -> int:
    """Length once it has not changed for a while."""
    before = -1
    while before != len(made):
        before = len(made)
        time.sleep(0.2)
    return before


def test_items_come_in_order_from_another_thread() -> None:
    def names() -> Iterator[str]:
        for _ in range(3):
            yield threading.current_thread().name

    assert list(ahead(counting([]))) == list(range(10))
    assert list(ahead(names())) == ["reader"] * 3


def test_the_reader_is_only_so_far_ahead() -> None:
    made: list[int] = []
    items = ahead(counting(made), depth=2)
    assert next(items) == 0
    assert settled(made) == 3
    assert next(items) == 1
    assert settled(made) == 4
    items.close()  # type: ignore[attr-defined]
    assert settled(made) == 4
    assert not any(t.name == "reader" for t in threading.enumerate())


def test_an_error_of_the_reader_comes_in_its_place() -> None:
    def failing() -> Iterator[int]:
        yield 1
        raise ValueError("third")

    items = ahead(failing())
    assert next(items) == 1
    with pytest.raises(ValueError, match="third"):
        next(items)


def test_work_is_done_behind_in_order_and_is_finished_at_the_end() -> None:
    done: list[int] = []

    def slow(item: int) -> None:
        time.sleep(0.01)
        done.append(item)

    with Behind(slow) as behind:
        for i in range(10):
            behind.put(i)
    assert done == list(range(10))


def test_put_waits_for_a_slow_writer() -> None:
    gate, put = threading.Event(), []

    def work(item: int) -> None:
        gate.wait()

    def fill(behind: Behind[int]) -> None:
        for i in range(5):
            behind.put(i)
            put.append(i)

    with Behind(work) as behind:
        thread = threading.Thread(target=fill, args=(behind,))
        thread.start()
        assert settled(put) == 2
        gate.set()
        thread.join()
    assert len(put) == 5


def test_an_error_of_the_writer_stops_the_one_who_feeds_it() -> None:
    def full(item: int) -> None:
        raise OSError("no space")

    put: list[int] = []

    def fill() -> None:
        with Behind(full) as behind:
            for i in range(1000):
                behind.put(i)
                put.append(i)
                time.sleep(0.001)

    with pytest.raises(OSError, match="no space"):
        fill()
    assert len(put) < 1000


def test_an_error_of_the_last_item_is_not_lost() -> None:
    def full(item: int) -> None:
        time.sleep(0.1)
        raise OSError("no space")

    with pytest.raises(OSError, match="no space"), Behind(full) as behind:
        behind.put(1)


def test_the_error_of_the_block_is_kept() -> None:
    def fail() -> None:
        with Behind(print) as behind:
            behind.put(1)
            raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        fail()


def test_together_keeps_the_order_and_the_limit() -> None:
    most, now, lock = 0, 0, threading.Lock()

    def work(item: int) -> int:
        nonlocal most, now
        with lock:
            now += 1
            most = max(most, now)
        time.sleep(0.01 * (item % 3))
        with lock:
            now -= 1
        return item * item

    assert together(work, range(20), 4) == [item * item for item in range(20)]
    assert 1 < most <= 4
    assert together(work, [], 4) == []


def test_together_raises_what_a_work_raises_and_starts_no_more() -> None:
    done = []

    def work(item: int) -> None:
        done.append(item)
        raise KeyError(item)

    with pytest.raises(KeyError):
        together(work, range(100), 2)
    assert len(done) <= 2

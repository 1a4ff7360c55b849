"""How often workers are asked what they do."""

from __future__ import annotations

import pytest
from ray.exceptions import GetTimeoutError

from dhr_batch.pipeline.engine import members
from dhr_batch.pipeline.engine.progress import Progress, RunCounters
from dhr_batch.pipeline.worker.messages import IN_HAND, Event, Report


def test_few_workers_are_asked_four_times_a_second() -> None:
    assert members.poll_seconds(1) == members.poll_seconds(100) == 0.25


@pytest.mark.parametrize("workers", [1, 100, 1_000, 10_000])
def test_asking_takes_a_fraction_of_the_driver_and_no_worker_seems_silent(workers: int) -> None:
    """0.16 ms a question; an answer is taken in at the next poll, asked for at the one after."""
    pause = members.poll_seconds(workers)
    assert workers > 1_000 or 0.00016 * workers / pause < 0.2
    assert 2 * pause < members._GRACE_SECONDS


def test_progress_counts_once() -> None:
    member = members.Member(handle=None)
    assert not member.has_progressed()
    member.done, member.failed = 2, 1
    assert [member.has_progressed() for _ in range(3)] == [True, False, False]
    member.done, member.failed = 3, 2
    assert not member.has_progressed(), "it failed"
    member.done = 4
    assert member.has_progressed()
    member.begin(7)
    member.done = 1
    assert member.has_progressed(), "of another shard"


def test_images_of_a_further_shard_count_once_it_is_in_progress() -> None:
    progress = Progress(RunCounters(total=9, shards=3), "none", quiet=True)
    member = members.Member(handle=None, later=[8, 9])
    member.begin(7)
    events = [Event("", done=2, shard=7), Event("", done=3, failed=1, errors=["x"], shard=8)]
    members.hear(member, 0, Report([*events, Event("", done=1, shard=9)], 0.0, ""), progress)
    assert (member.done, progress.state.done) == (2, 2)
    # The shard in progress fails: only its own images are taken back.
    members.take_back(member, progress)
    assert (member.shard, progress.state.done) == (7, 0)
    members.release(member, 0, 9, progress)
    members.release(member, 0, 7, progress)
    assert (member.shard, member.done, member.failed, progress.state.done) == (8, 3, 1, 3)
    members.release(member, 0, 8, progress)
    assert (member.shard, member.later, member.early, progress.state.done) == (None, [], [], 3)


def test_images_of_a_further_shard_that_ends_first_count() -> None:
    progress = Progress(RunCounters(total=9, shards=3), "none", quiet=True)
    member = members.Member(handle=None, later=[8])
    member.begin(7)
    event = Event("", done=3, failed=1, errors=["x"], shard=8)
    members.hear(member, 0, Report([event], 0.0, ""), progress)
    members.release(member, 0, 8, progress, finished=True)
    assert (progress.state.done, progress.state.failed, progress.state.failures) == (3, 1, {"x": 1})
    # They are not images of the shard in progress, which may still fail.
    members.take_back(member, progress)
    assert (member.done, member.early, progress.state.done) == (0, [], 3)


def test_a_further_shard_is_wanted_when_all_in_hand_are_read() -> None:
    member = members.Member(handle=None)
    assert not member.hungry
    member.begin(4)
    assert not member.hungry
    member.read = 4
    assert member.hungry
    member.later.append(5)
    assert not member.hungry, "the report is older than the assignment"
    member.read = 5
    assert member.hungry
    many = range(6, 4 + IN_HAND)
    member.later += many
    member.read = many[-1]
    assert not member.hungry, "as many as allowed are in hand"
    del member.later[1:]
    member.read = 5
    member.alone = True
    assert not member.hungry


def test_a_worker_whose_answer_does_not_come_is_lost_and_blamed_for_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def get(_: object, timeout: float) -> None:
        raise GetTimeoutError(f"nothing in {timeout} s")

    monkeypatch.setattr(members.ray, "get", get)
    member = members.Member(handle=None, pending=object())
    with pytest.raises(GetTimeoutError) as caught:
        members.listen(
            member, 0, Progress(RunCounters(total=1, shards=1), "none", quiet=True), wait=True
        )
    assert members.lost_node(caught.value)
    assert member.pending is None


def test_a_driver_that_was_busy_itself_calls_no_worker_silent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [1000.0]
    monkeypatch.setattr(members.time, "monotonic", lambda: now[0])
    member = members.Member(handle=None)
    now[0] += 500
    assert not member.overdue(limit=10, images=4), "nobody has asked it"
    member.pending, member.asked_at = object(), now[0]
    assert not member.overdue(limit=10, images=4)
    now[0] += 46
    assert member.overdue(limit=10, images=4), "4 x 10 s and 5 s of grace without an answer"
    member.pending, member.pace = None, 11.0
    assert member.overdue(limit=10, images=4), "11 s for an image"


def test_a_shard_that_is_tried_again_is_not_read_yet() -> None:
    member = members.Member(handle=None)
    member.receive(7)
    member.read = 7
    assert member.hungry
    member.begin(None)
    member.receive(7)
    assert not member.hungry
    member.read = 7
    member.receive(8)
    assert (member.shard, member.later, member.hungry) == (7, [8], False)

"""Runs that take turns: their order, their clocks and what ends them."""

from __future__ import annotations

import signal
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from dhr_batch.pipeline.bench import run as bench
from dhr_batch.pipeline.bench import turns
from dhr_batch.pipeline.bench.turns import ClockedWorker, in_turn
from dhr_batch.pipeline.engine import runner
from dhr_batch.pipeline.errors import Refused
from dhr_batch.pipeline.planning.request import Request
from dhr_batch.pipeline.storage.connect import connect
from dhr_batch.stages.registry import STAGES
from dhr_batch.tests import no_op
from dhr_batch.tests.faults import harness
from dhr_batch.tests.pipeline.benched import tiny


def test_each_member_is_first_in_its_turn():
    assert [in_turn("abc", n) for n in range(4)] == [
        ["a", "b", "c"],
        ["b", "c", "a"],
        ["c", "a", "b"],
        ["a", "b", "c"],
    ]
    assert in_turn("", 5) == []


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[tuple[str, int]]]:
    """Takes turns with stand-ins for runs; returns who computed which shard.

    missing: run -> shards. act: called with run and shard. said: what was printed.
    """

    def take(missing: dict[str, set[int]], act=lambda run, shard: None, said=None):
        computed: list[tuple[str, int]] = []

        @contextmanager
        def opened(request):
            turn = SimpleNamespace(request=request, missing=dict.fromkeys(missing[request.out]))

            def compute(shard):
                del turn.missing[shard]
                computed.append((request.out, shard))
                act(request.out, shard)

            turn.compute = compute
            if not missing[request.out] and request.out == "busy":
                raise Refused("in use")
            yield turn

        monkeypatch.setattr(turns, "_open", opened)
        requests = [Request(out=name) for name in missing]
        said = [] if said is None else said
        worked = turns.take_turns(requests, said.append)
        assert worked == {name for name, shards in missing.items() if shards}
        return computed

    return take


def test_runs_compute_one_shard_after_the_other_and_change_who_is_first(taken):
    found = taken({"a": {0, 1, 2}, "b": {0, 1, 2}})
    assert found == [("a", 0), ("b", 0), ("b", 1), ("a", 1), ("a", 2), ("b", 2)]


def test_only_what_is_missing_is_computed(taken):
    assert taken({"a": {2}, "b": {1, 2}, "c": set()}) == [("b", 1), ("b", 2), ("a", 2)]


def test_a_run_that_fails_does_not_keep_the_others_from_their_turns(taken):
    def act(run: str, shard: int) -> None:
        if (run, shard) == ("a", 0):
            raise RuntimeError("its process has ended")

    said: list[str] = []
    found = taken({"a": {0, 1}, "b": {0, 1}, "busy": set()}, act, said)
    assert found == [("a", 0), ("b", 0), ("b", 1)]
    assert "busy takes no turns: in use" in said
    assert "a takes no more turns: its process has ended" in said


def test_a_stop_lets_the_shard_in_hand_be_finished(taken):
    computed: list[tuple[str, int]] = []

    def act(run: str, shard: int) -> None:
        signal.raise_signal(signal.SIGTERM)
        computed.append((run, shard))

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        taken({"a": {0}, "b": {0}}, act)
    assert computed == [("a", 0)]
    assert signal.getsignal(signal.SIGTERM) == before


def test_the_clocks_are_those_of_each_stage(tmp_path, monkeypatch):
    """Each stage sleeps for another time, on a clock that only sleeping moves."""
    clock = SimpleNamespace(now=0.0)

    def sleep(seconds: float) -> None:
        clock.now += seconds

    monkeypatch.setattr(no_op, "time", SimpleNamespace(sleep=sleep))
    times = {"perf_counter": lambda: clock.now, "process_time": lambda: clock.now / 2}
    monkeypatch.setattr(turns, "time", SimpleNamespace(**times))
    stages = {"embed": 1.0, "segment": 10.0, "refine": 100.0, "edit": 1000.0, "measure": 1000.0}
    names = {s: {"name": no_op.NAMES[s], "seconds": seconds} for s, seconds in stages.items()}
    items = harness.photographs(tmp_path / "in", ["a.png", "b.png"])
    names["align"] = {"name": no_op.NAMES["align"]}
    plan = harness.make(items, generator="tiny", shard_size=1, **names)
    worker = ClockedWorker(runner.worker_settings(plan, connect(tmp_path / "out")))
    worker.setup()
    for number, shard in enumerate(plan.shards):
        clocks = worker.run_shard(shard, f"{number}").clocked
        assert {s: clocks[f"seconds_{s}"] for s in stages} == stages
        assert {s: clocks[f"cpu_seconds_{s}"] * 2 for s in stages} == stages
        assert {clocks[f"generator_calls_{s}"] for s in stages} == {0}
        assert len(clocks) == 3 * len(STAGES)


def test_a_cluster_is_refused(tmp_path: Path):
    machine = bench.Machine(gpus=0, address="auto")
    with pytest.raises(
        Refused, match=r"in_turn with --address auto: .* on this machine.* leave out --address"
    ):
        bench.plan(tiny(tmp_path, in_turn=True), tmp_path / "out", machine=machine)

"""The file that says what a run is doing, and the command that reads it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from dhr_batch.cli import main
from dhr_batch.pipeline.engine.progress import RunCounters
from dhr_batch.pipeline.engine.status import StatusWriter
from dhr_batch.pipeline.forecast import Forecast
from dhr_batch.pipeline.report.summaries import throughput
from dhr_batch.pipeline.runs.records import status_file
from dhr_batch.pipeline.runs.records.status_file import WorkerStatus
from dhr_batch.pipeline.storage.connect import connect


class Clock:
    """Time that only passes where the test says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(time, "time", lambda: self.now)
        monkeypatch.setattr(time, "monotonic", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def made(state: RunCounters, **options: Any) -> tuple[StatusWriter, list[dict[str, Any]]]:
    written: list[dict[str, Any]] = []
    return StatusWriter(
        state, lambda content: written.append(json.loads(content)), **options
    ), written


def test_it_is_written_every_few_seconds_and_on_demand(clock: Clock) -> None:
    status, written = made(RunCounters(total=10, shards=2), every=2.0)
    for _ in range(10):
        status.update(list)
        clock.now += 0.5
    assert len(written) == 3
    status.update(list, now=True)
    status.update(list, now=True)
    assert len(written) == 5


def test_rates_and_the_time_left(clock: Clock) -> None:
    forecast = Forecast({"embed": 1.0}, known=True)
    state = RunCounters(1000, shards=10, before=50, started=clock.now, forecast=forecast)
    status, written = made(state)
    for _ in range(100):
        status.update(list, now=True)
        clock.now += 10
        state.done += 1
    clock.now += 300
    state.done += 300
    state.failures["no_face"] += 7
    state.look()
    status.update(lambda: [WorkerStatus(0, "shard 3: embed 1-4 of 32")], now=True)
    last = written[-1]
    assert last["images"] == {"total": 1000, "done": 400, "quarantined": 0, "before": 50}
    assert last["images_per_second"]["overall"] == pytest.approx(400 / 1300)
    assert last["images_per_second"]["last_5_minutes"] == pytest.approx(1.0, rel=0.1)
    assert last["seconds_left"] == pytest.approx(600, rel=0.1)
    assert last["errors"] == {"no_face": 7}
    assert last["workers"][0]["what"].startswith("shard 3")
    assert (last["started"], last["updated"]) == (1000.0, clock.now)
    assert last["driver"]["pid"] == os.getpid()


def test_throughput_goes_on_and_stays_small(clock: Clock) -> None:
    state = RunCounters(total=10**6, shards=10, before=50)
    status, written = made(state, points=[[900.0, 20], [950.0, 50]])
    for _ in range(2000):
        status.update(list, now=True)
        clock.now += 2
        state.done += 3
    points = written[-1]["throughput"]
    assert 200 <= len(points) <= 500
    assert points[0] == [900.0, 20]
    assert points == sorted(points)
    assert points[-1][1] == pytest.approx(50 + state.done, rel=0.01)
    assert max(len(json.dumps(content)) for content in written[-10:]) < 20_000


def test_the_speed_is_that_of_computed_images_since_a_worker_was_ready(clock: Clock) -> None:
    state = RunCounters(total=100, shards=10, before=30, before_failed=10)
    status, written = made(state, points=[[500.0, 20]])
    for _ in range(50):
        status.update(list)
        clock.now += 1
    state.begin()
    status.begin()
    for n in range(100):
        clock.now += 2
        state.done += n % 2
        state.failed += n % 10 == 9
        status.update(list)
    status.update(list, now=True)
    # 50 images are finished after 200 s, of which 10 are in quarantine.
    assert written[-1]["images_per_second"]["overall"] == pytest.approx(40 / 200)
    points = written[-1]["throughput"]
    assert points[:2] == [[500.0, 20], [1050.0, 20]]
    assert points[-1] == [clock.now, 60]
    report = throughput(points[1:])
    assert report is not None
    assert report.mean == pytest.approx(40 / 200)


def status(*words: object) -> Result:
    return CliRunner().invoke(main, ["status", *map(str, words)])


def seen(place: object) -> dict[str, Any]:
    result = status(place, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


DONE = {"total": 6, "done": 4, "quarantined": 2, "in_work": 0}


def test_a_finished_run(small_run: Any) -> None:
    found = seen(small_run.out)
    assert (found["state"], found["driver"], found["images"]) == ("finished", None, DONE)
    assert found["shards"] == {"total": 3, "done": 3, "running": [], "tried_again": 0}
    assert found["errors"] == {"not_an_image": 1, "not_square": 1}
    text = status(small_run.out).output
    assert "4 of 6 done, 2 quarantined, 0 to do" in text
    assert "not running since 2" in text
    assert "the same command" not in text


def test_counts_do_not_need_the_file(small_run: Any, tmp_path: Path) -> None:
    run = small_run.copy(tmp_path / "run")
    (run / "_state" / "status.json").unlink()
    (run / "_state" / "shards" / "00001.json").unlink()
    found = seen(run)
    assert found["state"] == "interrupted"
    assert found["images"] == {"total": 6, "done": 3, "quarantined": 1, "in_work": 0}
    assert "the same command goes on" in status(run).output


HOLD = """
import json, os, sys
from dhr_batch.pipeline.runs.folder import RunFolder
run = RunFolder(sys.argv[1])
run.lock()
if len(sys.argv) > 2:
    content = json.loads(run.storage.read("_state/status.json"))
    content["driver"] = {"host": os.uname().nodename, "pid": os.getpid()}
    content["images"] |= {"before": 2, "done": 3}
    content["workers"] = [{"worker": 0, "what": "shard 1: embed 1-2 of 2", "shard": 1,
                           "host": "node-1", "pid": 7, "device": "CPU"}]
    run.storage.replace("_state/status.json", json.dumps(content).encode())
print("locked", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("where", ["local", "s3"])
def test_a_running_one_and_its_driver_that_dies(
    small_run: Any, tmp_path: Path, request: pytest.FixtureRequest, where: str
) -> None:
    if where == "local":
        place = str(small_run.copy(tmp_path / "run"))
    else:
        place = small_run.upload(f"{request.getfixturevalue('bucket')}/run")
    connect(place).delete("_state/shards/00001.json")
    pipe = subprocess.PIPE
    for writes in ([], ["status"]):
        command = [sys.executable, "-c", HOLD, place, *writes]
        with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as driver:
            assert driver.stdout is not None
            assert driver.stdout.readline() == "locked\n"
            found, text = seen(place), status(place).output
            driver.kill()
            driver.wait()
        assert found["driver"]["pid"] == driver.pid
        assert f"process {driver.pid} on {os.uname().nodename}" in text
        if not writes:
            # What an earlier driver has left says nothing about this one.
            assert (found["state"], found["workers"]) == ("starting", [])
            assert found["images_per_second"] == {}
    assert found["state"] == "running"
    assert found["images"] == {"total": 6, "done": 3, "quarantined": 1, "in_work": 1}
    assert found["shards"]["running"] == [1]
    assert "shard 1: embed 1-2 of 2 (host node-1, pid 7, device CPU)" in text
    assert "in the last 5 minutes" in text
    assert seen(place)["state"] == "interrupted"
    text = status(place).output
    assert "not running since" in text
    assert " images/s\n" in text
    assert "in the last 5 minutes" not in text


def test_looking_never_keeps_a_driver_out(small_run: Any, tmp_path: Path) -> None:
    from dhr_batch.pipeline.runs.folder import RunFolder

    run = RunFolder(small_run.copy(tmp_path / "run"))
    assert run.holder() is None
    run.lock()
    held = RunFolder(run.storage).holder()
    assert held is not None
    assert held.pid == os.getpid()
    run.unlock()
    assert run.holder() is None


def test_a_damaged_file_costs_only_the_speed_of_earlier_starts(tmp_path: Path) -> None:
    run = connect(tmp_path)
    assert status_file.throughput(run) == []
    run.replace(status_file.STATUS, json.dumps({"throughput": [[1.0, 2]]}).encode())
    assert status_file.throughput(run) == [[1.0, 2]]
    run.replace(status_file.STATUS, b"")
    assert status_file.throughput(run) == []


def test_a_place_without_a_run_is_refused(tmp_path: Path) -> None:
    result = status(tmp_path)
    assert result.exit_code == 2
    assert "no plan.json" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_wrong_places_and_damaged_files_are_named(small_run: Any, tmp_path: Path) -> None:
    assert status(tmp_path / "nowhere").exit_code == 2
    assert status("ftp://host/run").exit_code == 2
    run = small_run.copy(tmp_path / "run")
    (run / "_state" / "status.json").write_text("{")
    result = status(run)
    assert result.exit_code == 1
    assert "status.json: it is damaged" in result.stderr


def test_looking_needs_neither_ray_nor_torch(small_run: Any) -> None:
    code = (
        "import sys; from click.testing import CliRunner; from dhr_batch.cli import main\n"
        "for command in ('status', 'verify'):\n"
        f"    assert not CliRunner().invoke(main, [command, {str(small_run.out)!r}]).exit_code\n"
        "print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not {"torch", "ray"} & set(done.stdout.split())

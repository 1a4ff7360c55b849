"""Real signals to a real command: what is in flight is finished, or not, and the run goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest.mock import Mock

import pytest
import yaml
from obstore import exceptions

from dhr_batch.pipeline import stopping
from dhr_batch.pipeline.engine import session
from dhr_batch.pipeline.planning.request import Request
from dhr_batch.pipeline.storage import objects
from dhr_batch.pipeline.storage.connect import connect
from dhr_batch.tests.faults import harness
from dhr_batch.tests.faults.stages import NAMES

IMAGES = 40


class Command:
    """`dhr-batch run` in a process group of its own, as a shell starts it."""

    def __init__(self, folder: Path) -> None:
        self.out = folder / "out"
        names = [f"good-{i:02}.png" for i in range(IMAGES)]
        harness.photographs(folder / "in", names)
        embed = {"name": NAMES["embed"], "seconds": 0.1}
        settings = NAMES | {"embed": embed, "shard_size": 5, "batch_size": 1, "workers": 2}
        (folder / "run.yaml").write_text(yaml.safe_dump(settings))
        words = ["--dataset", folder / "in", "--preset", "tiny", "--gpus", "0", "--no-report"]
        words += ["--out", self.out, "-c", folder / "run.yaml", "--progress", "plain"]
        self.words = [sys.executable, "-m", "dhr_batch.cli", "run", *map(str, words)]

    def start(self) -> None:
        self.process = subprocess.Popen(
            self.words,
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )

    def until(self, ready: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 300
        while not ready():
            assert time.monotonic() < deadline
            assert self.process.poll() is None, self.end()
            time.sleep(0.05)

    def committed(self) -> int:
        return len(list(self.out.glob("_state/shards/*.json")))

    def end(self) -> str:
        try:
            return self.process.communicate(timeout=300)[1]
        finally:
            self.process.kill()

    def finish(self) -> None:
        """The same command again completes the run."""
        self.start()
        said = self.end()
        assert self.process.returncode == 0, said
        assert "resuming" in said
        names = harness.finished(self.out)
        assert names == [f"good-{i:02}.png" for i in range(IMAGES)]


@pytest.fixture
def command(tmp_path: Path) -> Command:
    return Command(tmp_path)


@pytest.mark.parametrize("how", ["SIGTERM twice", "Ctrl-C"])
def test_what_is_in_flight_is_finished(command: Command, how: str) -> None:
    command.start()
    command.until(lambda: command.committed() >= 1)
    if how == "Ctrl-C":
        # A terminal sends it to every process of the group.
        os.killpg(command.process.pid, signal.SIGINT)
    else:
        command.process.send_signal(signal.SIGTERM)
        time.sleep(0.1)
        command.process.send_signal(signal.SIGTERM)
    said = command.end()
    assert command.process.returncode == 130, said
    assert "stopping after the shards in flight" in said
    assert "is lost" not in said
    done = command.committed()
    # One or two were committed; those in flight were finished, nothing was started after them.
    assert 2 <= done <= 5
    assert f"{done * 5} images finished" in said
    assert not (command.out / "_staging").exists()
    status = json.loads((command.out / "_state" / "status.json").read_bytes())
    assert status["shards"] == {"total": 8, "done": done}
    if how == "Ctrl-C":
        command.finish()


def test_ctrl_c_twice_stops_at_once(command: Command) -> None:
    command.start()
    # Written by the loop that listens to signals, not before.
    command.until(lambda: (command.out / "_state" / "status.json").exists())
    command.process.send_signal(signal.SIGINT)
    time.sleep(0.1)
    command.process.send_signal(signal.SIGINT)
    said = command.end()
    assert command.process.returncode == 130, said
    assert "goes on from here" in said
    assert not (command.out / "_staging").exists()
    # How many were finished before the signal came is a matter of luck.
    assert command.committed() < 8


def test_ctrl_c_held_down_changes_no_exit_code(command: Command) -> None:
    """It arrives while workers are ended and Ray is, and once more on the way out."""
    command.start()
    command.until(lambda: (command.out / "_state" / "status.json").exists())
    command.process.send_signal(signal.SIGINT)
    # Long enough for a loop with nothing in flight to end.
    time.sleep(0.3)
    while command.process.poll() is None:
        command.process.send_signal(signal.SIGINT)
        time.sleep(0.02)
    said = command.end()
    assert command.process.returncode == 130, said
    assert "Traceback" not in said
    assert "goes on from here" in said


def test_in_other_threads_no_signals_are_handled() -> None:
    before = signal.getsignal(signal.SIGINT)

    def enter() -> bool:
        with stopping.signals(stopping.Stopper()):
            return signal.getsignal(signal.SIGINT) is before

    with ThreadPoolExecutor() as threads:
        assert threads.submit(enter).result()


def test_ray_is_not_interrupted_while_it_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = []

    def shutdown() -> None:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGINT):
            os.kill(os.getpid(), number)
        ended.append(True)

    monkeypatch.setattr(session.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(session, "_connect", lambda stack, *_: stack.callback(shutdown) and "")
    stopper = stopping.Stopper()
    before = signal.getsignal(signal.SIGINT)
    with stopping.scope(), session.session(Request(), Mock(), 1, stopper):
        pass
    assert ended
    assert stopper.immediate
    assert signal.getsignal(signal.SIGINT) is before


PATIENCE = 300


@pytest.mark.parametrize("how", ["fails", "hangs"])
def test_ctrl_c_twice_does_not_wait_for_a_store(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither between two tries nor for an answer that does not come."""
    calls = []

    def put(*_: object, **__: object) -> None:
        calls.append(time.monotonic())
        if how == "hangs":
            time.sleep(PATIENCE)
        raise exceptions.GenericError("503 slow down")

    monkeypatch.setattr(objects.obstore, "put", put)
    monkeypatch.setattr(objects, "_LONGEST_PAUSE", float(PATIENCE))
    storage = objects.ObjectStorage("s3://bucket/run", patience=PATIENCE)

    def interrupt() -> None:
        while len(calls) < (1 if how == "hangs" else 3):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.3)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    began = time.monotonic()
    thread.start()
    with stopping.scope():
        with stopping.signals(stopping.Stopper()), pytest.raises(stopping.Interrupted):
            storage.replace("_state/status.json", b"{}")
        # What still asks the store after the loop does not wait either.
        with pytest.raises(stopping.Interrupted):
            storage.replace("_state/status.json", b"{}")
    thread.join()
    assert time.monotonic() - began < PATIENCE / 5


def test_one_ctrl_c_lets_a_store_be_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def put(*_: object, **__: object) -> None:
        calls.append(1)
        os.kill(os.getpid(), signal.SIGTERM)
        if len(calls) < 3:
            raise exceptions.GenericError("503 slow down")

    monkeypatch.setattr(objects.obstore, "put", put)
    storage = objects.ObjectStorage("s3://bucket/run", patience=PATIENCE)
    with stopping.scope(), stopping.signals(stopping.Stopper()):
        storage.replace("_state/status.json", b"{}")
    assert len(calls) == 3


@pytest.mark.slow
def test_ctrl_c_twice_ends_a_run_whose_store_went_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "us-east-1",
        "DHR_BATCH_STORAGE_PATIENCE": str(PATIENCE),
    }.items():
        monkeypatch.setenv(name, value)
    bucket = urllib.request.Request(f"http://{host}:{port}/bucket", method="PUT")
    urllib.request.urlopen(bucket).close()
    command = Command(tmp_path)
    command.words[command.words.index(str(command.out))] = "s3://bucket/run"
    command.start()
    command.until(lambda: connect("s3://bucket/run").sizes("_state/shards") != {})
    server.stop()
    command.process.send_signal(signal.SIGINT)
    time.sleep(1)
    command.process.send_signal(signal.SIGINT)
    began = time.monotonic()
    said = command.end()
    assert command.process.returncode == 130, said
    assert "goes on from here" in said
    assert time.monotonic() - began < PATIENCE / 5

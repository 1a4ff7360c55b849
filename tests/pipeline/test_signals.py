"""Real signals to a real command: what is in flight is finished, or not, and the run goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

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
    command.until(lambda: (command.out / "plan.json").exists())
    command.process.send_signal(signal.SIGINT)
    time.sleep(0.1)
    command.process.send_signal(signal.SIGINT)
    said = command.end()
    assert command.process.returncode == 130, said
    assert "Ctrl-C again stops now" in said
    assert "goes on from here" in said
    assert not (command.out / "_staging").exists()
    # How many were finished before the signal came is a matter of luck.
    assert command.committed() < 8

"""The CPU seconds of the host: what is counted as which piece, and the shape of the result."""

from __future__ import annotations

import json
import time

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from dhr_batch.benchmarks import host_seconds
from dhr_batch.pipeline.tables import rows


@pytest.fixture
def seconds(monkeypatch):
    """The CPU time, which only passes when a test adds to it."""
    now = [0.0]
    monkeypatch.setattr(time, "process_time", lambda: now[0])
    return now


def test_outer_pieces_stand_still_inside_others(seconds):
    clock = host_seconds.Clock()
    seconds[0] += 1
    with clock("outer"):
        seconds[0] += 2
        with clock("inner"):
            seconds[0] += 4
        seconds[0] += 8
    seconds[0] += 16
    with clock("outer"):
        seconds[0] += 32
    seconds[0] += 64
    assert clock.seconds == {"outer": 42, "inner": 4}


def test_torch_operations_are_work_of_the_device(seconds, monkeypatch):
    clock, pixels = host_seconds.Clock(), np.zeros((4, 4, 3), np.uint8)

    def encoded(array, text=None):
        seconds[0] += 1
        torch.ones(2).add(1)
        return b""

    name = host_seconds.PIECES["picture encoding"][0].rpartition(".")[2]
    monkeypatch.setattr(rows, name, encoded)
    with host_seconds.counted(clock):
        getattr(rows, name)(pixels)
    assert getattr(rows, name) is encoded
    assert clock.seconds["picture encoding"] == 1
    assert host_seconds.DEVICE in clock.seconds


def test_command(tmp_path, monkeypatch):
    """Every function that is counted exists; the head is the sum of the host's pieces."""
    with host_seconds.counted(host_seconds.Clock()):
        pass
    pieces = dict.fromkeys(host_seconds.PIECES, 0.5) | {host_seconds.DEVICE: 100.0}
    monkeypatch.setattr(host_seconds, "measured", lambda plan: pieces)
    monkeypatch.setattr(host_seconds, "planned", lambda *asked: type("Plan", (), {"config": asked}))
    file = tmp_path / "host.json"
    done = CliRunner().invoke(host_seconds.main, ["--json", str(file)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    result = json.loads(file.read_text())
    whole = 0.5 * len(host_seconds.PIECES)
    assert result["cpu_seconds_256"] == result["cpu_seconds_1024"] == whole
    assert {(r["workload"], r["size"]) for r in result["rows"]} == {
        (workload, size) for workload in ("fixed", "default") for size in (256, 1024)
    }

"""The number of usable cores: affinity, and the time that a container gets."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dhr_batch.pipeline import cores


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 64),
        ({"cpu.max": "max 100000"}, 64),
        ({"cpu.max": "250000 100000"}, 3),
        ({"cpu.max": "50000 100000"}, 1),
        ({"a/b/cpu.max": "max 100000", "a/cpu.max": "400000 100000"}, 4),
        ({"cpu.max": "9900000 100000"}, 64),
        ({"cpu.max": "nonsense"}, 64),
        ({"cpu/cpu.cfs_quota_us": "200000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 2),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 64),
    ],
)
def test_limits_of_containers_count(
    files: dict[str, str], expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    own = tmp_path / "own"
    own.write_text("9:cpu:/elsewhere\n0::/a/b\n")
    monkeypatch.setattr(cores, "_CONTROL", tmp_path)
    monkeypatch.setattr(cores, "_OWN", own)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(64), raising=False)
    assert cores.cores() == expected

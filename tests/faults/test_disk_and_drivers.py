"""A full disk, and two drivers on one run."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dhr_batch.pipeline.storage.connect import connect

pytestmark = pytest.mark.slow


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 300 kB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(disk)]
    try:
        done = subprocess.run(mount, capture_output=True, text=True, check=False)
        reason = done.stderr.strip() if done.returncode else ""
    except FileNotFoundError as error:
        reason = str(error)
    if reason:
        pytest.skip(f"no small disk can be mounted here: {reason}")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def resize(disk: Path, size: str) -> None:
    subprocess.run(["mount", "-o", f"remount,size={size}", str(disk)], check=True)


def test_a_full_disk_ends_the_run_and_room_lets_it_go_on(
    runs: Any, reference: Any, same: Callable[..., None], place: str, small_disk: Path
) -> None:
    """The disk of the run itself, or that of the scratch where the run is in an object store."""
    env = {}
    if "://" in place:
        env = {"TMPDIR": small_disk, "RAY_TMPDIR": "/tmp"}
        resize(small_disk, "80k")
    else:
        place = str(small_disk / "run")
    code, said = runs.run(place, "--force", **env)
    assert code == 1, said
    assert "no space left on the disk of" in said, said
    assert "Traceback" not in said
    storage = connect(place)
    keys = {key for key in storage.sizes() if key.endswith(".parquet") and key[0] != "_"}
    assert keys <= reference.files.keys()
    assert all(storage.read(key) == reference.files[key] for key in keys)
    resize(small_disk, "100m")
    code, said = runs.run(place, **env)
    assert code == 0, said
    same(place, reference)
    assert list(small_disk.glob("dhr-batch.scratch-*/*")) == []


def test_the_second_driver_leaves_and_replaces_a_dead_one(
    runs: Any, reference: Any, same: Callable[..., None], place: str
) -> None:
    long = ("--set", "lease_timeout=600")
    with runs.start(place, *long) as first:
        while connect(place).read("plan.json") is None:
            assert first.poll() is None
            time.sleep(0.1)
        os.kill(first.pid, signal.SIGSTOP)
        try:
            code, said = runs.run(place, *long)
            assert code == 2, said
            assert f"in use by process {first.pid} on" in said
        finally:
            first.kill()
    began = time.monotonic()
    code, said = runs.run(place, *long)
    assert code == 0, said
    assert time.monotonic() - began < 300
    same(place, reference)

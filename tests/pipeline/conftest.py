"""Fixtures: an S3 server of the tests, and a small finished run."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dhr_batch.pipeline.storage.connect import connect
from dhr_batch.tests.pipeline import reported


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """The address of a server that answers like S3, empty at first."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture(scope="session")
def s3_environment(s3_server: str) -> dict[str, str]:
    """Environment variables that direct every client to the server."""
    return {
        "AWS_ENDPOINT_URL": s3_server,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
    }


@dataclass(frozen=True)
class SmallRun:
    """Six aligned pictures in three shards, without networks; `c.png` is not a picture, `e.png` is
    not square. out: its folder; words: the options that made it."""

    photographs: Path
    out: Path
    words: tuple[str, ...]

    def copy(self, target: Path) -> Path:
        shutil.copytree(self.out, target)
        return target

    def upload(self, url: str) -> str:
        run = connect(url)
        for path in [path for path in self.out.rglob("*") if path.is_file()]:
            run.replace(path.relative_to(self.out).as_posix(), path.read_bytes())
        return url

    def dhr(self, *words: object, **env: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "dhr_batch.cli", *map(str, words)]
        there = os.environ | {"RAY_ADDRESS": "127.0.0.1:1"} | env
        return subprocess.run(
            command, env=there, capture_output=True, text=True, check=False, timeout=600
        )

    def run(self, out: Path, *more: str) -> subprocess.CompletedProcess[str]:
        return self.dhr("run", *self.words, "--out", out, "--no-report", *more)


def picture(path: Path, seed: int, width: int = 32) -> None:
    pixels = np.random.default_rng(seed).integers(0, 255, (32, width, 3), np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture(scope="session")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> SmallRun:
    from dhr_batch.tests.faults.stages import NAMES

    folder = tmp_path_factory.mktemp("small")
    photographs = folder / "photographs"
    photographs.mkdir()
    for seed, name in enumerate("abdf"):
        picture(photographs / f"{name}.png", seed)
    picture(photographs / "e.png", 4, width=16)
    (photographs / "c.png").write_bytes(b"no picture")
    (folder / "small.yaml").write_text(f"name: small\nroot: {photographs}\naligned: true\n")
    # The real aligner opens the files; everything behind it only takes the names of images.
    names = {k if k == "generator" else f"{k}.name": v for k, v in NAMES.items() if k != "align"}
    words = ["--dataset", str(folder / "small.yaml"), "--preset", "tiny", "--gpus", "0"]
    words += [word for key, value in names.items() for word in ("--set", f"{key}={value}")]
    words += ["--set", "shard_size=2", "--set", "workers=1"]
    made = SmallRun(photographs, folder / "run", tuple(words))
    done = made.run(made.out)
    assert done.returncode == 0, done.stderr
    return made


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """`reported.made` in a folder of the test's own."""
    return partial(reported.made, tmp_path)

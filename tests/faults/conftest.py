"""Fixtures: whole runs that can be killed, and a proxy that lets calls to the S3 server fail."""

from __future__ import annotations

import http.client
import os
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image

import dhr_batch
from dhr_batch.pipeline.storage.connect import connect
from dhr_batch.tests.faults.harness import Reader, Reference, tables
from dhr_batch.tests.faults.stages import NAMES

# Ray runs workers at the lowest priority: beside other work the tests would take minutes each.
os.environ.setdefault("RAY_worker_niceness", "0")

BARE = [f"{k}={v}" if k == "generator" else f"{k}.name={v}" for k, v in NAMES.items()]
ERROR = "<?xml version='1.0'?><Error><Code>{code}</Code><Message>injected</Message></Error>"
# What a call may meet instead of its answer: status and code, and whether the server did its part.
FAULTS: dict[str, tuple[int, str, bool]] = {
    "503": (503, "ServiceUnavailable", False),
    "slow down": (503, "SlowDown", False),
    "429": (429, "TooManyRequests", False),
    "500 after success": (500, "InternalError", True),
    "lost request": (0, "", False),
    "lost answer": (0, "", True),
    "timeout": (-1, "", True),
}
# Answers that only conditional writes get.
CONDITIONAL: dict[str, tuple[int, str, bool]] = {
    "409": (409, "ConditionalRequestConflict", False),
    "412 after success": (412, "PreconditionFailed", True),
}


class Faults:
    """Settings and counts of the proxy. rate: share of calls that fail; stall: s of a timeout.

    silent: writes to keys with this part are neither read nor answered, until `over`. requests: how
    many came, by the name S3 has for them.
    """

    def __init__(self, upstream: str) -> None:
        self.upstream = urlsplit(upstream).netloc
        self.rate, self.stall, self.silent = 0.0, 7.0, ""
        self.over = threading.Event()
        self.injected: Counter[str] = Counter()
        self.requests: Counter[str] = Counter()
        self.random, self.lock = random.Random(0), threading.Lock()

    def is_silent(self, command: str, path: str) -> bool:
        with self.lock:
            silent = command in ("PUT", "POST") and self.silent != "" and self.silent in path
            self.injected["silence"] += silent
            return silent

    def draw(self, conditional: bool) -> str | None:
        with self.lock:
            if self.random.random() >= self.rate:
                return None
            # Conditional writes are few, and a timeout costs seconds: two are enough.
            choice = [*FAULTS, *(list(CONDITIONAL) * 3 if conditional else [])]
            fault = self.random.choice(choice)
            if fault == "timeout" and self.injected["timeout"] >= 2:
                fault = "lost answer"
            self.injected[fault] += 1
            return fault


class _Proxy(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    faults: Faults

    def _serve(self) -> None:
        if self.faults.is_silent(self.command, self.path):
            self.faults.over.wait()
            self.close_connection = True
            return
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.faults.requests[self._name()] += 1
        conditional = bool(self.headers.get("If-None-Match") or self.headers.get("If-Match"))
        fault = self.faults.draw(conditional and self.command == "PUT")
        if fault is None:
            self._answer(*self._forward(body))
            return
        status, code, done = (FAULTS | CONDITIONAL)[fault]
        if done:
            self._forward(body)
        if status == -1:
            time.sleep(self.faults.stall)
        if status <= 0:
            self.close_connection = True
            return
        self._answer(status, {"Content-Type": "application/xml"}, ERROR.format(code=code).encode())

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _serve

    def _name(self) -> str:
        query = urlsplit(self.path).query
        if self.command == "GET" and "list-type" in query:
            return "LIST"
        if self.command == "POST" and query.startswith("delete"):
            return "DELETE"
        return "COPY" if self.headers.get("x-amz-copy-source") else self.command

    def _forward(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        server = http.client.HTTPConnection(self.faults.upstream, timeout=60)
        server.request(self.command, self.path, body, dict(self.headers))
        answer = server.getresponse()
        content = answer.read()
        server.close()
        return answer.status, dict(answer.getheaders()), content

    def _answer(self, status: int, headers: dict[str, str], content: bytes) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            if name.lower() not in ("transfer-encoding", "connection", "content-length"):
                self.send_header(name, value)
        length = headers.get("Content-Length") if self.command == "HEAD" else None
        self.send_header("Content-Length", length or str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def faults(s3: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Faults]:
    """The proxy, which replaces the server for all processes started by the test."""
    faults = Faults(s3)
    handler = type("Proxy", (_Proxy,), {"faults": faults})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
    yield faults
    faults.over.set()
    server.shutdown()
    server.server_close()


@dataclass(frozen=True)
class Runs:
    """`dhr-batch run` on small aligned pictures; each run of one `Runs` has the same result."""

    words: tuple[str, ...]

    def start(self, out: object, *more: str, **env: object) -> subprocess.Popen[str]:
        """Start a driver. `DHR_BATCH_CRASH_PID=driver` stands for its process."""
        command = [sys.executable, "-m", "dhr_batch.cli", *self.words, "--out", str(out), *more]
        if env.get("DHR_BATCH_CRASH_PID") == "driver":
            command = ["sh", "-c", 'DHR_BATCH_CRASH_PID=$$ exec "$@"', "sh", *command]
        # A cluster must not be joined without --address.
        there = {"RAY_ADDRESS": "127.0.0.1:1"} | {name: str(value) for name, value in env.items()}
        return subprocess.Popen(
            command,
            env=os.environ | there,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, out: object, *more: str, **env: object) -> tuple[int, str]:
        """Return exit code and output."""
        with self.start(out, *more, **env) as process:
            try:
                _, said = process.communicate(timeout=900)
            finally:
                process.kill()
        return process.returncode, said


@pytest.fixture(scope="session")
def make_runs(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Runs]:
    def make(images: int, shard_size: int, *sets: str) -> Runs:
        folder = tmp_path_factory.mktemp("faults")
        (folder / "photographs").mkdir()
        random_ = np.random.default_rng(0)
        for number in range(images):
            blocks = random_.integers(0, 256, (8, 8, 3), np.uint8)
            picture = Image.fromarray(blocks.repeat(8, 0).repeat(8, 1))
            picture.save(folder / "photographs" / f"{number:02}.png")
        dataset = folder / "faults.yaml"
        dataset.write_text(f"name: faults\nroot: {folder / 'photographs'}\naligned: true\n")
        words = ["run", "--dataset", str(dataset), "--preset", "tiny", "--gpus", "0"]
        words += ["--set", f"shard_size={shard_size}", "--no-report"]
        for text in ("workers=2", *sets):
            words += ["--set", text]
        return Runs(tuple(words))

    return make


@pytest.fixture(scope="session")
def runs(make_runs: Callable[..., Runs]) -> Runs:
    """Six pictures in three shards, with tiny networks."""
    return make_runs(6, 2, "edit.edits=[]")


@pytest.fixture(scope="session")
def bare_runs(make_runs: Callable[..., Runs]) -> Runs:
    """Six pictures in three shards, with stages that only take the names of images."""
    return make_runs(6, 2, *BARE)


@pytest.fixture(scope="session")
def slow_runs(make_runs: Callable[..., Runs]) -> Runs:
    """The same with four workers, 24 pictures in twelve shards, and half a second for each."""
    return make_runs(24, 2, *BARE, "embed.seconds=0.5", "batch_size=1", "workers=4")


@pytest.fixture(scope="session")
def make_reference(
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[Runs], Reference]:
    def make(runs: Runs) -> Reference:
        root = tmp_path_factory.mktemp("reference") / "run"
        reader = Reader(root)
        thread = threading.Thread(target=reader.watch)
        thread.start()
        began = time.monotonic()
        code, said = runs.run(root)
        seconds = time.monotonic() - began
        reader.stop.set()
        thread.join()
        assert code == 0, said
        return Reference(tables(root), seconds, reader)

    return make


@pytest.fixture(scope="session")
def reference(runs: Runs, make_reference: Callable[[Runs], Reference]) -> Reference:
    return make_reference(runs)


@pytest.fixture(scope="session")
def bare_reference(bare_runs: Runs, make_reference: Callable[[Runs], Reference]) -> Reference:
    return make_reference(bare_runs)


@pytest.fixture(scope="session")
def same() -> Callable[[object, Reference], None]:
    """Checks that a run has the files of the reference, each image once, and no leftovers."""

    def check(place: object, reference: Reference) -> None:
        found = tables(place)
        assert found.keys() == reference.files.keys()
        assert [key for key in found if found[key] != reference.files[key]] == []
        assert connect(str(place)).sizes("_staging") == {}
        run: Any = dhr_batch.open(str(place))
        planned = [image for shard in run.plan["shards"] for image in shard]
        assert run.ids == planned
        assert len(run.quarantine) == 0
        assert b"config_name: latents" in (connect(str(place)).read("README.md") or b"")

    return check

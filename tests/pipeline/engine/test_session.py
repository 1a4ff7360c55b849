"""Ray sessions of this user alone, without a home or with long paths, and absent clusters."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from dhr_batch.pipeline.engine import session
from dhr_batch.pipeline.errors import Refused, RunFailed, StorageError
from dhr_batch.pipeline.storage import scratch
from dhr_batch.tests.pipeline.conftest import SmallRun

# A session, and what it looks like from outside: its folder, its ports, and whether it asks for the
# token. `psutil` comes with Ray.
_LOOK = """
import json, os
from unittest.mock import Mock
from dhr_batch.pipeline import stopping
from dhr_batch.pipeline.engine.session import session
from dhr_batch.pipeline.planning.request import Request
import ray, psutil
config = Mock(gpus=0, threads=1, cpus_per_gpu=1)
with stopping.scope(), session(Request(), config, 1, stopping.Stopper()):
    look = ray.remote(lambda: [os.environ[name] for name in ("HOME", "RAY_AUTH_MODE")])
    home, mode = ray.get(look.remote())
    family = psutil.Process().children(recursive=True)
    listening = {c.laddr.ip for p in family for c in p.net_connections() if c.status == "LISTEN"}
print(json.dumps({"home": home, "mode": mode, "listening": sorted(listening),
    "left": os.path.exists(home)}))
"""


def test_a_session_is_of_this_user_alone(tmp_path: Path) -> None:
    """The cases home_not_writable and tmpdir_too_long."""
    long = tmp_path / ("t" * 100)
    long.mkdir()
    env = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    env |= {"HOME": "/dev/null", "TMPDIR": str(long), "RAY_AUTH_MODE": "disabled"}
    env |= {"DHR_BATCH_HOME": str(tmp_path / "home")}
    done = subprocess.run(
        [sys.executable, "-c", _LOOK], env=env, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert {address.removeprefix("::ffff:") for address in found["listening"]} == {"127.0.0.1"}
    assert found["mode"] == "token"
    assert found["home"].startswith(("/tmp/", "/var/tmp/"))
    assert not found["left"]


# Sessions of other programs, as in a notebook, before and after one of this program.
_OTHERS = """
import os
from unittest.mock import Mock
from dhr_batch.pipeline import stopping
from dhr_batch.pipeline.engine.session import session
from dhr_batch.pipeline.planning.request import Request
import ray
def answer():
    return ray.get(ray.remote(lambda: os.getpid()).remote()) != os.getpid()
def other():
    ray.init(address="local", num_cpus=1, include_dashboard=False)
    assert answer()
    ray.shutdown()
other()
with stopping.scope(), session(Request(), Mock(gpus=0, threads=1), 1, stopping.Stopper()):
    assert answer()
assert "RAY_AUTH_TOKEN" not in os.environ
other()
"""


def test_sessions_of_others_before_and_after_have_other_tokens(tmp_path: Path) -> None:
    env = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, "-c", _OTHERS],
        env=env | {"HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr


def test_a_run_needs_no_home_and_respects_the_umask(small_run: SmallRun, tmp_path: Path) -> None:
    """The case home_not_writable."""
    words = [sys.executable, "-m", "dhr_batch.cli", "run", *small_run.words]
    env = os.environ | {"HOME": "/dev/null", "DHR_BATCH_HOME": str(tmp_path / "home")}
    out = tmp_path / "run"
    done = subprocess.run(
        [*words, "--out", str(out)], env=env, capture_output=True, text=True, umask=0o077
    )
    assert done.returncode == 0, done.stderr
    assert (out / "report" / "index.html").exists()
    modes = {path: path.stat().st_mode & 0o777 for path in [out, *out.rglob("*")]}
    assert set(modes.values()) == {0o700, 0o600}, modes


@contextmanager
def listening(answer: bytes | None) -> Iterator[str]:
    """A server that gives an answer, or none, to whoever connects."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection, suppress(OSError):
                if answer is not None:
                    connection.sendall(answer)
                connection.recv(1000)
                connection.recv(1)

        threading.Thread(target=serve, daemon=True).start()
        yield f"127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.parametrize("answer", [None, b"", b"HTTP/1.1 400 Bad Request\r\n\r\n"])
def test_servers_of_other_kinds_are_no_clusters(
    answer: bytes | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "_ANSWER_SECONDS", 0.5)
    with (
        listening(answer) as address,
        pytest.raises(Refused, match=f"--address {address}: .*answer"),
    ):
        session.check_answers(address)
    with listening(bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))) as address:
        session.check_answers(f"ray://{address}")


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("127.0.0.1:1", "no Ray cluster answers there"),
        ("ray://127.0.0.1:1", "no Ray cluster answers there"),
        ("no-such-host.invalid:6379", "no Ray cluster answers there"),
        ("127.0.0.1", "it has no port"),
        ("host:port", "it has no port"),
    ],
)
def test_absent_clusters_are_told(address: str, said: str) -> None:
    with pytest.raises(Refused, match=said) as error:
        session.check_answers(address)
    assert "ray start --head" in error.value.way_out or "HOST:PORT" in error.value.way_out


def test_the_last_cluster_of_this_machine_may_be_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    session.check_answers("auto")
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "ray_current_cluster").write_text("127.0.0.1:1")
    with pytest.raises(Refused, match="no Ray cluster answers"):
        session.check_answers("auto")


def test_a_command_says_that_a_cluster_is_absent(tmp_path: Path) -> None:
    (tmp_path / "photographs").mkdir()
    (tmp_path / "photographs" / "a.png").write_bytes(b"not looked at")
    words = ["run", "--dataset", str(tmp_path / "photographs"), "--preset", "tiny", "--gpus", "0"]
    words += ["--set", "workers=1", "--out", str(tmp_path / "run"), "--address", "127.0.0.1:1"]
    command = [sys.executable, "-m", "dhr_batch.cli", *words]
    refused = subprocess.run(command, capture_output=True, text=True, check=False)
    assert refused.returncode == 2, refused.stderr
    assert "Error: --address 127.0.0.1:1: no Ray cluster answers there" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_a_session_that_does_not_start_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if the raylet had been killed while it started."""

    def fails(**_: Any) -> None:
        raise Exception("The current node timed out during startup.\nThis could happen")

    monkeypatch.setattr(session.ray, "init", fails)
    settings = Mock(gpus=0, threads=1, cpus_per_gpu=1)
    with pytest.raises(
        RunFailed, match="Ray cannot be started: The current node timed out"
    ) as told:
        session._start(tmp_path, settings, 1, {})
    assert "the same command goes on from here" in told.value.way_out
    assert session.ray_constants.ENABLE_RAY_CLUSTER
    said = "Ray cannot join this cluster: The current node"
    with (
        listening(bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))) as address,
        pytest.raises(Refused, match=said),
    ):
        session._join(address, 0, {})


def test_a_session_is_started_once_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    init = Mock(side_effect=[Exception("a process of Ray was killed"), "session"])
    monkeypatch.setattr(session.ray, "init", init)
    # A run on the CPU needs no library of GPUs.
    monkeypatch.setattr(session.devices, "physical_gpus", lambda: pytest.fail("GPUs were counted"))
    settings = Mock(gpus=0, threads=1, cpus_per_gpu=None)
    assert session._start(tmp_path, settings, 2, {}) == "session"
    assert [call.kwargs["num_cpus"] for call in init.call_args_list] == [2, 2]


def test_sockets_need_a_short_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    long = tmp_path / ("t" * 60)
    long.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(long))
    assert str(scratch.socket_place().parent) in ("/tmp", "/var/tmp")
    monkeypatch.setattr(scratch.os, "access", lambda *_: False)
    with pytest.raises(StorageError, match=r"too long for the sockets of Ray.*RAY_TMPDIR"):
        scratch.socket_place()

"""The Ray session of a run: one of its own on this machine, or a cluster that is running."""

from __future__ import annotations

import logging
import os
import secrets
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import ray
from ray._private import ray_constants
from ray._raylet import AuthenticationTokenLoader  # type: ignore[attr-defined]

from dhr_batch.pipeline import stopping
from dhr_batch.pipeline.errors import Refused, RunFailed
from dhr_batch.pipeline.models import catalogue
from dhr_batch.pipeline.planning import devices
from dhr_batch.pipeline.planning.config import Config
from dhr_batch.pipeline.planning.request import Request
from dhr_batch.pipeline.storage.scratch import home_is_writable, scratch, socket_place

_OBJECT_STORE = 100 * 2**20
# How a client of HTTP/2 begins, which gRPC is: a greeting, and a frame of type 4 without settings.
_GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
_ANSWER_SECONDS = 5.0

log = logging.getLogger(__name__)


@contextmanager
def session(
    request: Request, config: Config, workers: int, stopper: stopping.Stopper
) -> Iterator[str]:
    """Use the existing Ray session, join the cluster at `address`, or start a local session.

    Signals are handled by the stopper until the session has ended, because an interrupt during
    the shutdown of Ray would kill this process.

    Args:
        request: The request of the command.
        config: The resolved settings.
        workers: The number of workers of a local session.
        stopper: Notes the signals.

    Yields:
        The address of the dashboard; "" if there is none.

    Raises:
        Refused: If there is no such cluster, or it has too few GPUs.
        RunFailed: If Ray cannot be started.
    """
    with ExitStack() as stack:
        dashboard = "" if ray.is_initialized() else _connect(stack, request, config, workers)
        with stopping.signals(stopper):
            try:
                yield dashboard
            finally:
                stack.close()


def _connect(stack: ExitStack, request: Request, config: Config, workers: int) -> str:
    """Start Ray or join a cluster until the stack is closed. Returns the dashboard's address."""
    # Ray reads these when it starts. The first keeps CUDA_VISIBLE_DEVICES of CPU workers as it is;
    # the last removes control codes from Ray's messages about crashed workers.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_COLOR_PREFIX", "0")
    quiet: dict[str, Any] = {
        "log_to_driver": request.verbose,
        "logging_level": logging.INFO if request.verbose else logging.ERROR,
    }
    if request.address:
        found = _join(request.address, config.gpus or 0, quiet)
        stack.callback(ray.shutdown)
    else:
        folder = stack.enter_context(scratch(socket_place()))
        stack.enter_context(_token())
        if not home_is_writable():
            # Packages keep files of their own there.
            os.environ |= {"DHR_BATCH_HOME": str(catalogue.home()), "HOME": str(folder)}
        found = _start(folder, config, workers, quiet)
        stack.callback(ray.shutdown)
    return found.dashboard_url or ""


def _start(folder: Path, config: Config, workers: int, quiet: dict[str, Any]) -> Any:
    """Start a local session, which only processes of this user on this machine can reach."""
    gpus = config.gpus or 0
    cpus = workers * config.threads
    if gpus:
        cpus = max(cpus, gpus * devices.gpu_cores(config))
    given = {"num_cpus": cpus, "num_gpus": gpus, "_temp_dir": str(folder), **quiet}
    try:
        return _start_once(**given)
    except Exception as error:
        # A process of Ray may have been killed, or the machine is too busy for the time it allows.
        log.warning("Ray has not started, and is started once more: %s", _line(error))
    try:
        return _start_once(**given)
    except Exception as error:
        raise RunFailed("Ray cannot be started", _line(error), RunFailed.GOES_ON) from error


def _start_once(**given: Any) -> Any:
    clusters = ray_constants.ENABLE_RAY_CLUSTER
    # Ray listens on all interfaces, whatever address it is given, unless it may not form clusters.
    # RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER is read too early, when Ray is imported.
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        # Without an address, Ray would join any cluster that is running on this machine.
        return ray.init(
            address="local",
            include_dashboard=False,
            object_store_memory=_OBJECT_STORE,
            **given,
        )
    except Exception:
        ray.shutdown()
        raise
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = clusters


@contextmanager
def _token() -> Iterator[None]:
    """Let local sessions ask for a random token, if none is set, until the context is left."""
    before = {name: os.environ.get(name) for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_MODE")}
    if not {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys():
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    # Ray asks for a token unless this says otherwise.
    os.environ.pop("RAY_AUTH_MODE", None)
    loader = AuthenticationTokenLoader.instance()
    # A process keeps the first token that it reads, which may be that of another session.
    loader.reset_cache()
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
        loader.reset_cache()


def _join(address: str, gpus: int, quiet: dict[str, Any]) -> Any:
    """Join a cluster.

    Raises:
        Refused: If it does not answer, or has too few GPUs.
    """
    check_answers(address)
    try:
        found = ray.init(address=address, **quiet)
    except Exception as error:
        raise Refused(
            f"--address {address}", f"Ray cannot join this cluster: {_line(error)}", _JOIN
        ) from error
    available = int(ray.cluster_resources().get("GPU", 0))
    if gpus > available:
        ray.shutdown()
        raise Refused(
            f"--gpus {gpus}", f"the cluster at {address} has {available} GPUs", "use fewer"
        )
    return found


_JOIN = "see its address with `ray status` on its head, and start it there with `ray start --head`"


def check_answers(address: str) -> None:
    """Check that a cluster answers, for which Ray would wait for minutes.

    Args:
        address: As for `ray.init`: `HOST:PORT`, `ray://HOST:PORT` or `auto`.

    Raises:
        Refused: If nothing at the address answers as Ray does.
    """
    if address == "auto":
        temporary = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"
        last = Path(temporary, "ray", "ray_current_cluster")
        known = os.environ.get("RAY_ADDRESS") or (last.read_text() if last.is_file() else "")
        return check_answers(known) if known not in ("", "auto") else None
    try:
        parts = urlsplit(f"//{address.strip().rpartition('://')[2]}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if not host or not port:
        raise Refused(f"--address {address}", "it has no port", "give HOST:PORT, or auto")
    why = "it does not answer as a Ray cluster"
    try:
        with socket.create_connection((host, port), _ANSWER_SECONDS) as connection:
            connection.settimeout(_ANSWER_SECONDS)
            connection.sendall(_GREETING)
            # A server of HTTP/2 also begins with a frame of type 4.
            if connection.recv(9)[3:4] == b"\4":
                return
    except OSError as error:
        why = f"no Ray cluster answers there: {error.strerror or error}"
    raise Refused(f"--address {address}", why, _JOIN)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:500] or type(error).__name__

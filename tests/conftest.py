"""Fixtures shared by all tests. Tests that need photographs or models skip visibly without them."""

from __future__ import annotations

import logging
import os
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

# Small tensors: a second thread per operation costs more than it brings.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# How long an example takes is a matter of the machine.
settings.register_profile(
    "any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("any machine")

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture(scope="session")
def golden() -> Path:
    """The folder of numbers that were computed by published implementations."""
    return ROOT / "tests" / "golden"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of photographs and directions that are not part of the project."""
    folder = Path(os.environ.get("DHR_BATCH_SHARED", ROOT.parent / "shared"))
    if not folder.is_dir():
        pytest.skip(f"no {folder}: set DHR_BATCH_SHARED to the folder with the test photographs")
    return folder


@pytest.fixture(scope="session")
def models() -> Callable[[str], Path]:
    """Return the path of a pulled model; skip the test if it is not in the cache."""
    from dhr_batch.pipeline.models import catalogue

    def find(name: str) -> Path:
        try:
            return catalogue.path(name)
        except catalogue.ModelMissing as error:
            pytest.skip(str(error))

    return find


@pytest.fixture(scope="session")
def s3() -> Iterator[str]:
    """Endpoint of an S3 server in this process; the environment points to it."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        patch.setenv("AWS_REGION", "us-east-1")
        yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(s3: str) -> str:
    """URL of a new, empty bucket."""
    name = f"test-{uuid.uuid4().hex[:12]}"
    urllib.request.urlopen(urllib.request.Request(f"{s3}/{name}", method="PUT")).close()
    return f"s3://{name}"


@pytest.fixture(params=["local", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A place for a run: a folder, then a prefix of a bucket."""
    if request.param == "local":
        return str(tmp_path / "run")
    return str(request.getfixturevalue("bucket")) + "/run"


@pytest.fixture(scope="session")
def fill() -> Callable[..., np.ndarray]:
    """The number a golden fixture puts into a tensor: `fill(key, shape, rules)`, float32.

    It is `tests.filled.draw`.
    """
    from dhr_batch.tests.filled import draw

    return draw

"""A digest of the code that computes rows, so that no run is continued with other code."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

from dhr_batch.pipeline import outside
from dhr_batch.pipeline.errors import CommandError
from dhr_batch.pipeline.planning.config import Config
from dhr_batch.stages import registry

_PACKAGE = Path(__file__).resolve().parent.parent.parent
# The files of the pipeline that encode and decode rows.
_OWN = ("tables/codec.py", "tables/records.py", "planning/earlier_run.py")


def check(config: Config, expected: str) -> None:
    """Check on a worker that its code is that of the driver.

    Args:
        config: The resolved settings.
        expected: The digest that the driver computed.

    Raises:
        CommandError: If the digest on this machine is different.
    """
    if digest(config) != expected:
        raise CommandError(
            f"the source of the stages on {os.uname().nodename}",
            "it differs from the source that the run was started with",
            "install the same version on all machines, and do not edit it during a run",
        )


def digest(config: Config) -> str:
    """Return the start of the sha256 of all files that rows depend on.

    These are all stages with their networks, the codec of deltas, the code that reads tables of an
    earlier run, and the module of each stage, scorer or network from another package.
    """
    found = hashlib.sha256()
    for name, path in _files(config):
        content = path.read_bytes()
        found.update(f"{name} {len(content)}\n".encode() + content)
    return found.hexdigest()[:16]


def _files(config: Config) -> Iterator[tuple[str, Path]]:
    own = (_PACKAGE / "pipeline" / name for name in _OWN)
    for path in (*sorted(_PACKAGE.glob("stages/**/*.py")), *own):
        yield path.relative_to(_PACKAGE).as_posix(), path
    members = set(outside.texts(list(map(config.model_dump().get, registry.STAGES))))
    if not config.generator.endswith(registry.GENERATOR_FILE):
        members.add(config.generator)
    for module in sorted(
        {name.partition(":")[0] for name in members if registry.OUTSIDE.fullmatch(name)}
    ):
        if file := import_module(module).__file__:
            yield module, Path(file)

"""Which code makes the rows of a run, so that a run is not finished by another one."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from dhr_batch.pipeline.errors import CommandError
from dhr_batch.pipeline.planning.config import Config
from dhr_batch.stages import registry

_PACKAGE = Path(__file__).resolve().parent.parent.parent
# Of the pipeline: what writes and reads deltas and rows.
_OWN = ("tables/codec.py", "tables/records.py", "planning/earlier_run.py")
# A member from another package, as `registry.lookup` takes it.
_MEMBER = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


def check(config: Config, expected: str) -> None:
    """Raises CommandError where the digest here is not that of the driver."""
    if digest(config) != expected:
        raise CommandError(
            f"the stages on {os.uname().nodename} differ from those that the run was started with",
            way_out="install the same on all machines, and edit none while a run goes on",
        )


def digest(config: Config) -> str:
    """Start of the sha256 of the files that rows depend on: all stages with their networks, the
    codec of the deltas and what reads tables of an earlier run, and the module of each stage,
    scorer or network from another package.
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
    members = set(_names(list(map(config.model_dump().get, registry.STAGES))))
    if not config.generator.endswith(registry.GENERATOR_FILE):
        members.add(config.generator)
    for module in sorted({name.partition(":")[0] for name in members if _MEMBER.fullmatch(name)}):
        if file := import_module(module).__file__:
            yield module, Path(file)


def _names(value: Any) -> Iterator[str]:
    """All texts in the settings of stages."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from _names(part)
    elif isinstance(value, Sequence):
        for part in value:
            yield from _names(part)
